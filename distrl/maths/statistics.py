"""Moments that merge exactly, and the summary numbers of a batch. Everything is summed in float64.

Shape suffixes: B rows of a batch, ... the shape of one row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float64 = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, mean and sum of squared deviations of the rows seen so far, per element of a row.

    Pooling two `Moments` gives those of the concatenated rows (Chan, Golub and LeVeque 1979, "Updating
    formulae and a pairwise algorithm for computing sample variances", eq. 2.1): exact but for rounding, for
    any split. Rounding depends on the order of merging, so merge in a fixed order (of env groups).

    Attributes:
        count: number of rows.
        mean: mean over the rows, float64 [...]; zeros while there are none.
        m2: sum over the rows of (x - mean)**2, float64 [...].
    """

    count: float
    mean: Float64
    m2: Float64

    @classmethod
    def zeros(cls, shape: tuple[int, ...] = ()) -> Moments:
        """The moments of no rows, where one row has this shape."""
        return cls(0.0, np.zeros(shape), np.zeros(shape))

    @classmethod
    def of(cls, batch: ArrayLike) -> Moments:
        """The moments of the rows of batch [B, ...]; B may be 0. Select valid rows first: `of(x[valid])`."""
        batch_B = np.array(batch, dtype=np.float64, order="C")  # a copy in one layout: one order of summation
        if batch_B.ndim == 0:
            raise ValueError("Moments.of wants rows along the first axis, got a scalar; pass [x] for one row")
        if len(batch_B) == 0:
            return cls.zeros(batch_B.shape[1:])
        mean = np.asarray(batch_B.mean(axis=0))
        batch_B -= mean
        return cls(float(len(batch_B)), mean, np.asarray(np.square(batch_B, out=batch_B).sum(axis=0)))

    def merge(self, other: Moments) -> Moments:
        """The moments of this one's rows followed by other's. ValueError where the rows' shapes differ."""
        if self.mean.shape != other.mean.shape:
            raise ValueError(
                f"only moments of rows of one shape merge, got {self.mean.shape} and {other.mean.shape}"
            )
        if other.count == 0:
            return self
        if self.count == 0:
            return other
        count = self.count + other.count
        shift = other.mean - self.mean
        mean = self.mean + shift * (other.count / count)
        m2 = self.m2 + other.m2 + np.square(shift) * (self.count * other.count / count)
        return Moments(count, np.asarray(mean), np.asarray(m2))

    @property
    def variance(self) -> Float64:
        """Population variance [...]; one where there are no rows, so that normalising by them changes nothing."""
        return np.ones_like(self.m2) if self.count == 0 else np.asarray(self.m2 / self.count)

    @property
    def std(self) -> Float64:
        """Population standard deviation [...]; one where there are no rows."""
        return np.asarray(np.sqrt(self.variance))


def explained_variance(prediction: ArrayLike, target: ArrayLike, mask: ArrayLike | None = None) -> float:
    """1 - Var[target - prediction] / Var[target] over the valid elements, in float64.

    One is a perfect critic, zero no better than a constant, negative worse. NaN where it is undefined:
    fewer than two valid elements, or a constant target. Shapes are equal; ValueError where they are not.
    """
    prediction, target = np.asarray(prediction), np.asarray(target)
    if prediction.shape != target.shape:
        raise ValueError(
            f"prediction and target must have one shape, got {prediction.shape} and {target.shape}"
        )
    prediction_B, target_B = _valid("prediction", prediction, mask), _valid("target", target, mask)
    if target_B.size < 2:
        return math.nan
    spread = float(target_B.var())
    return math.nan if spread == 0 else 1.0 - float((target_B - prediction_B).var()) / spread


def _valid(name: str, x: NDArray, mask: ArrayLike | None) -> Float64:
    """The valid elements of x, flat, as float64."""
    if mask is None:
        return x.astype(np.float64).ravel()
    mask = np.asarray(mask).astype(bool)
    if mask.shape != x.shape:
        raise ValueError(f"the mask must have the shape of {name}, {x.shape}, got {mask.shape}")
    return x[mask].astype(np.float64)
