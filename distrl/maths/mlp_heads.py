"""Distributions over actions, row by row in nopython code: the twins of `distrl.policies.distributions`.

A row's outputs are (array, offset). exp and log are written out in float32 arithmetic, so that no row's bits
depend on whether a compiler made vectors of a loop, nor on a system's mathematical library.
"""

from __future__ import annotations

import math

import numpy as np

from distrl.nopython import kernel

CATEGORICAL, GAUSSIAN = 0, 1

_F = np.float32
_LOWEST_LOGIT = _F(np.finfo(np.float32).min / 2)  # of a forbidden action: finite, so that 0 * log 0 stays 0
_HALF_LOG_2PI = _F(0.5 * math.log(2 * math.pi))
_ZERO, _HALF, _ONE = _F(0), _F(0.5), _F(1)
_LOG2_E = _F(1.4426950408889634)
_LN2_HIGH, _LN2_LOW = _F(0.693359375), _F(-2.12194440e-4)
_EXP_HIGHEST, _EXP_LOWEST = _F(88.7228), _F(-87.33654)
_INFINITY = _F(np.inf)
# Cephes expf.c and logf.c (Moshier 1992)
_E0, _E1, _E2 = _F(1.9875691500e-4), _F(1.3981999507e-3), _F(8.3334519073e-3)
_E3, _E4, _E5 = _F(4.1665795894e-2), _F(1.6666665459e-1), _F(5.0000001201e-1)
_L0, _L1, _L2 = _F(7.0376836292e-2), _F(-1.1514610310e-1), _F(1.1676998740e-1)
_L3, _L4, _L5 = _F(-1.2420140846e-1), _F(1.4249322787e-1), _F(-1.6668057665e-1)
_L6, _L7, _L8 = _F(2.0000714765e-1), _F(-2.4999993993e-1), _F(3.3333331174e-1)
_SQRT_HALF = _F(0.70710678118654752)


@kernel()
def exp32(x):  # type: ignore[no-untyped-def]
    """e^x of a float32 (Cephes' expf): 0 below -87.3, infinite above 88.7, NaN for NaN."""
    # without a branch, so that loops over it become vectors
    given = x
    x = min(max(given, _EXP_LOWEST), _EXP_HIGHEST)
    n = np.floor(x * _LOG2_E + _HALF)
    r = x - n * _LN2_HIGH - n * _LN2_LOW
    p = ((((_E0 * r + _E1) * r + _E2) * r + _E3) * r + _E4) * r + _E5
    p = p * r * r + r + _ONE
    # in two factors: 2^128 has no float32
    half = np.int32(n) >> np.int32(1)
    rest = np.int32(n) - half
    first = np.int32((half + np.int32(127)) << np.int32(23)).view(np.float32)
    second = np.int32((rest + np.int32(127)) << np.int32(23)).view(np.float32)
    result = p * first * second
    result = _INFINITY if given > _EXP_HIGHEST else result
    result = _ZERO if given < _EXP_LOWEST else result
    return result if given == given else given


@kernel()
def log32(x):  # type: ignore[no-untyped-def]
    """Natural logarithm of a normal positive float32 (Cephes' logf); what is not finite is given back."""
    if not x < _INFINITY:
        return x
    bits = np.float32(x).view(np.int32)
    n = _F((bits >> np.int32(23)) - np.int32(126))
    m = np.int32((bits & np.int32(0x007FFFFF)) | np.int32(0x3F000000)).view(np.float32)  # in [0.5, 1)
    if m < _SQRT_HALF:
        n -= _ONE
        m = m + m - _ONE
    else:
        m = m - _ONE
    square = m * m
    p = (((((((_L0 * m + _L1) * m + _L2) * m + _L3) * m + _L4) * m + _L5) * m + _L6) * m + _L7) * m + _L8
    y = p * m * square + n * _LN2_LOW - _HALF * square
    return m + y + n * _LN2_HIGH


@kernel()
def _allowed_logits(output, at, n, mask, mask_at, masked, logits):  # type: ignore[no-untyped-def]
    """logits[:n] with those of forbidden actions at a floor; returns the highest, NaN where any is."""
    highest = -_INFINITY
    for j in range(n):
        logit = output[at + j]
        if masked and not mask[mask_at + j]:
            logit = _LOWEST_LOGIT
        logits[j] = logit
        if logit > highest or logit != logit:
            highest = logit
    return highest


@kernel()
def categorical_log_probs(output, at, n, mask, mask_at, masked, log_probs):  # type: ignore[no-untyped-def]
    """log_probs[:n] of the logits output[at : at + n]; returns the entropy.

    `mask` is a flat bool array, True where an action is allowed, its row at `mask_at`; read only if `masked`.
    """
    highest = _allowed_logits(output, at, n, mask, mask_at, masked, log_probs)
    total = _ZERO
    for j in range(n):
        total += exp32(log_probs[j] - highest)
    shift = highest + log32(total)
    entropy = _ZERO
    for j in range(n):
        log_prob = log_probs[j] - shift
        log_probs[j] = log_prob
        entropy -= exp32(log_prob) * log_prob
    return entropy


@kernel(error_model="numpy")
def categorical_terms(output, at, n, mask, mask_at, masked, log_probs, probabilities):  # type: ignore[no-untyped-def]
    """`categorical_log_probs`, the same bits, and the probabilities[:n], of which it wants fewer exponentials."""
    highest = _allowed_logits(output, at, n, mask, mask_at, masked, log_probs)
    total = _ZERO
    for j in range(n):
        probabilities[j] = exp32(log_probs[j] - highest)
        total += probabilities[j]
    shift = highest + log32(total)
    entropy = _ZERO
    for j in range(n):
        log_probs[j] -= shift
        probabilities[j] /= total
        entropy -= probabilities[j] * log_probs[j]
    return entropy


@kernel()
def categorical_choose(output, at, n, noise, noise_at, mask, mask_at, masked):  # type: ignore[no-untyped-def]
    """The action of highest logit + Gumbel noise among the allowed ones, the first of equals. `mask` as above."""
    best, action = -_INFINITY, 0
    for j in range(n):
        score = output[at + j] + noise[noise_at + j]
        if (not masked or mask[mask_at + j]) and score > best:
            best, action = score, j
    return action


@kernel()
def gaussian_log_prob(output, at, n, action, action_at, log_std):  # type: ignore[no-untyped-def]
    """log-density of action[action_at : action_at + n] under means output[at : at + n], summed over dimensions."""
    total = _ZERO
    for j in range(n):
        standard = (action[action_at + j] - output[at + j]) * exp32(-log_std[j])
        total += -_HALF * standard * standard - log_std[j] - _HALF_LOG_2PI
    return total


@kernel()
def gaussian_log_prob_by(output, at, n, action, action_at, log_std, inverse):  # type: ignore[no-untyped-def]
    """`gaussian_log_prob`, the same bits, given what `inverse_deviation` makes of log_std."""
    total = _ZERO
    for j in range(n):
        standard = (action[action_at + j] - output[at + j]) * inverse[j]
        total += -_HALF * standard * standard - log_std[j] - _HALF_LOG_2PI
    return total


@kernel()
def inverse_deviation(log_std, n, inverse):  # type: ignore[no-untyped-def]
    """inverse[:n] = e^-log_std."""
    for j in range(n):
        inverse[j] = exp32(-log_std[j])


@kernel()
def gaussian_entropy(log_std, n):  # type: ignore[no-untyped-def]
    """Entropy, the same for every row."""
    total = _ZERO
    for j in range(n):
        total += log_std[j] + _HALF + _HALF_LOG_2PI
    return total


@kernel()
def gaussian_choose(output, at, n, noise, noise_at, log_std, action, action_at):  # type: ignore[no-untyped-def]
    """mean + e^log_std * standard normal noise, written to action[action_at : action_at + n]."""
    for j in range(n):
        action[action_at + j] = output[at + j] + exp32(log_std[j]) * noise[noise_at + j]
