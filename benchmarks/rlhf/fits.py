"""How reward goes with distance: the forms of Gao et al. 2022 ("Scaling laws for reward model overoptimization").

    d = sqrt(KL(pi || pi_ref))      R_BoN(d) = d (a - b d)      R_RL(d) = d (a - b log d)      R(0) = 0

(arXiv 2210.10760, eqs. 1 and 2.) Both are linear in a and b, so least squares has one solution. The gold's curve has its
top at d = a / (2 b) and d = exp(a / b - 1): the KL to stop at, if b is positive.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Form = Literal["best of n", "rl"]


@dataclass(frozen=True)
class Fit:
    """a and b of a form, the share of the variance around 0 that it explains, and the KL at its top; None: it has none."""

    form: Form
    a: float
    b: float
    r_squared: float
    kl_at_top: float | None

    def at(self, kl: float) -> float:
        """R at this KL."""
        d = math.sqrt(kl)
        return d * (self.a - self.b * (d if self.form == "best of n" else math.log(d))) if d > 0 else 0.0


def fit(kl: Sequence[float], reward: Sequence[float], form: Form) -> Fit:
    """Least squares over points with a positive KL. ValueError where there are fewer than two of them."""
    points = np.array([(k, r) for k, r in zip(kl, reward, strict=True) if k > 0], np.float64).reshape(-1, 2)
    if len(points) < 2:
        raise ValueError(f"a fit of two numbers needs two points with a positive KL, got {len(points)}")
    d, r = np.sqrt(points[:, 0]), points[:, 1]
    bend = d if form == "best of n" else np.log(d)
    (a, b), *_ = np.linalg.lstsq(np.stack([d, -d * bend], axis=1), r, rcond=None)
    left = r - d * (a - b * bend)
    total = float((r**2).sum())
    top = None
    if b > 0 and a > 0:
        # far beyond what was measured exp would not even be a number
        top = (a / (2 * b)) ** 2 if form == "best of n" else math.exp(min(2 * (a / b - 1), 50.0))
    return Fit(form, float(a), float(b), 1.0 - float((left**2).sum()) / total if total else 1.0, top)
