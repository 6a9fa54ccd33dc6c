"""KL to a frozen reference: its estimators, the reward that it shapes, and the controllers of its weight.

All of it speaks of one log-ratio, l = log pi(a|s) - log pi_ref(a|s), of tokens that pi drew. T tokens, N responses.

    estimator   value           its mean under pi   the mean of its gradient, pi differentiated
    k1          l               KL(pi || pi_ref)    0: a loss of k1 pulls nowhere
    k2          l^2 / 2         biased, small bias  that of KL(pi || pi_ref)
    k3          e^-l - 1 + l    KL(pi || pi_ref)    that of KL(pi_ref || pi), on the states that pi visits

(Schulman 2020, "Approximating KL divergence"; for the gradients, tests/maths/test_kl.py against the whole vocabulary.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Estimator = Literal["k1", "k2", "k3"]
FloatArray = NDArray[np.floating[Any]]


def kl_shaped_reward(
    score: FloatArray,
    log_ratio: FloatArray,
    valid: NDArray[np.bool_],
    last: NDArray[np.bool_],
    beta: float,
) -> FloatArray:
    """The reward of each action: the score where the response ends, minus beta times the KL's k1 everywhere.

        r_t = score [t is the last action] - beta (log pi(a_t|s_t) - log pi_ref(a_t|s_t))

    (Ziegler et al. 2019, arXiv 1909.08593, eq. 2, per token.) The rewards of a response sum to
    score - beta * (sum of l), an estimate of what is maximised.

    Args:
        score: [N], of each response; read where `last` is true alone.
        log_ratio: l, [T, N]; read in valid rows alone.
        valid: [T, N], bool: the row is an action of the policy.
        last: [T, N], bool: the response's last action, where it was scored; at most one a column, and valid.
        beta: the weight of the KL, 0 or more; 0 leaves the score alone, whatever the log-ratio is.

    Returns:
        The rewards, [T, N], of log_ratio's type; 0 where not valid.

    Raises:
        ValueError: a shape or beta breaks these rules.
    """
    if valid.shape != log_ratio.shape or last.shape != log_ratio.shape or score.shape != log_ratio.shape[1:]:
        raise ValueError(
            "log_ratio, valid and last must be [T, N] and score [N], got "
            f"{log_ratio.shape}, {valid.shape}, {last.shape} and {score.shape}"
        )
    if not (math.isfinite(beta) and beta >= 0):
        raise ValueError(f"beta must be 0 or more, got {beta}")
    if (last & ~valid).any() or (last.sum(axis=0) > 1).any():
        raise ValueError("a response has at most one last action, and it must be valid")
    reward_TN = np.zeros_like(log_ratio)
    if beta > 0:
        reward_TN[valid] = -log_ratio.dtype.type(beta) * log_ratio[valid]
    reward_TN += np.where(last, score[None].astype(log_ratio.dtype), log_ratio.dtype.type(0))
    return reward_TN


def kl_per_response(log_ratio: FloatArray, valid: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The sum of l over a response's actions, [N]: the k1 estimate of its KL, in nats a *response*."""
    return np.where(valid, log_ratio, 0).sum(axis=0, dtype=np.float64)


@dataclass(frozen=True)
class FixedBeta:
    """A weight that stays."""

    beta: float

    def after(self, kl: float, num_responses: int) -> FixedBeta:
        """Itself."""
        return self


@dataclass(frozen=True)
class AdaptiveBeta:
    """A weight that holds the KL of a response near a target (Ziegler et al. 2019, arXiv 1909.08593, sec. 2.2).

        e    = clip((KL - target) / target, -0.2, 0.2)
        beta = beta (1 + e * num_responses / horizon)

    The KL is the mean over responses of the *sum* over their tokens, in nats: that is the unit of the paper's
    target 6 and horizon 10,000. A mean over tokens is some 50 times smaller, and would never reach its target.
    """

    beta: float
    target: float = 6.0
    horizon: float = 10_000.0

    def after(self, kl: float, num_responses: int) -> AdaptiveBeta:
        """The controller after a batch of so many responses with this mean KL; unchanged where that is not finite.

        Raises ValueError where a batch is as large as 5 horizons: one far below the target would end the KL's weight.
        """
        if not 0.2 * num_responses < self.horizon:
            raise ValueError(
                f"the horizon must be above a fifth of the responses of a batch, {num_responses / 5:g}, got "
                f"{self.horizon:g} (--kl-horizon)"
            )
        if not math.isfinite(kl):
            return self
        error = min(max((kl - self.target) / self.target, -0.2), 0.2)
        return replace(self, beta=self.beta * (1.0 + error * num_responses / self.horizon))


BetaController = FixedBeta | AdaptiveBeta
