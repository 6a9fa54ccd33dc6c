"""Credit: from rewards to the weight of each log-prob and the critic's target, as a recipe asks for it.

return          the return to go, less V(s) where there is a baseline
gae             GAE(lambda)
vtrace          V-trace, for an older policy's data
batch           a response's return less the batch's mean                      one number for all its actions
others          ... less the mean of the prompt's other responses               "
group           ... less its group's mean, over the group's deviation           "
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from distrl.maths.advantage import discounted_sum, gae, group_relative
from distrl.maths.vtrace import vtrace
from distrl.recipes import Recipe
from distrl.trajectory import Trajectory

Floats = NDArray[np.float32]


def give_credit(
    recipe: Recipe, trajectory: Trajectory, reward: Floats, log_prob: Floats | None = None
) -> tuple[Floats, Floats]:
    """The weight of each log-prob and the critic's target, [T, N], for `reward` [T, N].

    V-trace compares `log_prob`, of the policy as it stands, with the trajectory's. The clipped loss has the
    ratio to the policy that collected in itself, and its clip then also bounds how far the two may part.
    """
    if recipe.credit == "return":
        target = discounted_sum(reward, trajectory.done, recipe.gamma)
        return (target - trajectory.value if recipe.baseline else target), target
    columns = reward, trajectory.value, trajectory.next_value, trajectory.terminated, trajectory.done
    if recipe.credit == "vtrace":
        target, advantage = vtrace(
            *columns,
            trajectory.log_prob,
            trajectory.log_prob if log_prob is None else log_prob,
            recipe.gamma,
            recipe.lam,
            weighted=recipe.clip is None,
        )
        return advantage, target
    if recipe.credit == "gae":
        advantage = gae(*columns, recipe.gamma, recipe.lam)
        return advantage, advantage + trajectory.value
    return _relative(recipe, trajectory, reward)


def _relative(recipe: Recipe, trajectory: Trajectory, reward: Floats) -> tuple[Floats, Floats]:
    """What a response got beyond others, for each of its actions. Responses that were not scored count in no mean."""
    return_N = np.where(trajectory.valid, reward, 0).sum(axis=0, dtype=np.float64)
    scored_N: NDArray[np.bool_] = np.asarray(trajectory.valid.any(axis=0))
    size = len(return_N) if recipe.credit == "batch" else int(getattr(recipe, "group_size"))  # noqa: B009
    advantage_N = np.zeros(len(return_N))
    for first in range(0, len(return_N), size):
        group = first + np.flatnonzero(scored_N[first : first + size])
        if len(group) > 1:  # alone it says nothing about itself
            advantage_N[group] = group_relative(
                return_N[group],
                len(group),
                baseline="others" if recipe.credit == "others" else "mean",
                scale=recipe.credit == "group",
            )
    advantage = np.where(trajectory.valid, advantage_N, 0).astype(np.float32)
    return advantage, np.where(trajectory.valid, return_N, 0).astype(np.float32)


def whitened(advantage: Floats, valid: NDArray[np.bool_], epsilon: float = 1e-8) -> Floats:
    """Mean 0 and deviation 1 over all valid rows of a batch, in float64; 0 in the others.

    Once, before minibatches, micro-batches or learners split it: they cannot change it. A batch of one episode (column)
    stays as it is: its mean would be that episode's own merit (`distrl.maths.losses.normalise_advantage`).
    """
    if np.count_nonzero(valid.any(axis=0)) == 1:
        return np.where(valid, advantage, 0).astype(advantage.dtype)
    own = advantage[valid].astype(np.float64)
    if not len(own):
        return np.zeros_like(advantage)
    scaled = np.zeros_like(advantage)
    scaled[valid] = ((own - own.mean()) / (own.std() + epsilon)).astype(advantage.dtype)
    return scaled


def importance_weighted(advantage: Floats, trajectory: Trajectory, cap: float) -> Floats:
    """The advantage times min(pi(a|s) / pi_sampled(a|s), cap), token by token: another policy than pi sampled.

    pi is the policy before this update (`log_prob`); the clipped ratio starts from it. Cut from above alone: a token
    that pi finds far more likely than who sampled it must not weigh without bound (Yao et al. 2025, truncated
    importance sampling; Espeholt et al. 2018, arXiv 1802.01561, for the cut).
    """
    log_weight = np.where(trajectory.valid, trajectory.log_prob - trajectory.extra["behaviour_log_prob"], 0)
    weight = np.minimum(np.exp(log_weight.astype(np.float64)), cap)
    return (advantage * weight).astype(advantage.dtype)
