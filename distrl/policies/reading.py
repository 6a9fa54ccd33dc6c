"""How each leaf of an observation is read, told from its space: an image, numbers, a category.

    image       a Box with height and width of at least 28 that holds light: bytes, or other numbers in 0..255, 0..1 or
                -1..1 with three dimensions; [k, ...] of them are frames. Scaled to 0..1 by the bounds of its space
    numbers     any other Box and MultiBinary, as they are; a small "image" is a board or a view in codes, and no light
    one-hot     Discrete and each entry of MultiDiscrete
    embedding   the same with more than 4096 categories

`scale` is the run's `--observation-scale`: "auto" as above; "off" scales nothing; "bytes" is what runs did that are older
than the choice: every matrix of bytes is an image and divided by 255, and categories are always one-hot.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from gymnasium import spaces

from distrl.envs.images import COMMON_CHANNELS, channel_axis, finite_range

Scale = Literal["auto", "off", "bytes"]

MIN_SIDE = 28  # of an image
MIN_SIDE_ASKED = 3  # of one that `--network cnn` is given
MAX_ONE_HOT = 4096
EMBEDDING = 16  # width
_LIGHT = ((0.0, 255.0), (0.0, 1.0), (-1.0, 1.0))


@dataclass(frozen=True, eq=False)
class Reading:
    """One leaf: `(x - low) / scale` are its numbers or pixels. `image` is [C, H, W], and `order` the leaf's axes as
    [k, C, H, W] or [C, H, W]."""

    key: str
    space: spaces.Space
    kind: Literal["image", "numbers", "one-hot", "embedding"]
    low: float = 0.0
    scale: float = 1.0
    image: tuple[int, int, int] | None = None
    order: tuple[int, ...] = ()

    @property
    def num_features(self) -> int:
        """Width among the vector features."""
        space = self.space
        if self.kind == "image":
            return 0
        if isinstance(space, spaces.Discrete):
            return EMBEDDING if self.kind == "embedding" else int(space.n)
        if isinstance(space, spaces.MultiDiscrete):
            return sum(self.widths)
        return math.prod(space.shape or ())

    @property
    def widths(self) -> list[int]:
        """Of a MultiDiscrete's entries; one that has an embedding is `EMBEDDING` wide."""
        assert isinstance(self.space, spaces.MultiDiscrete)
        return [EMBEDDING if self.embeds(int(size)) else int(size) for size in self.space.nvec.flat]

    def embeds(self, size: int) -> bool:
        """Whether a category of so many has an embedding."""
        return self.kind == "embedding" and size > MAX_ONE_HOT

    @property
    def sizes_embedded(self) -> list[int]:
        """Of each embedding table, in order."""
        if isinstance(self.space, spaces.Discrete):
            return [int(self.space.n)] if self.kind == "embedding" else []
        if isinstance(self.space, spaces.MultiDiscrete):
            return [int(size) for size in self.space.nvec.flat if self.embeds(int(size))]
        return []

    def described(self) -> str:
        """One line, e.g. `observation board: Box(8, 8) uint8 0..1 -> 64 numbers, unscaled`."""
        name = f"observation {self.key}" if self.key else "observation"
        return f"{name}: {_brief(self.space)} -> {self._what()}"

    def _what(self) -> str:
        scaled = "unscaled" if self.scale == 1.0 and self.low == 0.0 else f"scaled by 1/{self.scale:g}"
        if self.low:
            scaled = f"{-self.low:+g}, {scaled}"
        if self.kind == "image":
            assert self.image is not None
            channels, height, width = self.image
            where = ""
            if len(self.space.shape or ()) >= 3:
                where = " (channels first)" if self.order[-3] < self.order[-1] else " (channels last)"
            return f"image of {height} x {width} with {channels} channels{where}, {scaled}"
        if self.kind == "embedding":
            return f"embedding, {self.num_features} numbers"
        if self.kind == "one-hot":
            return f"one-hot, {self.num_features} numbers"
        return f"{self.num_features} numbers, {scaled}"


def readings(
    space: spaces.Space, scale: Scale = "bytes", asked: bool = False, flatten: bool = False
) -> list[Reading]:
    """Of each leaf, in the order of `tree_leaves`. `asked`: by `--network cnn` for images; `flatten`: images are given as
    numbers. ValueError for a space that is not read."""
    return [_read(key, leaf, scale, asked, flatten) for key, leaf in keyed_leaves(space)]


def keyed_leaves(space: spaces.Space, key: str = "") -> Iterator[tuple[str, spaces.Space]]:
    """The leaves of nested Dict and Tuple spaces with their keys, e.g. `body.0`, in the order of `tree_leaves`."""
    if isinstance(space, spaces.Dict):
        for name, part in space.spaces.items():
            yield from keyed_leaves(part, f"{key}.{name}" if key else str(name))
    elif isinstance(space, spaces.Tuple):
        for place, part in enumerate(space.spaces):
            yield from keyed_leaves(part, f"{key}.{place}" if key else str(place))
    elif isinstance(space, (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)):
        yield key, space
    else:
        raise ValueError(
            f"observations must be Box, Discrete, MultiDiscrete, MultiBinary, Dict or Tuple, got {space}: "
            "wrap the env (--wrapper) so that they are"
        )


def _read(key: str, space: spaces.Space, scale: Scale, asked: bool, flatten: bool) -> Reading:
    if isinstance(space, spaces.Discrete):
        large = scale != "bytes" and int(space.n) > MAX_ONE_HOT
        return Reading(key, space, "embedding" if large else "one-hot")
    if isinstance(space, spaces.MultiDiscrete):
        large = scale != "bytes" and bool((space.nvec > MAX_ONE_HOT).any())
        return Reading(key, space, "embedding" if large else "one-hot")
    if not isinstance(space, spaces.Box):
        return Reading(key, space, "numbers")
    light = is_image(space, scale)
    low, divisor = _scaling(space, scale) if light else (0.0, 1.0)
    if flatten or not (light or (asked and may_be_image(space))):
        return Reading(key, space, "numbers", low, divisor)
    image, order = _laid_out(space, scale)
    return Reading(key, space, "image", low, divisor, image, order)


def is_image(space: spaces.Space, scale: Scale = "bytes") -> bool:
    """Whether a leaf holds light, as the module's table says."""
    if not isinstance(space, spaces.Box):
        return False
    rank, is_bytes = len(space.shape), space.dtype == np.uint8
    if scale == "bytes":
        return is_bytes and rank in (2, 3)
    if rank not in (2, 3, 4) or min(_laid_out(space, scale)[0][1:]) < MIN_SIDE:
        return False
    bounds = finite_range(space)
    if is_bytes:
        return True
    if rank == 2:
        return bounds == _LIGHT[0]
    channels, height, width = _laid_out(space, scale)[0]
    return bounds in _LIGHT and channels <= min(height, width)


def may_be_image(space: spaces.Box) -> bool:
    """Whether convolutions can be asked to look at it."""
    rank = len(space.shape)
    return rank in (2, 3, 4) and min(_laid_out(space, "auto")[0][1:]) >= MIN_SIDE_ASKED


def _scaling(space: spaces.Box, scale: Scale) -> tuple[float, float]:
    """(low, divisor) of an image's pixels."""
    if scale == "bytes":
        return 0.0, 255.0
    bounds = finite_range(space)
    if scale == "off" or bounds is None or max(map(abs, bounds)) <= 1.0 or bounds[0] == bounds[1]:
        return 0.0, 1.0
    return bounds[0], bounds[1] - bounds[0]


def _laid_out(space: spaces.Box, scale: Scale) -> tuple[tuple[int, int, int], tuple[int, ...]]:
    """([C, H, W], the leaf's axes in the order [k, C, H, W] or [C, H, W])."""
    shape = space.shape
    if len(shape) == 2:
        return (1, shape[0], shape[1]), (0, 1)
    if len(shape) == 4:  # frames of images
        one = spaces.Box(0, 1, shape[1:])
        (channels, height, width), order = _laid_out(one, scale)
        return (shape[0] * channels, height, width), (0, *(axis + 1 for axis in order))
    first = channels_first_of_old(shape) if scale == "bytes" else channel_axis(space) == 0
    if first:
        return (shape[0], shape[1], shape[2]), (0, 1, 2)
    return (shape[2], shape[0], shape[1]), (2, 0, 1)


def channels_first_of_old(shape: tuple[int, ...]) -> bool:
    """The rule of "bytes": first, unless only the last axis has 1, 3 or 4."""
    return not (shape[-1] in COMMON_CHANNELS and shape[0] not in COMMON_CHANNELS)


def _brief(space: spaces.Space) -> str:
    """Shape, dtype and bounds: `Box(8, 8) uint8 0..1`."""
    if not isinstance(space, spaces.Box):
        return " ".join(str(space).split())
    low, high = float(np.nanmin(space.low)), float(np.nanmax(space.high))
    return f"Box({', '.join(map(str, space.shape))}) {space.dtype} {low:g}..{high:g}"
