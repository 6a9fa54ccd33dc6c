"""V-trace: values and advantages of a policy from what an older one collected, compiled for the CPU.

Shape suffixes and masks are those of `distrl/maths/advantage.py`: T time, N environments; what follows a
termination is selected away, never multiplied by zero.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numba
import numpy as np

from distrl.maths.advantage import BoolArray, FloatArray, flag_columns, float_columns, unit_interval


def vtrace(
    reward: FloatArray,
    value: FloatArray,
    next_value: FloatArray,
    terminated: BoolArray,
    done: BoolArray,
    behaviour_log_prob: FloatArray,
    log_prob: FloatArray,
    gamma: float,
    lam: float = 1.0,
    rho_bar: float = 1.0,
    c_bar: float = 1.0,
    weighted: bool = True,
) -> tuple[FloatArray, FloatArray]:
    r"""V-trace targets and policy-gradient advantages (Espeholt et al. 2018, arXiv 1802.01561, eq. 1 and sec. 4.2).

        rho_t   = min(rho_bar, pi(a_t|s_t) / mu(a_t|s_t)),    c_t = lam min(c_bar, pi(a_t|s_t) / mu(a_t|s_t))
        delta_t = rho_t (r_t + gamma (1 - terminated_t) V(s'_t) - V(s_t))
        v_t     = V(s_t) + delta_t + gamma c_t (1 - done_t) (v_{t+1} - V(s_{t+1})),    v_T = V(s_T)
        A_t     = rho_t (r_t + gamma (1 - terminated_t) (V(s'_t) + lam (1 - done_t) (v_{t+1} - V(s_{t+1}))) - V(s_t))

    mu collected, pi learns. lambda is that of the paper's remark 2. At lambda = 1 A is the paper's own,
    rho (r + gamma v' - V); below, v' is mixed with V as rlax does, so that on-policy, where every ratio is 1,
    A equals `gae` and v the lambda-return `gae + value`.

    Args:
        reward: r_t, [T, N], float32 or float64.
        value: V(s_t), [T, N], of reward's type.
        next_value: V(s'_t) at the state that step t reached, before any reset; ignored where terminated.
        terminated: [T, N], bool: s'_t has no future.
        done: [T, N], bool: terminated or truncated; the recursion stops here.
        behaviour_log_prob: log mu(a_t|s_t), [T, N].
        log_prob: log pi(a_t|s_t), [T, N].
        gamma: discount, in [0, 1].
        lam: lambda, in [0, 1].
        rho_bar: clip of the ratio in a step's own error, above 0; decides whose value function v is.
        c_bar: clip of the ratio in the trace, above 0 and at most rho_bar; decides how fast v gets there.
        weighted: whether A_t has its factor rho_t; without it, for a loss that multiplies by the ratio itself.

    Returns:
        The value targets v and the advantages A, each [T, N], of reward's type.

    Raises:
        ValueError: an argument breaks these rules; names it.
    """
    gamma, lam = unit_interval("gamma", gamma), unit_interval("lam", lam)
    if not 0 < c_bar <= rho_bar:  # NaN too
        raise ValueError(f"0 < c_bar <= rho_bar must hold, got c_bar {c_bar} and rho_bar {rho_bar}")
    reward, value, next_value, behaviour_log_prob, log_prob = float_columns(
        reward=reward,
        value=value,
        next_value=next_value,
        behaviour_log_prob=behaviour_log_prob,
        log_prob=log_prob,
    )
    terminated, done = flag_columns(reward, terminated=terminated, done=done)
    real = reward.dtype.type
    with np.errstate(over="ignore"):  # an infinite ratio is clipped
        ratio = np.exp(log_prob - behaviour_log_prob)
    target, advantage = np.empty_like(reward), np.empty_like(reward)
    surplus = np.zeros(reward.shape[1], reward.dtype)  # v_{t+1} - V(s_{t+1})
    _compiled(reward.dtype.name)(
        reward, value, next_value, ratio, terminated, done,
        real(gamma), real(lam), real(rho_bar), real(c_bar), weighted, target, advantage, surplus,
    )  # fmt: skip
    return target, advantage


def _vtrace(  # type: ignore[no-untyped-def]
    reward,
    value,
    next_value,
    ratio,
    terminated,
    done,
    gamma,
    lam,
    rho_bar,
    c_bar,
    weighted,
    target,
    advantage,
    surplus,
):
    """Rows from the last to the first; no float literal, which would widen float32 to float64."""
    for i in range(1, len(reward) + 1):
        t = np.uint64(len(reward) - i)
        for n in range(reward.shape[1]):
            rho = min(rho_bar, ratio[t, n])
            trace = gamma * lam * min(c_bar, ratio[t, n])
            with_future = reward[t, n] + gamma * next_value[t, n] - value[t, n]
            error = reward[t, n] - value[t, n] if terminated[t, n] else with_future
            with_later = error + gamma * lam * surplus[n]
            own_advantage = error if done[t, n] else with_later
            advantage[t, n] = rho * own_advantage if weighted else own_advantage
            own = rho * error
            with_trace = own + trace * surplus[n]
            surplus[n] = own if done[t, n] else with_trace
            target[t, n] = value[t, n] + surplus[n]


@cache
def _compiled(dtype: str) -> Callable[..., None]:
    """The kernel for one float type; one explicit signature, because arrays from an object store are read-only."""
    real = getattr(numba.types, dtype)
    column = numba.types.Array(real, 2, "C", readonly=True)
    flag = numba.types.Array(numba.types.boolean, 2, "C", readonly=True)
    signature = numba.void(
        *[column] * 4, *[flag] * 2, *[real] * 4, numba.types.boolean, real[:, ::1], real[:, ::1], real[::1]
    )
    compiled: Callable[..., None] = numba.njit(signature, cache=True, nogil=True)(_vtrace)
    return compiled
