"""Metrics that merge exactly: a sum and a count, never a mean of means.

A mean over workers is right only if their sums and counts are added first. Floating-point addition also depends on
the order, so `Mean` keeps its sum as an exact fixed-point integer: whatever the split into groups and the order of
merging, the result is the same correctly rounded number.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

_FRACTION_BITS = (
    1074  # the smallest positive float64 is 2**-1074, so every finite float64 is an integer multiple
)


class Mean:
    """An exactly mergeable mean: `total` / `count`. NaN before the first value; NaN and inf propagate."""

    __slots__ = ("_fixed", "_special", "count")

    def __init__(self) -> None:
        self._fixed = 0  # the sum of the finite values, times 2**_FRACTION_BITS
        self._special = 0.0  # the sum of the non-finite ones
        self.count = 0

    def add(self, value: float, count: int = 1) -> None:
        """Adds a sum `value` over `count` items (one item by default)."""
        value = float(value)
        if math.isfinite(value):
            numerator, denominator = value.as_integer_ratio()
            self._fixed += numerator << (_FRACTION_BITS + 1 - denominator.bit_length())
        else:
            self._special += value
        self.count += int(count)

    def add_many(self, values: np.ndarray | Iterable[float], mask: np.ndarray | None = None) -> None:
        """Adds every element of `values` [...], or those where the bool `mask` [...] is true, each exactly."""
        array = np.asarray(values, dtype=np.float64)
        if mask is not None:
            if mask.shape != array.shape:
                raise ValueError(f"mask must have the shape of values {array.shape}, got {mask.shape}")
            array = array[mask]
        finite = np.isfinite(array)
        rest = array[finite].tolist()
        try:
            # fsum is the correctly rounded sum; adding what it left over, until nothing is, makes it exact.
            while partial := math.fsum(rest):
                self.add(partial, 0)
                rest.append(-partial)
        except OverflowError:  # the sum passes the largest float64, the mean need not
            for value in rest:
                self.add(value, 0)
        self._special += float(array[~finite].sum())
        self.count += array.size

    def merge(self, other: Mean) -> None:
        """Adds the other's sum and count to this one. Exact, so order and grouping cannot matter."""
        self._fixed += other._fixed
        self._special += other._special
        self.count += other.count

    @property
    def total(self) -> float:
        if self._special != 0.0:
            return self._special
        try:
            return self._fixed / (1 << _FRACTION_BITS)
        except OverflowError:
            return math.inf if self._fixed > 0 else -math.inf

    @property
    def value(self) -> float:
        if self.count == 0:
            return math.nan
        if self._special != 0.0:  # NaN != 0 is true, too
            return self._special
        return self._fixed / (self.count << _FRACTION_BITS)

    def __repr__(self) -> str:
        return f"Mean({self.value!r} over {self.count})"


class Metrics:
    """Named `Mean`s that merge name by name."""

    __slots__ = ("means",)

    def __init__(self) -> None:
        self.means: dict[str, Mean] = {}

    def add(self, name: str, value: float, count: int = 1) -> None:
        """Adds a sum `value` over `count` items under `name`."""
        self._mean(name).add(value, count)

    def add_many(
        self, name: str, values: np.ndarray | Iterable[float], mask: np.ndarray | None = None
    ) -> None:
        """Adds each element of `values` (where `mask` is true) under `name`."""
        self._mean(name).add_many(values, mask)

    def merge(self, other: Metrics) -> None:
        for name, mean in other.means.items():
            self._mean(name).merge(mean)

    def values(self) -> dict[str, float]:
        """The means by name, sorted by name."""
        return {name: self.means[name].value for name in sorted(self.means)}

    def _mean(self, name: str) -> Mean:
        if name not in self.means:
            self.means[name] = Mean()
        return self.means[name]


class EpisodeWindow:
    """Return and length of the last `size` episodes (raw rewards, whole games)."""

    __slots__ = ("_length", "_return", "size")

    def __init__(self, size: int = 100) -> None:
        if size < 1:
            raise ValueError(f"size must be at least 1 episode, got {size}")
        self.size = size
        self._return: deque[float] = deque(maxlen=size)
        self._length: deque[int] = deque(maxlen=size)

    def __len__(self) -> int:
        return len(self._return)

    def add(self, episode_return: float, episode_length: int) -> None:
        """Adds one ended episode; add them in group order, never in order of arrival."""
        self._return.append(float(episode_return))
        self._length.append(int(episode_length))

    def extend(self, returns: Iterable[float], lengths: Iterable[int]) -> None:
        for episode_return, episode_length in zip(returns, lengths, strict=True):
            self.add(episode_return, episode_length)

    @property
    def return_mean(self) -> float | None:
        """None before the first episode."""
        return math.fsum(self._return) / len(self._return) if self._return else None

    @property
    def length_mean(self) -> float | None:
        """None before the first episode."""
        return sum(self._length) / len(self._length) if self._length else None

    def state(self) -> dict[str, Any]:
        """A state tree for the checkpoint; `from_state` gives the same window back."""
        return {
            "size": self.size,
            "episode_return": np.array(self._return, dtype=np.float64),
            "episode_length": np.array(self._length, dtype=np.int64),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> EpisodeWindow:
        window = cls(int(state["size"]))
        window.extend(state["episode_return"].tolist(), state["episode_length"].tolist())
        return window
