"""Action masks: which actions are legal, in any form that envs give them, as one array of bools.

    Discrete(n)          n entries
    MultiDiscrete(nvec)  one mask for each dimension (a tuple, a list, a row of an array), or all of them in a row
    MultiBinary(n)       n entries: whether a bit may be 1; or (n, 2): whether it may be 0, and whether it may be 1

Where an env may give one: under a key of its observation (`--mask-key`), in the info of reset and step
(`info["action_mask"]`), or by a method or property `action_masks`. The first of these that is there counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from distrl.errors import RunFailed

Mask = NDArray[np.bool_]
KEY = "action_mask"
METHOD = "action_masks"


def mask_parts(space: spaces.Space[Any]) -> list[int]:
    """The lengths of the parts that a mask of `space` has in a row; in each of them something must be legal. Empty for
    a space whose actions cannot be masked."""
    if isinstance(space, spaces.Discrete):
        return [int(space.n)]
    if isinstance(space, spaces.MultiDiscrete):
        return [int(size) for size in space.nvec.flat]
    if isinstance(space, spaces.MultiBinary):
        return [2] * math.prod(space.shape)
    return []


def read_mask(space: spaces.Space[Any], given: Any, who: str) -> Mask:
    """`given` as bools in a row, of the parts of `mask_parts`. RunFailed, which begins with `who`, where it does not fit
    or leaves nothing to do."""
    parts = mask_parts(space)
    flat = _flat(given, who)
    if isinstance(space, spaces.MultiBinary) and len(flat) == len(parts):
        flat = np.stack([np.ones_like(flat), flat], axis=1).reshape(-1)
    if len(flat) != sum(parts):
        raise RunFailed(f"{who}: action_mask has {_shape(given)}, and {space} needs {_needed(space, parts)}")
    check_legal(flat[None], parts, lambda _: who)
    return flat


def check_legal(mask: Mask, parts: list[int], who: Callable[[int], str]) -> None:
    """RunFailed where a row of `mask` [N, sum of parts] leaves nothing legal in one of its parts; `who(row)` is named."""
    begins = np.cumsum([0, *parts[:-1]])
    legal = np.logical_or.reduceat(mask, begins, axis=1)
    if legal.all():
        return
    row, part = np.argwhere(~legal)[0].tolist()
    where = f" in dimension {part}" if len(parts) > 1 else ""
    raise RunFailed(
        f"{who(row)}: action_mask of shape {mask.shape[1:]} leaves no legal action{where}; end the episode where there is "
        "none (terminated=True), or let one action do nothing"
    )


def _flat(given: Any, who: str) -> Mask:
    """All entries in a row; the parts of a MultiDiscrete's may differ in length."""
    if isinstance(given, np.ndarray) and given.dtype == np.bool_:
        return given.reshape(-1)
    try:
        plain = isinstance(given, np.ndarray) and given.dtype.kind in "iuf"
        numbers = given.reshape(-1) if plain else np.array([float(entry) for entry in _entries(given)])
    except (TypeError, ValueError) as error:
        raise RunFailed(
            f"{who}: action_mask must hold 0s and 1s (or bools), got {type(given).__name__} {_short(given)}"
        ) from error
    if not ((numbers == 0) | (numbers == 1)).all():
        raise RunFailed(
            f"{who}: action_mask must hold 0s and 1s (or bools), got {_short(given)}; for a MultiBinary give (n, 2): "
            "whether a bit may be 0, and whether it may be 1"
        )
    flat: Mask = numbers.astype(np.bool_)
    return flat


def _entries(given: Any) -> list[Any]:
    if hasattr(given, "detach"):  # a tensor
        given = given.detach().cpu().numpy()
    if isinstance(given, np.ndarray) and given.dtype != object:
        return list(given.reshape(-1))
    if isinstance(given, list | tuple | np.ndarray):
        return [entry for part in given for entry in _entries(part)]
    return [given]


def _shape(given: Any) -> str:
    try:
        return f"shape {np.shape(given)}"
    except ValueError:
        return f"parts of shapes {', '.join(str(np.shape(part)) for part in given)}"


def _needed(space: spaces.Space[Any], parts: list[int]) -> str:
    if isinstance(space, spaces.Discrete):
        return f"({parts[0]},)"
    if isinstance(space, spaces.MultiBinary):
        return f"({len(parts)},) or ({len(parts)}, 2)"
    return f"one of {sum(parts)} entries, or a tuple of {len(parts)} with {', '.join(map(str, parts))}"


def _short(given: Any) -> str:
    text = " ".join(repr(given).split())
    return text if len(text) <= 60 else text[:57] + "..."


def legal_action(space: spaces.Space[Any], legal: Mask | None) -> Any:
    """A random action of `space`, drawn by its own generator, among the `legal` ones: a row as `read_mask` gives it, or None
    where all are."""
    parts = mask_parts(space)
    if legal is None or not parts:
        return space.sample()
    rows = np.split(legal, np.cumsum(parts)[:-1])
    chosen = np.array([space.np_random.choice(np.flatnonzero(row)) for row in rows])
    start = 0 if isinstance(space, spaces.MultiBinary) else space.start  # type: ignore[attr-defined]
    action: Any = (chosen.reshape(space.shape or ()) + start).astype(space.dtype)
    return action[()]


class MaskReader:
    """Finds the mask of a single env and puts it into its info as bools in a row, for a group to read."""

    def __init__(self, env: Any) -> None:
        self.space = env.action_space
        self.parts = mask_parts(self.space)
        self.has_method = _has_method(env)

    def put(self, env: Any, info: Any, who: str, step: int, over: bool = False) -> Any:
        """`info` with its mask, of the observation that came with it, at `step` of the episode.

        Where the episode is `over` nothing has to be legal, and everything is. RunFailed names env, step and shape.
        """
        given = info.get(KEY) if isinstance(info, dict) else None
        if given is None:
            if not self.has_method or (not self.parts and step > 0):
                return info
            given = True if over or not self.parts else _asked(env)
            if given is None:
                return info
        if not self.parts:  # cannot be masked: the group says so
            return {**info, KEY: np.ones(1, np.bool_)}
        if over:
            return {**info, KEY: np.ones(sum(self.parts), np.bool_)}
        return {**info, KEY: read_mask(self.space, given, f"{who}: step {step} of its episode")}


def _has_method(env: Any) -> bool:
    """Whether a layer of `env` has `action_masks`, a method or a property; a property is not asked yet."""
    layer = env
    while not (METHOD in vars(layer) or hasattr(type(layer), METHOD)):
        if not isinstance(layer, gymnasium.Wrapper):
            return bool(env.has_wrapper_attr(METHOD)) and callable(env.get_wrapper_attr(METHOD))
        layer = layer.env
    return True


def _asked(env: Any) -> Any:
    found = env.get_wrapper_attr(METHOD)
    return found() if callable(found) else found


def unused_mask_keys(observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> list[str]:
    """Keys of an observation that look like an action mask by name and number of entries."""
    parts = mask_parts(action_space)
    if not parts or not isinstance(observation_space, spaces.Dict):
        return []
    sizes = {sum(parts), len(parts)} if isinstance(action_space, spaces.MultiBinary) else {sum(parts)}
    return [
        key
        for key, leaf in observation_space.spaces.items()
        if "mask" in key.lower() and leaf.shape is not None and math.prod(leaf.shape) in sizes
    ]


def read_masks(
    space: spaces.Space[Any], given: Any, rows: Mask, who: Callable[[int], str], over: Mask | None = None
) -> Mask:
    """The masks of a group [N, sum of parts] from a vector env's info; everything is legal outside of `rows` [N], which
    gave one, and where the episode is `over`. RunFailed names the env and the shape."""
    parts = mask_parts(space)
    count = len(rows)
    masks = np.ones((count, sum(parts)), np.bool_)
    read = rows if over is None else rows & ~over
    if isinstance(given, np.ndarray) and given.dtype == np.bool_ and given.shape == masks.shape:
        masks[read] = given[read]
        check_legal(masks, parts, who)
        return masks
    by_part = isinstance(given, tuple) and len(given) == len(parts) and np.ndim(given[0]) == 2
    for slot in np.flatnonzero(read).tolist():
        one = tuple(part[slot] for part in given) if by_part else given[slot]
        masks[slot] = read_mask(space, one, who(slot))
    return masks
