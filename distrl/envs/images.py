"""Which axis of an image holds its channels: what its space says, else what its shape makes likely. Floor 1."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

COMMON_CHANNELS = (1, 3, 4)  # grey, RGB, RGBA or four frames


class ImageBox(spaces.Box):
    """A Box that knows which of its axes holds the channels, e.g. of stacked frames. 0 is the first, -1 the last."""

    def __init__(self, low: Any, high: Any, dtype: Any, channel_axis: int) -> None:
        super().__init__(low, high, dtype=dtype)
        self.channel_axis = channel_axis


def channel_axis(space: spaces.Box) -> int:
    """0 or -1: the axis with the channels of a space of three dimensions."""
    known = getattr(space, "channel_axis", None)
    return known if known is not None else likely_channel_axis(space.shape)


def likely_channel_axis(shape: tuple[int, ...]) -> int:
    """0 or -1 for a shape of three: the axis without which the image is square; else that of 1, 3 or 4; else the shorter."""
    first, middle, last = shape
    squares = (middle == last, first == middle)
    if squares[0] != squares[1]:
        return 0 if squares[0] else -1
    common = (first in COMMON_CHANNELS, last in COMMON_CHANNELS)
    if common[0] != common[1]:
        return 0 if common[0] else -1
    return 0 if first < last else -1


def finite_range(space: spaces.Box) -> tuple[float, float] | None:
    """The least and the largest value of a space whose bounds are all finite, else None."""
    if space.low.size == 0 or not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
        return None
    return float(space.low.min()), float(space.high.max())
