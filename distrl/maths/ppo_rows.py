"""Losses of the ladder and their slopes at the network's outputs, a block of rows at a time in nopython code.

The twins of `distrl.maths.losses` with torch's own slopes where two branches of a minimum meet: half of each.
Sums of the metrics are kept in float64, in SUMS places:

    policy loss, clipped rows, k3's approximate KL, ratio, entropy, value loss
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from distrl.maths.mlp import padded
from distrl.maths.mlp_heads import (
    GAUSSIAN,
    categorical_terms,
    exp32,
    gaussian_entropy,
    gaussian_log_prob_by,
    inverse_deviation,
)
from distrl.nopython import kernel

SUMS = 6
POLICY_LOSS, CLIP_FRACTION, APPROX_KL, RATIO, ENTROPY, VALUE_LOSS = range(SUMS)

_ZERO, _HALF, _ONE = np.float32(0), np.float32(0.5), np.float32(1)


class Batch(NamedTuple):
    """A fragment's columns, flat, C-contiguous and writable; B rows. An array that is not read is empty.

    The action is an index for CATEGORICAL, a vector for GAUSSIAN; `mask` is read if `masked`.
    """

    features: NDArray[np.float32]  # [B * inputs]
    action: NDArray[np.int64]  # [B]
    action_vector: NDArray[np.float32]  # [B * num_outputs]
    mask: NDArray[np.bool_]  # [B * num_outputs]
    masked: bool
    log_prob: NDArray[np.float32]  # [B], of the behaviour policy
    value: NDArray[np.float32]  # [B], as it was when collected
    advantage: NDArray[np.float32]  # [B]
    target: NDArray[np.float32]  # [B]
    episode: NDArray[np.int32]  # [B], a number for each piece of an episode


class Losses(NamedTuple):
    """What `Recipe` says of the loss; 0 for a clip that is not wanted."""

    clip: float
    clip_value: float
    value_coef: float
    entropy_coef: float
    normalize_advantage: bool
    trains_value: bool


@kernel(error_model="numpy")
def advantage_moments(advantage, episode, rows):  # type: ignore[no-untyped-def]
    """Mean and deviation (the population's, with 1e-8) of the minibatch's advantages, in float64.

    0 and 1 where all rows are of one episode: those are not normalised (`distrl.maths.losses.normalise_advantage`).
    """
    alone = True
    for row in rows:
        alone = alone and episode[row] == episode[rows[0]]
    if alone:
        return 0.0, 1.0
    total = 0.0
    for row in rows:
        total += np.float64(advantage[row])
    mean = total / len(rows)
    squares = 0.0
    for row in rows:
        squares += (np.float64(advantage[row]) - mean) ** 2
    return mean, np.sqrt(squares / len(rows)) + 1e-8


@kernel(error_model="numpy")
def policy_rows(batch, losses, kind, rows, count, mean, deviation, output, at, n, log_std, delta, log_std_slope, scratch, sums):  # type: ignore[no-untyped-def]  # fmt: skip
    """Adds the rows' policy and entropy terms to `sums`; writes dL/d(output) into `delta`, pads zero.

    `rows` are indices into the batch, `count` the rows of the whole minibatch; the outputs begin at output[at].
    Of GAUSSIAN, dL/d(log_std) is added to `log_std_slope` [n]. `scratch` holds 2 n elements.
    """
    width = padded(n)
    share = _ONE / np.float32(count)
    bonus = np.float32(losses.entropy_coef) * share
    clip = np.float32(losses.clip)
    low, high = np.float32(1.0 - losses.clip), np.float32(1.0 + losses.clip)
    log_probs, probabilities = scratch[:n], scratch[n : 2 * n]
    inverse, entropy = scratch[:n], _ZERO
    if kind == GAUSSIAN:
        inverse_deviation(log_std, n, inverse)
        entropy = gaussian_entropy(log_std, n)
    for r in range(len(rows)):
        row, here = rows[r], at + r * width
        if kind == GAUSSIAN:
            log_prob = gaussian_log_prob_by(output, here, n, batch.action_vector, row * n, log_std, inverse)
        else:
            entropy = categorical_terms(
                output, here, n, batch.mask, row * n, batch.masked, log_probs, probabilities
            )
            log_prob = log_probs[batch.action[row]]
        advantage = batch.advantage[row]
        if losses.normalize_advantage:
            advantage = np.float32((np.float64(advantage) - mean) / deviation)
        if losses.clip > 0:
            change = log_prob - batch.log_prob[row]
            ratio = exp32(change)
            unclipped = ratio * advantage
            clipped = min(max(ratio, low), high) * advantage if ratio == ratio else ratio
            # NaN compares as false: it must reach the gradient, so that the minibatch is skipped
            slope = _ZERO if clipped < unclipped else unclipped
            sums[POLICY_LOSS] -= clipped if clipped < unclipped else unclipped
            sums[CLIP_FRACTION] += abs(ratio - _ONE) > clip
            sums[APPROX_KL] += np.float64((ratio - _ONE) - change)
            sums[RATIO] += np.float64(ratio)
        else:
            slope = advantage
            sums[POLICY_LOSS] -= np.float64(log_prob * advantage)
        sums[ENTROPY] += np.float64(entropy)
        slope = -slope * share
        out = r * width
        if kind == GAUSSIAN:
            for j in range(n):
                standard = (batch.action_vector[row * n + j] - output[here + j]) * inverse[j]
                delta[out + j] = slope * standard * inverse[j]
                log_std_slope[j] += slope * (standard * standard - _ONE) - bonus
        else:
            chosen = batch.action[row]
            for j in range(n):
                own = _ONE if j == chosen else _ZERO
                term = slope * (own - probabilities[j])
                term += bonus * probabilities[j] * (log_probs[j] + entropy)
                forbidden = batch.masked and not batch.mask[row * n + j]
                delta[out + j] = _ZERO if forbidden else term
        for j in range(n, width):
            delta[out + j] = _ZERO


@kernel(error_model="numpy")
def value_rows(batch, losses, rows, count, output, at, delta, sums):  # type: ignore[no-untyped-def]
    """Adds the rows' value loss to `sums`; writes dL/d(output) into `delta`, pads zero."""
    width = padded(1)
    share = np.float32(losses.value_coef) / np.float32(count)
    clip = np.float32(losses.clip_value)
    for r in range(len(rows)):
        row = rows[r]
        value, target = output[at + r * width], batch.target[row]
        error = value - target
        square, slope = error * error, error
        if losses.clip_value > 0:
            old = batch.value[row]
            move = value - old
            inside = -clip <= move <= clip
            error_clipped = old + (min(max(move, -clip), clip) if move == move else move) - target
            square_clipped = error_clipped * error_clipped
            slope_clipped = error_clipped if inside else _ZERO
            if square_clipped > square:
                square, slope = square_clipped, slope_clipped
            elif square_clipped == square:
                slope = _HALF * (slope + slope_clipped)
        sums[VALUE_LOSS] += np.float64(_HALF * square)
        delta[r * width] = slope * share
        for j in range(1, width):
            delta[r * width + j] = _ZERO


def metric_names(losses: Losses) -> dict[str, int]:
    """Name and place among the sums of each metric, in the order in which the torch path gives them."""
    names = {"policy_loss": POLICY_LOSS}
    if losses.clip > 0:
        names |= {"clip_fraction": CLIP_FRACTION, "approx_kl": APPROX_KL, "ratio": RATIO}
    names["entropy"] = ENTROPY
    return names | ({"value_loss": VALUE_LOSS} if losses.trains_value else {})


def no_rows(dtype: Any) -> NDArray[Any]:
    """An array that stands for one that is not read."""
    return np.zeros(0, dtype)
