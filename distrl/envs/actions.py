"""From a policy's actions to the env's: integers from 0 moved to `start`, Box actions rescaled or clipped to the bounds.

A Gaussian starts around 0 with a deviation of 1, so where both bounds of a dimension are finite it acts in [-1, 1] and the
env gets

    action = center + half_width * clip(x, -1, 1)       center = (low + high) / 2,  half_width = (high - low) / 2

Without `rescale`, and in a dimension without finite bounds, `x` itself is clipped to what bounds there are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

Array = NDArray[Any]

HUGE = 1e8  # a bound beyond it is written where there is none, e.g. the largest float32
_EXACT = 2.0**53  # integers up to it are exact in float64


class ActionMap:
    """Called with a policy's actions [N, ...], it gives the env's, in the shape and dtype of the space.

    Attributes (of a Box, flat [D], float64): `center` and `half_width` where any dimension is `rescaled` [D], else
    empty; `low` and `high`, what the policy's own numbers are clipped to first.
    """

    def __init__(self, space: spaces.Space[Any], rescale: bool = False) -> None:
        self.space = space
        self.dtype = np.dtype(space.dtype) if space.dtype is not None else np.dtype(np.float32)
        self.shape = tuple(space.shape or ())
        self.is_box = isinstance(space, spaces.Box)
        nothing = np.zeros(0)
        self.center = self.half_width = self.low = self.high = self.least = self.most = nothing
        self.rescaled = np.zeros(0, np.bool_)
        if isinstance(space, spaces.Box):
            self._measure(space, rescale)

    def _measure(self, space: spaces.Box, rescale: bool) -> None:
        low, high = bounds_of(space)
        self.least, self.most = low, high
        bounded = is_bounded(low, high)
        self.rescaled = bounded & ~((low == -1.0) & (high == 1.0)) & rescale
        self.low = np.where(self.rescaled, -1.0, low)
        self.high = np.where(self.rescaled, 1.0, high)
        if self.rescaled.any():
            self.center = np.where(self.rescaled, low / 2 + high / 2, 0.0)
            self.half_width = np.where(self.rescaled, high / 2 - low / 2, 1.0)

    def __call__(self, action: Array) -> Array:
        """The env's actions [N, ...]; `action` stays as it is."""
        space = self.space
        if isinstance(space, spaces.Discrete):
            number = action.astype(np.int64)
            return (number + int(space.start) if space.start else number).astype(self.dtype)
        shaped: Array = action.reshape(len(action), *self.shape)
        if isinstance(space, spaces.MultiDiscrete):
            moved: Array = shaped + space.start
            return moved.astype(self.dtype)
        return self._box(action.reshape(len(action), -1)) if self.is_box else shaped.astype(self.dtype)

    def _box(self, flat: Array) -> Array:
        clipped = np.clip(flat, self.low, self.high)
        if len(self.center):
            clipped = np.clip(clipped * self.half_width + self.center, self.least, self.most)
        if self.dtype.kind in "iub":
            clipped = np.clip(np.rint(clipped), -_EXACT, _EXACT)
        shaped: Array = clipped.astype(self.dtype).reshape(len(flat), *self.shape)
        return shaped

    def described(self) -> str:
        """How the policy's actions become the env's, in words."""
        if not self.is_box:
            return ""
        whole = ", rounded to integers" if self.dtype.kind in "iu" else ""
        if not self.rescaled.any():
            unit = bool(((self.least == -1.0) & (self.most == 1.0)).all())
            unbounded = bool((np.isinf(self.least) & np.isinf(self.most)).all())
            how = "as it is" if unbounded else "clipped to [-1, 1]" if unit else "clipped to the bounds"
            return how + whole
        if self.rescaled.all():
            return "rescaled from [-1, 1]" + whole
        return f"{int(self.rescaled.sum())} of {len(self.rescaled)} dimensions rescaled from [-1, 1]" + whole


def bounds_of(space: spaces.Box) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """low and high of a Box, flat [D] float64; where there is no bound (NaN) it is infinite."""
    low, high = (np.asarray(bound, np.float64).reshape(-1) for bound in (space.low, space.high))
    return np.where(np.isnan(low), -np.inf, low), np.where(np.isnan(high), np.inf, high)


def is_bounded(low: NDArray[np.float64], high: NDArray[np.float64]) -> NDArray[np.bool_]:
    """[D] where both bounds are there and meant."""
    return (np.abs(low) <= HUGE) & (np.abs(high) <= HUGE)
