"""The losses of the ladder. Each returns `(loss, metrics)`: a scalar to be minimised and detached scalars.

Shape suffix: B rows, in any shape; all tensors of one call have the same one.

Every mean is a sum over the valid rows divided by `count`, the number of valid rows in the whole
minibatch (by default those of this call). Losses, gradients and metrics of its micro-batches therefore
*add up* to the minibatch's, however it is split. A row whose mask is false is selected away before any
arithmetic, so NaN in it reaches neither the loss nor a gradient. `mask=None` means that all rows are valid.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Metrics = dict[str, Tensor]


def policy_gradient(
    log_prob: Tensor, weight: Tensor, mask: Tensor | None = None, count: Tensor | float | None = None
) -> tuple[Tensor, Metrics]:
    """Minus the mean of log pi(a|s) * weight (Williams 1992; Sutton and Barto 2018, eq. 13.8 and 13.11).

    Its gradient is minus the policy-gradient estimate: weight_B is the return to go (REINFORCE), that minus
    V(s) (with a baseline) or the advantage (actor-critic), and is a constant to the gradient.
    """
    log_prob_B, weight_B = _valid(mask, log_prob, weight.detach())
    loss = -_mean(log_prob_B * weight_B, mask, count)
    return loss, {"policy_loss": loss.detach()}


def surrogate_terms(
    log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, clip: float | Tensor
) -> dict[str, Tensor]:
    """PPO's clipped objective taken apart, row by row (Schulman et al. 2017, arXiv 1707.06347, eq. 7).

    ratio         r = pi(a|s) / pi_old(a|s)
    unclipped     r A
    clipped       clip(r, 1 - clip, 1 + clip) A
    objective     the smaller of the two, which is maximised
    used_clipped  bool: the clipped one is strictly smaller, so the row has no gradient
    """
    if not isinstance(clip, Tensor) and not clip > 0:  # a tensor may lie on a GPU: to look at it is to wait
        raise ValueError(f"clip must be positive, got {clip}")
    ratio_B = torch.exp(log_prob - old_log_prob)
    unclipped_B = ratio_B * advantage
    bounds: Any = (1.0 - clip, 1.0 + clip)  # two numbers or two tensors
    clipped_B = ratio_B.clamp(*bounds) * advantage
    return {
        "ratio": ratio_B,
        "unclipped": unclipped_B,
        "clipped": clipped_B,
        "objective": torch.minimum(unclipped_B, clipped_B),
        "used_clipped": clipped_B < unclipped_B,
    }


def clipped_surrogate(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantage: Tensor,
    clip: float | Tensor,
    mask: Tensor | None = None,
    count: Tensor | float | None = None,
) -> tuple[Tensor, Metrics]:
    """Minus PPO's clipped objective (Schulman et al. 2017, arXiv 1707.06347, eq. 7), elementwise as `surrogate_terms`.

    At ratio 1 its gradient is that of `policy_gradient`. Only log_prob carries a gradient.

    Metrics: policy_loss; clip_fraction, the share of ratios outside [1 - clip, 1 + clip]; approx_kl, the
    unbiased and non-negative estimate mean((r - 1) - log r) of KL(old || new) (Schulman 2020, "Approximating
    KL divergence", k3); ratio, its mean.
    """
    log_prob_B, old_B, advantage_B = _valid(mask, log_prob, old_log_prob.detach(), advantage.detach())
    terms = surrogate_terms(log_prob_B, old_B, advantage_B, clip)
    loss = -_mean(terms["objective"], mask, count)
    with torch.no_grad():
        ratio_B = terms["ratio"].detach()
        outside_B = ((ratio_B - 1.0).abs() > clip).to(ratio_B.dtype)
        metrics = {
            "policy_loss": loss.detach(),
            "clip_fraction": _mean(outside_B, mask, count),
            "approx_kl": _mean((ratio_B - 1.0) - (log_prob_B.detach() - old_B), mask, count),
            "ratio": _mean(ratio_B, mask, count),
        }
    return loss, metrics


def value_loss(
    value: Tensor,
    target: Tensor,
    old_value: Tensor | None = None,
    clip_value: float | None = None,
    mask: Tensor | None = None,
    count: Tensor | float | None = None,
) -> tuple[Tensor, Metrics]:
    """Half the mean squared error of the critic; with clip_value, the larger of clipped and not, row by row.

        v_clip = v_old + clip(v - v_old, -clip_value, clip_value)
        loss   = mean of max((v - target)^2, (v_clip - target)^2) / 2

    The clipped form is that of OpenAI's baselines `ppo2`. Metrics: value_loss, value_mean. Raises ValueError
    where clip_value is not positive or comes without old_value.
    """
    value_B, target_B = _valid(mask, value, target.detach())
    error_B = torch.square(value_B - target_B)
    if clip_value is not None:
        if old_value is None or not clip_value > 0:
            raise ValueError(
                f"value clipping needs old_value and a positive clip_value, got clip_value {clip_value}"
                + (" and no old_value" if old_value is None else "")
            )
        _, old_B = _valid(mask, value, old_value.detach())
        clipped_B = old_B + (value_B - old_B).clamp(-clip_value, clip_value)
        error_B = torch.maximum(error_B, torch.square(clipped_B - target_B))
    loss = 0.5 * _mean(error_B, mask, count)
    return loss, {"value_loss": loss.detach(), "value_mean": _mean(value_B.detach(), mask, count)}


def entropy_bonus(
    entropy: Tensor, mask: Tensor | None = None, count: Tensor | float | None = None
) -> tuple[Tensor, Metrics]:
    """*Minus* the mean entropy of the policy, so that adding coefficient * loss rewards exploration.

    Metrics: entropy, the mean itself (positive sign).
    """
    (entropy_B,) = _valid(mask, entropy)
    mean = _mean(entropy_B, mask, count)
    return -mean, {"entropy": mean.detach()}


def kl_penalty(
    log_prob: Tensor,
    reference_log_prob: Tensor,
    estimator: str,
    mask: Tensor | None = None,
    count: Tensor | float | None = None,
) -> tuple[Tensor, Metrics]:
    """The mean of an estimate of KL(pi || pi_ref) per token, as a loss; only log_prob carries a gradient.

    With l = log pi - log pi_ref: k1 = l, k2 = l^2 / 2, k3 = e^-l - 1 + l (Schulman 2020, "Approximating KL
    divergence"). They differ in value and in gradient (distrl/maths/kl.py): on tokens that pi drew, the mean
    gradient of k2 is the KL's own, that of k3 the reverse KL's, and that of k1 is zero.

    Metrics: reference_kl, the mean of the estimate. Raises ValueError for another estimator.
    """
    log_prob_B, reference_B = _valid(mask, log_prob, reference_log_prob.detach())
    log_ratio_B = log_prob_B - reference_B
    if estimator == "k1":
        estimate_B = log_ratio_B
    elif estimator == "k2":
        estimate_B = 0.5 * torch.square(log_ratio_B)
    elif estimator == "k3":
        estimate_B = torch.expm1(-log_ratio_B) + log_ratio_B
    else:
        raise ValueError(f"estimator must be k1, k2 or k3, got {estimator!r}")
    loss = _mean(estimate_B, mask, count)
    return loss, {"reference_kl": loss.detach()}


def normalise_advantage(
    advantage: Tensor,
    mask: Tensor | None = None,
    epsilon: float = 1e-8,
    episode: Tensor | None = None,
    alone: Tensor | None = None,
) -> Tensor:
    """(A - mean) / (std + epsilon) over the valid rows; zero in the others. Shape and type are kept.

    Mean and deviation are summed in float64; std is the population's (divided by the number of rows, not by one
    less), so a single row gives zero instead of NaN. Normalise the whole minibatch before it is split.

    Where `episode` (an integer for each row) is given and all valid rows are of one episode, they stay as they are, or
    become `alone` (by the moments of a whole batch, where they are a part of one): the
    mean over one episode is that episode's own merit, and what is left says the wrong thing of it. A reward that comes
    at the end is discounted towards the start, so early actions of a good episode would come out below its mean.
    """
    (advantage_B,) = _valid(mask, advantage.detach().double())
    centred_B = advantage_B - _mean(advantage_B, mask, None)
    if mask is not None:
        (centred_B,) = _valid(mask, centred_B)
    std = _mean(torch.square(centred_B), mask, None).sqrt()
    normalised_B = (centred_B / (std + epsilon)).to(advantage.dtype)
    if episode is None or not len(episode):
        return normalised_B
    (alone_B,) = _valid(mask, (advantage if alone is None else alone).detach())
    return torch.where(_is_one_episode(episode, mask), alone_B, normalised_B)


def _is_one_episode(episode: Tensor, mask: Tensor | None) -> Tensor:
    """Whether the valid rows are of one episode, or none: asked of the tensors, so that no host waits for it."""
    low, high = episode, episode
    if mask is not None:
        least, most = torch.iinfo(episode.dtype).min, torch.iinfo(episode.dtype).max
        low, high = torch.where(mask.bool(), episode, most), torch.where(mask.bool(), episode, least)
    return low.amin() >= high.amax()


def _valid(mask: Tensor | None, *tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors with zero in rows that are not valid: selected, since 0 * NaN is NaN, also in a gradient."""
    shape = tensors[0].shape
    if any(tensor.shape != shape for tensor in tensors) or (mask is not None and mask.shape != shape):
        # Broadcasting [B] against [B, 1] gives a wrong loss without a word.
        shapes = [tuple(tensor.shape) for tensor in tensors]
        raise ValueError(
            f"tensors and mask of one loss must have one shape, got {shapes}"
            + ("" if mask is None else f" and mask {tuple(mask.shape)}")
        )
    if mask is None:
        return tensors
    keep = mask.bool()
    return tuple(torch.where(keep, tensor, 0.0) for tensor in tensors)


def _mean(x_B: Tensor, mask: Tensor | None, count: Tensor | float | None) -> Tensor:
    """The sum over valid rows divided by count. No valid row at all gives zero, not NaN."""
    if mask is None:
        return x_B.mean() if count is None else x_B.sum() / count
    keep = mask.bool()
    if count is None:
        count = keep.sum().clamp(min=1)
    return torch.where(keep, x_B, 0.0).sum() / count
