"""What an env gives at each step, checked against its space at a cost that hardly shows.

    one env    `Taker`: keys, shape and dtype, then a copy: the env may go on writing into its own arrays
               `reward_of`, `flag_of`: a number and a bool, in whatever form
    a group    `Ranges`: categories and bounds of all its envs at once, [N, ...]

A category that its space does not have is an error always: a policy would read it as another one. A value outside a
Box's bounds is what `check_observations` says: "error"; "warn" (an error in an env's first observation, a warning, once,
later on: many public envs overstep their bounds a little); or "off".
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from distrl.envs.spaces import check_observation, leaf_spaces
from distrl.errors import RunFailed
from distrl.trees import Tree

Array = NDArray[Any]
_SLACK = 1e-6  # of a float bound, relative: rounding between float64 and float32
LARGEST_REWARD = float(np.finfo(np.float32).max)


class Misfit(Exception):
    """An observation is not of its space; `check_observation` says how."""


class Taker:
    """Takes one env's observations: called, it returns a copy that fits the space, in the env's own dtypes.

    Raises RunFailed that names `who`, the key, what was expected and what came.
    """

    def __init__(self, space: spaces.Space[Any], who: str) -> None:
        self._space, self._who = space, who
        self._take = _taker(space)

    def __call__(self, observation: Any) -> Tree:
        try:
            return self._take(observation)
        except Exception as misfit:  # a KeyError or a library's own, of an observation of another kind
            check_observation(self._space, observation, self._who)
            raise RunFailed(
                f"{self._who}: observation is outside its space: expected {self._space}, got "
                f"{type(observation).__name__}: {misfit}"
            ) from misfit


def _taker(space: spaces.Space[Any]) -> Callable[[Any], Tree]:
    if isinstance(space, spaces.Dict):
        named = {name: _taker(inner) for name, inner in space.spaces.items()}

        def take_dict(observation: Any) -> Tree:
            if len(observation) != len(named):
                raise Misfit("other keys")
            return {name: take(observation[name]) for name, take in named.items()}

        return take_dict
    if isinstance(space, spaces.Tuple):
        placed = [_taker(inner) for inner in space.spaces]
        return lambda observation: tuple(take(part) for take, part in zip(placed, observation, strict=True))
    shape, dtype = tuple(space.shape or ()), np.dtype(space.dtype)

    def take(value: Any) -> Any:
        if type(value) is np.ndarray and value.dtype == dtype and value.shape == shape:
            return value.copy()
        return _take_otherwise(value, shape, dtype)

    return take


def _take_otherwise(value: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    """A copy of what is no array of the space's own dtype; Misfit where it cannot be cast without loss of meaning."""
    if isinstance(value, np.generic | bool | int | float):
        kept: Any = value  # immutable
    elif isinstance(value, list | tuple):
        kept = copy.deepcopy(value)
    else:
        kept = np.array(value)
    array = np.asarray(kept)
    if array.shape != shape or not np.can_cast(array.dtype, dtype, "same_kind"):
        raise Misfit("shape or dtype")
    if dtype.kind in "iu" and not np.can_cast(array.dtype, dtype, "safe"):
        info = np.iinfo(dtype)
        if array.size and not (info.min <= array.min() and array.max() <= info.max):
            raise Misfit(f"values beyond {dtype}")
    return kept


def reward_of(reward: Any, who: str) -> float:
    """The reward as a float; RunFailed where it is no number."""
    if isinstance(reward, float | np.floating):
        return float(reward)
    try:
        array = np.asarray(reward)
        if array.size == 1 and array.dtype.kind in "biuf":
            return float(array.reshape(())[()])
        if array.size == 1 and array.dtype == object and isinstance(array.item(), int):
            return float(array.item())  # beyond int64
    except Exception:  # a tensor that cannot be read: see below
        pass
    raise RunFailed(f"{who}: the reward must be one number, got {_described(reward)}")


def flag_of(flag: Any, name: str, who: str) -> bool:
    """`terminated` or `truncated` as a bool; RunFailed where it is none."""
    if isinstance(flag, bool | np.bool_):
        return bool(flag)
    try:
        array = np.asarray(flag)
        if array.size == 1 and array.dtype.kind in "biuf":
            return bool(array.reshape(())[()])
    except Exception:  # as above
        pass
    raise RunFailed(f"{who}: {name} must be a bool, got {_described(flag)}")


def _described(value: Any) -> str:
    text = " ".join(repr(value).split())
    shape = getattr(value, "shape", None)
    short = text if len(text) <= 60 else text[:57] + "..."
    return f"{type(value).__name__} {short}" + (f" of shape {tuple(shape)}" if shape else "")


@dataclass(frozen=True)
class Outside:
    """An entry of the env at `slot` outside of its leaf's range; of a category where not `is_box`."""

    slot: int
    key: str
    value: float
    low: float
    high: float
    is_box: bool

    def __str__(self) -> str:
        return (
            f"expected values in [{self.low:.6g}, {self.high:.6g}], got {self.value:.6g}; correct the env's "
            "observation_space, or clip with a wrapper"
        )


class Ranges:
    """The ranges of a space's leaves; `outside` finds what is not in them, among all envs of a group."""

    def __init__(self, space: spaces.Space[Any], with_boxes: bool = True) -> None:
        self._leaves = [leaf for leaf in map(_leaf_of, *_columns(space)) if leaf is not None]
        if not with_boxes:
            self.forget_boxes()

    def forget_boxes(self, key: str | None = None) -> None:
        """No longer looks at the bounds of the Box at `key`, or of any."""
        self._leaves = [one for one in self._leaves if not (one.is_box and key in (None, one.key))]

    def outside(self, tree: Tree) -> Outside | None:
        """The first leaf of the observations [N, ...] that is out of its range; NaN is in every range."""
        for leaf in self._leaves:
            array = tree
            for name in leaf.path:
                array = array[name]
            if leaf.is_outside(array):
                return leaf.describe(array)
        return None


@dataclass(frozen=True)
class _Leaf:
    key: str
    path: tuple[Any, ...]
    low: Array  # [...] with slack; one number where all are the same
    high: Array
    bounds: tuple[Array, Array]  # without slack
    is_box: bool

    def is_outside(self, array: Array) -> bool:
        if self.low.ndim == 0:
            least, most = np.minimum.reduce(array, axis=None), np.maximum.reduce(array, axis=None)
            return bool(least < self.low or most > self.high)
        return bool(((array < self.low) | (array > self.high)).any())

    def describe(self, array: Array) -> Outside | None:
        place = np.unravel_index(np.argmax((array < self.low) | (array > self.high)), array.shape)
        low, high = (np.broadcast_to(bound, array.shape[1:])[place[1:]] for bound in self.bounds)
        return Outside(int(place[0]), self.key, float(array[place]), float(low), float(high), self.is_box)


def _columns(space: spaces.Space[Any]) -> tuple[list[str], list[tuple[Any, ...]], list[Any]]:
    keys = [key for key, _ in leaf_spaces(space)]
    return keys, list(_paths(space, ())), [leaf for _, leaf in leaf_spaces(space)]


def _paths(space: spaces.Space[Any], path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    if isinstance(space, spaces.Dict):
        for name, inner in space.spaces.items():
            yield from _paths(inner, (*path, name))
    elif isinstance(space, spaces.Tuple):
        for position, inner in enumerate(space.spaces):
            yield from _paths(inner, (*path, position))
    else:
        yield path


def _leaf_of(key: str, path: tuple[Any, ...], space: Any) -> _Leaf | None:
    """None where nothing can be outside."""
    dtype = np.dtype(space.dtype)
    if dtype.kind == "b" or 0 in (space.shape or ()):
        return None
    if isinstance(space, spaces.Box):
        low, high = bounds = space.low, space.high
        if dtype.kind == "f":
            with np.errstate(over="ignore"):
                low = low - (_SLACK * (1 + np.abs(low))).astype(dtype)
                high = high + (_SLACK * (1 + np.abs(high))).astype(dtype)
            free = not np.isfinite(low).any() and not np.isfinite(high).any()
        else:
            info = np.iinfo(dtype)
            free = bool((low <= info.min).all() and (high >= info.max).all())
        if free:
            return None
    elif isinstance(space, spaces.MultiBinary):
        low, high = bounds = np.zeros(space.shape, np.int64), np.ones(space.shape, np.int64)
    else:
        low = np.asarray(space.start, np.int64)
        high = (
            low + np.asarray(space.nvec if isinstance(space, spaces.MultiDiscrete) else space.n, np.int64) - 1
        )
        bounds = low, high
    if low.size and (low == low.flat[0]).all() and (high == high.flat[0]).all():
        low, high = low.flat[0].reshape(()), high.flat[0].reshape(())
    return _Leaf(key, path, np.asarray(low), np.asarray(high), bounds, isinstance(space, spaces.Box))
