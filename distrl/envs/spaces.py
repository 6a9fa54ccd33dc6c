"""Between a space and the arrays of a group: what is supported, what is outside, what is cast.

Suffixes: N envs of a group. A Tree is an array, or a dict or tuple of trees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from distrl.envs.actions import ActionMap
from distrl.errors import BadInput, RunFailed
from distrl.trees import Tree

_LEAVES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
_ACTIONS = _LEAVES
# Types that torch has not, or does nothing with: what they are read as (None: float32, by way of float64).
_AS_OTHERS: dict[Any, Any] = {
    np.dtype(np.uint16): np.int32,
    np.dtype(np.uint32): np.int64,
    np.dtype(np.uint64): None,
    np.dtype(np.longdouble): None,
}
# The square sum below which no entry of a float64 array leaves the range of float32.
_SAFE_SQUARES = 1e70


def check_supported(
    observation_space: spaces.Space[Any], action_space: spaces.Space[Any], env_id: str
) -> None:
    """Raises BadInput, with all problems, for spaces that cannot be learned from."""
    problems = []
    if not isinstance(action_space, _ACTIONS):
        problems.append(
            f"env {env_id!r}: the action space must be Discrete, MultiDiscrete, MultiBinary or Box, "
            f"got {action_space}; flatten it with a wrapper"
        )
    elif _is_empty(action_space):
        problems.append(
            f"env {env_id!r}: the action space must have at least one entry, got {action_space}, which leaves nothing "
            "to choose"
        )
    leaves = list(leaf_spaces(observation_space))
    if not leaves:
        problems.append(
            f"env {env_id!r}: the observation must have at least one entry, got {observation_space}; give a constant "
            "where there is nothing to see, e.g. Box(0, 0, (1,))"
        )
    for key, leaf in leaves:
        if not isinstance(leaf, _LEAVES):
            problems.append(
                f"env {env_id!r}: observation{key} must be Box, Discrete, MultiDiscrete or MultiBinary, or a Dict "
                f"or Tuple of them, got {leaf}; change it with a wrapper"
            )
        elif _is_empty(leaf):
            problems.append(
                f"env {env_id!r}: observation{key} must have at least one entry, got {leaf}; leave it out with a wrapper"
            )
    if problems:
        raise BadInput(*problems)


def _is_empty(space: spaces.Space[Any]) -> bool:
    return 0 in (space.shape or ())


def leaf_spaces(space: spaces.Space[Any], key: str = "") -> Iterator[tuple[str, spaces.Space[Any]]]:
    """The leaves of Dict and Tuple spaces with their keys, e.g. `['camera'][0]`, in their own order."""
    if isinstance(space, spaces.Dict):
        for name, inner in space.spaces.items():
            yield from leaf_spaces(inner, f"{key}[{name!r}]")
    elif isinstance(space, spaces.Tuple):
        for position, inner in enumerate(space.spaces):
            yield from leaf_spaces(inner, f"{key}[{position}]")
    else:
        yield key, space


def to_env_action(space: spaces.Space[Any], action: NDArray[Any]) -> NDArray[Any]:
    """A policy's action [N, ...] in the env's own format: integers from 0 are moved to `start`, Box actions
    are clipped to the bounds, and shape and dtype become the space's."""
    return ActionMap(space)(action)


def check_observation(space: spaces.Space[Any], observation: Any, who: str) -> None:
    """Raises RunFailed that names `who`, the key, what was expected and what came."""
    _check(space, observation, who, "")


def _check(space: spaces.Space[Any], observation: Any, who: str, key: str) -> None:
    if isinstance(space, spaces.Dict):
        if not isinstance(observation, dict) or set(observation) != set(space.spaces):
            got = (
                f"keys {sorted(observation)}" if isinstance(observation, dict) else type(observation).__name__
            )
            raise _outside(who, key, f"a dict with keys {sorted(space.spaces)}", got)
        for name, inner in space.spaces.items():
            _check(inner, observation[name], who, f"{key}[{name!r}]")
        return
    if isinstance(space, spaces.Tuple):
        if not isinstance(observation, tuple | list) or len(observation) != len(space.spaces):
            got = f"{type(observation).__name__} of {len(observation) if hasattr(observation, '__len__') else 1}"
            raise _outside(who, key, f"a tuple of {len(space.spaces)}", got)
        for position, inner in enumerate(space.spaces):
            _check(inner, observation[position], who, f"{key}[{position}]")
        return
    try:
        array = np.asarray(observation)
    except ValueError:
        array = np.asarray(str(observation))
    shape, dtype = space.shape or (), np.dtype(space.dtype)
    if array.shape != shape or not np.can_cast(array.dtype, dtype, "same_kind"):
        raise _outside(who, key, f"shape {shape} {dtype}", f"shape {array.shape} {array.dtype}")
    low, high = _bounds(space)
    slack = 1e-6 if dtype.kind == "f" else 0.0
    number = array.astype(np.float64)
    if np.any(number < low - slack * (1 + np.abs(low))) or np.any(number > high + slack * (1 + np.abs(high))):
        raise _outside(
            who,
            key,
            f"values in {_range(low, high)}",
            f"{_range(number, number)}; correct the env's observation_space, or clip with a wrapper",
        )


def _bounds(space: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if isinstance(space, spaces.Box):
        return space.low.astype(np.float64), space.high.astype(np.float64)
    if isinstance(space, spaces.MultiBinary):
        return np.zeros(space.shape), np.ones(space.shape)
    start = np.asarray(space.start, np.float64)
    size = np.asarray(space.nvec if isinstance(space, spaces.MultiDiscrete) else space.n, np.float64)
    return start, start + size - 1


def _range(low: NDArray[Any], high: NDArray[Any]) -> str:
    return f"[{np.min(low, initial=np.inf):.6g}, {np.max(high, initial=-np.inf):.6g}]"


def _outside(who: str, key: str, expected: str, got: str) -> RunFailed:
    return RunFailed(f"{who}: observation{key} is outside its space: expected {expected}, got {got}")


class ObservationReader:
    """Turns a vector env's observation buffer into arrays of our own: float64 to float32, types that torch lacks to
    ones that it has, the rest as it is, always new arrays; and says whether all of it is finite."""

    def __init__(self, space: spaces.Space[Any]) -> None:
        self._space = space
        self._read = _reader(space)

    def read(self, raw: Any) -> tuple[Tree, bool]:
        """(observation [N, ...], whether every number in it is surely finite)."""
        return self._read(raw)

    def nonfinite_rows(self, observation: Tree) -> tuple[NDArray[np.bool_], str]:
        """([N] rows with a NaN or Inf, the key of the first such leaf)."""
        rows: NDArray[np.bool_] | None = None
        first = ""
        for key, leaf in _leaves(self._space, observation, ""):
            bad = ~np.isfinite(leaf).reshape(len(leaf), -1).all(axis=1)
            if not first and bad.any():
                first = f"observation{key}"
            rows = bad if rows is None else rows | bad
        assert rows is not None, "a space has at least one leaf"
        return rows, first


def _leaves(space: spaces.Space[Any], tree: Tree, key: str) -> Iterator[tuple[str, NDArray[Any]]]:
    if isinstance(space, spaces.Dict):
        for name, inner in space.spaces.items():
            yield from _leaves(inner, tree[name], f"{key}[{name!r}]")
    elif isinstance(space, spaces.Tuple):
        for position, inner in enumerate(space.spaces):
            yield from _leaves(inner, tree[position], f"{key}[{position}]")
    else:
        yield key, tree


def _reader(space: spaces.Space[Any]) -> Callable[[Any], tuple[Tree, bool]]:
    if isinstance(space, spaces.Dict):
        named = {name: _reader(inner) for name, inner in space.spaces.items()}

        def read_dict(raw: Any) -> tuple[Tree, bool]:
            parts = {name: read(raw[name]) for name, read in named.items()}
            return {name: part[0] for name, part in parts.items()}, all(part[1] for part in parts.values())

        return read_dict
    if isinstance(space, spaces.Tuple):
        placed = [_reader(inner) for inner in space.spaces]

        def read_tuple(raw: Any) -> tuple[Tree, bool]:
            parts = [read(inner) for read, inner in zip(placed, raw, strict=True)]
            return tuple(part[0] for part in parts), all(part[1] for part in parts)

        return read_tuple
    kind = np.dtype(space.dtype)
    if kind == np.float64:
        return _read_float64
    if kind in _AS_OTHERS:
        other = _AS_OTHERS[kind]
        return lambda raw: (
            _read_float64(np.asarray(raw, np.float64)) if other is None else (np.array(raw, other), True)
        )
    return _read_float if kind.kind == "f" else lambda raw: (np.array(raw), True)


def _read_float(raw: Any) -> tuple[NDArray[Any], bool]:
    array = np.array(raw)
    # A sum of squares by BLAS is the cheapest look at all entries: NaN and Inf end up in it, and numpy's
    # floating point warnings do not come from it. Overflow only sends us to the exact check.
    return array, float(np.vdot(array, array)) < _SAFE_SQUARES


def _read_float64(raw: Any) -> tuple[NDArray[Any], bool]:
    if float(np.vdot(raw, raw)) < _SAFE_SQUARES:
        return raw.astype(np.float32), True
    with np.errstate(over="ignore", invalid="ignore"):
        return raw.astype(np.float32), False
