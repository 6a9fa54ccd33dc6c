"""Slow twins of the fast code, in float64, written from the equations. They import nothing of distrl.

No recursion is shared with the code under test: sums are written out term by term, element by element.
Shape suffixes: T time, N environments, B rows, A actions.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]


def td_errors(reward: Array, value: Array, next_value: Array, terminated: Flags, gamma: float) -> Array:
    """delta_t = r_t + gamma V(s'_t) - V(s_t), and without V(s'_t) where the episode terminated, [T, N]."""
    delta_TN = np.zeros(reward.shape)
    for t, n in np.ndindex(reward.shape):
        delta_TN[t, n] = float(reward[t, n]) - float(value[t, n])
        if not terminated[t, n]:
            delta_TN[t, n] += gamma * float(next_value[t, n])
    return delta_TN


def gae(
    reward: Array, value: Array, next_value: Array, terminated: Flags, done: Flags, gamma: float, lam: float
) -> Array:
    """A_t = sum over k >= 0 of (gamma lam)^k delta_{t+k}, up to and with the first done row (arXiv 1506.02438, eq. 16)."""
    delta_TN = td_errors(reward, value, next_value, terminated, gamma)
    advantage_TN = np.zeros(reward.shape)
    for t, n in np.ndindex(reward.shape):
        for k in range(t, len(reward)):
            advantage_TN[t, n] += (gamma * lam) ** (k - t) * delta_TN[k, n]
            if done[k, n]:
                break
    return advantage_TN


def vtrace(
    reward: Array,
    value: Array,
    next_value: Array,
    terminated: Flags,
    done: Flags,
    behaviour_log_prob: Array,
    log_prob: Array,
    gamma: float,
    lam: float,
    rho_bar: float,
    c_bar: float,
) -> tuple[Array, Array]:
    """v_s = V + sum over k >= 0 of gamma^k (c_s ... c_{s+k-1}) rho_{s+k} delta_{s+k} to the episode's end, and
    A_s = rho_s (r_s + gamma q_s - V(s_s)), q_s = lam v_{s+1} + (1 - lam) V(s_{s+1}) (arXiv 1802.01561, eq. 1, sec. 4.2)."""
    delta_TN = td_errors(reward, value, next_value, terminated, gamma)
    target_TN, advantage_TN = np.zeros(reward.shape), np.zeros(reward.shape)
    ratio_TN = np.exp(np.float64(log_prob) - np.float64(behaviour_log_prob))
    for t, n in np.ndindex(reward.shape):
        target_TN[t, n], traces = float(value[t, n]), 1.0
        for k in range(t, len(reward)):
            target_TN[t, n] += gamma ** (k - t) * traces * min(rho_bar, ratio_TN[k, n]) * delta_TN[k, n]
            traces *= lam * min(c_bar, ratio_TN[k, n])
            if done[k, n]:
                break
    for t, n in np.ndindex(reward.shape):
        estimate = float(reward[t, n])
        if done[t, n] or t == len(reward) - 1:
            estimate += 0.0 if terminated[t, n] else gamma * float(next_value[t, n])
        else:
            later = lam * target_TN[t + 1, n] + (1 - lam) * float(value[t + 1, n])
            estimate += gamma * later
        advantage_TN[t, n] = min(rho_bar, ratio_TN[t, n]) * (estimate - float(value[t, n]))
    return target_TN, advantage_TN


def returns(reward: Array, next_value: Array, terminated: Flags, done: Flags, gamma: float) -> Array:
    """G_t = sum of gamma^k r_{t+k} to the end of the episode or array, plus gamma^K V(s'_last) unless terminated."""
    return_TN = np.zeros(reward.shape)
    for t, n in np.ndindex(reward.shape):
        for k in range(t, len(reward)):
            return_TN[t, n] += gamma ** (k - t) * float(reward[k, n])
            if done[k, n] or k == len(reward) - 1:
                if not terminated[k, n]:
                    return_TN[t, n] += gamma ** (k - t + 1) * float(next_value[k, n])
                break
    return return_TN


def discounted_sum(reward: Array, done: Flags, gamma: float) -> Array:
    """G_t = sum of gamma^k r_{t+k} to the end of the episode or array."""
    everywhere = np.ones(reward.shape, bool)
    return returns(reward, np.zeros(reward.shape), everywhere, done, gamma)


def clipped_surrogate(
    log_prob: Array, old_log_prob: Array, advantage: Array, clip: float
) -> tuple[float, Array]:
    """-mean of min(r A, clip(r) A) and its gradient in log_prob, case by case (arXiv 1707.06347, eq. 7 and fig. 1)."""
    total, gradient_B = 0.0, np.zeros(len(log_prob))
    for b in range(len(log_prob)):
        ratio, a = math.exp(log_prob[b] - old_log_prob[b]), float(advantage[b])
        if a >= 0 and ratio > 1 + clip:
            total += (1 + clip) * a
        elif a < 0 and ratio < 1 - clip:
            total += (1 - clip) * a
        else:
            total += ratio * a
            gradient_B[b] = -ratio * a / len(log_prob)  # d r / d log_prob = r
    return -total / len(log_prob), gradient_B


def value_loss(value: Array, target: Array, old_value: Array | None, clip_value: float | None) -> float:
    """Half the mean of (v - target)^2, or of the larger of that and the clipped prediction's."""
    total = 0.0
    for b in range(len(value)):
        error = (value[b] - target[b]) ** 2
        if clip_value is not None and old_value is not None:
            low, high = old_value[b] - clip_value, old_value[b] + clip_value
            error = max(error, (min(max(value[b], low), high) - target[b]) ** 2)
        total += error
    return 0.5 * total / len(value)


def moments(rows: Array) -> tuple[Array, Array]:
    """Mean and population variance of rows [B, ...] by correctly rounded sums (math.fsum), two passes."""
    flat_BF = rows.reshape(len(rows), -1).astype(np.float64)
    mean_F = np.array([math.fsum(column) / len(rows) for column in flat_BF.T])
    variance_F = [
        math.fsum((x - m) ** 2 for x in column) / len(rows)
        for column, m in zip(flat_BF.T, mean_F, strict=True)
    ]
    return mean_F.reshape(rows.shape[1:]), np.array(variance_F).reshape(rows.shape[1:])


def explained_variance(prediction: Array, target: Array) -> float:
    """1 - Var[target - prediction] / Var[target]."""
    residual = [float(t) - float(p) for t, p in zip(target, prediction, strict=True)]
    return 1.0 - float(moments(np.array(residual))[1]) / float(moments(np.asarray(target))[1])


def categorical_log_prob(logits_BA: Array, action_B: NDArray[np.int64]) -> Array:
    """log softmax(logits)[action], per row, with the largest logit taken out first."""
    return np.array([_log_softmax(row)[a] for row, a in zip(logits_BA, action_B, strict=True)])


def categorical_entropy(logits_BA: Array) -> Array:
    """-sum p log p, per row; what has probability zero (a masked action, logit -inf) adds nothing."""
    return np.array([-sum(math.exp(p) * p for p in _log_softmax(row) if p > -math.inf) for row in logits_BA])


def _log_softmax(logits_A: Array) -> list[float]:
    top = max(float(x) for x in logits_A)
    log_total = math.log(math.fsum(math.exp(float(x) - top) for x in logits_A))
    return [float(x) - top - log_total for x in logits_A]


def bernoulli_log_prob(logits_BA: Array, action_BA: NDArray[np.int64]) -> Array:
    """Sum over the components of log sigmoid(+-logit) (MultiBinary)."""
    signs = np.where(action_BA == 1, 1.0, -1.0)
    return np.array(
        [
            -sum(_softplus(-s * x) for s, x in zip(*row, strict=True))
            for row in zip(signs, logits_BA, strict=True)
        ]
    )


def bernoulli_entropy(logits_BA: Array) -> Array:
    """Sum over the components of softplus(x) - x sigmoid(x)."""
    return np.array([sum(_softplus(x) - x / (1 + math.exp(-x)) for x in row) for row in logits_BA])


def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def gaussian_log_prob(mean_BA: Array, log_std_BA: Array, action_BA: Array) -> Array:
    """Sum over the components of -((a - mean)/std)^2 / 2 - log std - log(2 pi) / 2."""
    total_B = np.zeros(len(mean_BA))
    for b, a in np.ndindex(mean_BA.shape):
        z = (action_BA[b, a] - mean_BA[b, a]) / math.exp(log_std_BA[b, a])
        total_B[b] += -0.5 * z * z - log_std_BA[b, a] - 0.5 * math.log(2 * math.pi)
    return total_B


def gaussian_entropy(log_std_BA: Array) -> Array:
    """Sum over the components of log std + (1 + log(2 pi)) / 2."""
    return np.array([sum(s + 0.5 * (1 + math.log(2 * math.pi)) for s in row) for row in log_std_BA])


def dense(parameters: dict[str, NDArray[np.floating]], prefix: str, x: Array) -> Array:
    """The linear layers `prefix.<k>` in their order, tanh between them, of rows x [B, F]."""
    numbers = sorted(
        {int(name.removeprefix(prefix + ".").split(".")[0]) for name in parameters if name.startswith(prefix)}
    )
    for position, number in enumerate(numbers):
        weight = parameters[f"{prefix}.{number}.weight"].astype(np.float64)
        x = x @ weight.T + parameters[f"{prefix}.{number}.bias"].astype(np.float64)
        if position < len(numbers) - 1:
            x = np.tanh(x)
    return x


def lstm_step(
    parameters: dict[str, NDArray[np.floating]], prefix: str, x_F: Array, h_H: Array, c_H: Array
) -> tuple[Array, Array]:
    """One step of an LSTM cell (Hochreiter and Schmidhuber 1997, with a forget gate); gates in the order i, f, g, o."""
    named = {
        name: parameters[f"{prefix}.{name}_l0"].astype(np.float64)
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    }
    gates = named["weight_ih"] @ x_F + named["bias_ih"] + named["weight_hh"] @ h_H + named["bias_hh"]
    i, f, g, o = np.split(gates, 4)
    c_H = c_H / (1 + np.exp(-f)) + np.tanh(g) / (1 + np.exp(-i))
    return np.tanh(c_H) / (1 + np.exp(-o)), c_H


def scaled_rewards(reward: Array, done: Flags, valid: Flags, gamma: float) -> tuple[list[Array], list[float]]:
    """Rewards of fragments [K, T, N] divided by the deviation of all discounted returns so far (Engstrom et al. 2020).

    R_t sums gamma^k r_{t-k} back to the start of the episode, over fragments; each fragment's own returns count
    in the deviation that divides it. Gives the rewards, clipped to +-10, and the variances, per fragment.
    """
    fragments, steps, envs = reward.shape
    seen: list[float] = []
    scaled, variances = [], []
    for k in range(fragments):
        for t, n in np.ndindex(steps, envs):
            if not valid[k, t, n]:
                continue
            total, age = 0.0, 0
            for row in range(k * steps + t, -1, -1):
                at = (row // steps, row % steps, n)
                if row < k * steps + t and done[at]:
                    break
                if valid[at]:
                    total += gamma**age * float(reward[at])
                    age += 1
            seen.append(total)
        variances.append(float(moments(np.array(seen))[1]))
        scaled.append(np.clip(reward[k] / math.sqrt(variances[-1] + 1e-8), -10, 10))
    return scaled, variances


class Adam:
    """Kingma and Ba 2015, algorithm 1, on a list of arrays, after clipping the gradient's global norm."""

    def __init__(self, parameters: list[Array], eps: float) -> None:
        self.parameters = [parameter.astype(np.float64) for parameter in parameters]
        self.m = [np.zeros_like(parameter) for parameter in self.parameters]
        self.v = [np.zeros_like(parameter) for parameter in self.parameters]
        self.eps, self.t = eps, 0

    def step(self, gradients: list[Array], learning_rate: float, max_norm: float | None) -> None:
        norm = math.sqrt(sum(float(np.sum(g * g)) for g in gradients))
        factor = 1.0 if max_norm is None or norm <= max_norm else max_norm / norm
        self.t += 1
        for k, gradient in enumerate(gradients):
            g = gradient * factor
            self.m[k] = 0.9 * self.m[k] + 0.1 * g
            self.v[k] = 0.999 * self.v[k] + 0.001 * g * g
            m_hat, v_hat = self.m[k] / (1 - 0.9**self.t), self.v[k] / (1 - 0.999**self.t)
            self.parameters[k] = self.parameters[k] - learning_rate * m_hat / (np.sqrt(v_hat) + self.eps)


def normalised(advantage_B: Array) -> Array:
    """To mean 0 and population deviation 1."""
    mean, variance = moments(advantage_B)
    return (advantage_B - mean) / (math.sqrt(float(variance)) + 1e-8)


def group_relative(return_N: Array, size: int, baseline: str, scale: bool) -> Array:
    """R_i less the mean of its group of neighbours, or of the others in it; over the group's deviation + 1e-4."""
    advantage_N = np.zeros(len(return_N))
    for i in range(len(return_N)):
        first = i - i % size
        group = [float(return_N[j]) for j in range(first, first + size)]
        rest = group if baseline == "mean" else group[: i - first] + group[i - first + 1 :]
        advantage_N[i] = float(return_N[i]) - math.fsum(rest) / len(rest)
        if scale:
            mean = math.fsum(group) / size
            advantage_N[i] /= math.sqrt(math.fsum((x - mean) ** 2 for x in group) / size) + 1e-4
    return advantage_N


def shaped_rewards(
    score: float, log_prob: list[float], reference_log_prob: list[float], beta: float
) -> list[float]:
    """Of one response's actions: -beta (log pi - log pi_ref) each, and the score added to the last (arXiv 1909.08593)."""
    rewards = [-beta * (p - q) for p, q in zip(log_prob, reference_log_prob, strict=True)]
    rewards[-1] += score
    return rewards


def response_gae(rewards: list[float], values: list[float], after: float, gamma: float, lam: float) -> Array:
    """Advantages of one response's actions alone, nothing between them: `after` is V of what follows the last."""
    count = len(rewards)
    column = np.asarray(rewards)[:, None], np.asarray(values)[:, None]
    following = np.asarray([*values[1:], after])[:, None]
    done = (np.arange(count) == count - 1)[:, None]
    return gae(*column, following, np.zeros((count, 1), bool), done, gamma, lam)[:, 0]


def full_kl(log_p_V: Array, log_q_V: Array) -> float:
    """KL(p || q) over the whole vocabulary."""
    return math.fsum(math.exp(p) * (p - q) for p, q in zip(log_p_V, log_q_V, strict=True))


def adapted_beta(
    beta: float, kls: list[float], num_responses: int, target: float, horizon: float
) -> list[float]:
    """The weights after each batch's KL: a product of 1 + e N / horizon (arXiv 1909.08593, sec. 2.2)."""
    errors = [max(-0.2, min(0.2, kl / target - 1)) for kl in kls]
    return [
        beta * math.prod(1 + e * num_responses / horizon for e in errors[: i + 1]) for i in range(len(kls))
    ]


def log_softmax(logits_V: Array, temperature: float = 1.0) -> Array:
    """log of softmax(logits / T)."""
    return np.array(_log_softmax(np.asarray(logits_V, np.float64) / temperature))
