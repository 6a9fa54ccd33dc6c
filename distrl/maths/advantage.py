"""Returns and advantages of time-major trajectories, compiled for the CPU.

Shape suffixes: T time, N environments or responses. `terminated` says that the state reached has no
future; `done = terminated | truncated` says that the next row belongs to another episode. `next_value_TN[t]`
is the value of the state that step t really reached: `value_TN[t + 1]`, except where an episode ends and in
the last row. What follows a termination is selected away, never multiplied by zero: it may be NaN.

Sums run in the arrays' own type, in one order, without fast-math: the same bits on every CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import numba
import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating[Any]]
BoolArray = NDArray[np.bool_]


def gae(
    reward: FloatArray,
    value: FloatArray,
    next_value: FloatArray,
    terminated: BoolArray,
    done: BoolArray,
    gamma: float,
    lam: float,
) -> FloatArray:
    r"""Generalised advantage estimates (Schulman et al. 2016, arXiv 1506.02438, eq. 16 with episode ends).

        delta_t = r_t + gamma (1 - terminated_t) V(s'_t) - V(s_t)
        A_t     = delta_t + gamma lam (1 - done_t) A_{t+1},    A_T = 0

    Args:
        reward: r_t, [T, N], float32 or float64.
        value: V(s_t), [T, N], of reward's type.
        next_value: V(s'_t) at the state that step t reached, before any reset; ignored where terminated.
        terminated: [T, N], bool: s'_t has no future.
        done: [T, N], bool: terminated or truncated; the recursion stops here.
        gamma: discount, in [0, 1].
        lam: lambda, in [0, 1]: 0 gives the TD error, 1 the return minus the value.

    Returns:
        The advantages, [T, N], of reward's type. Add `value` for the critic's targets.

    Raises:
        ValueError: an array's shape or type, gamma or lam breaks these rules; names the argument.
    """
    gamma, lam = unit_interval("gamma", gamma), unit_interval("lam", lam)
    reward, value, next_value = float_columns(reward=reward, value=value, next_value=next_value)
    terminated, done = flag_columns(reward, terminated=terminated, done=done)
    real = reward.dtype.type
    advantage = _rows_and_one_beyond(reward)
    _compiled(_gae, reward.dtype.name, 3, 2, 2)(
        reward, value, next_value, terminated, done, real(gamma), real(gamma * lam), advantage
    )
    return advantage[:-1]


def returns(
    reward: FloatArray, next_value: FloatArray, terminated: BoolArray, done: BoolArray, gamma: float
) -> FloatArray:
    """Discounted returns, bootstrapped where the future was cut off (Sutton and Barto 2018, eq. 3.9 and sec. 12.8).

        G_t = r_t                      where terminated_t
        G_t = r_t + gamma V(s'_t)      where done_t (truncated), and in the last row
        G_t = r_t + gamma G_{t+1}      elsewhere

    Arguments, result and errors are those of `gae`; next_value is read in truncated and last rows alone.
    """
    gamma = unit_interval("gamma", gamma)
    reward, next_value = float_columns(reward=reward, next_value=next_value)
    terminated, done = flag_columns(reward, terminated=terminated, done=done)
    return_TN = _rows_and_one_beyond(reward)
    if len(reward):
        return_TN[-1] = np.where(terminated[-1], 0, next_value[-1])
    _compiled(_returns, reward.dtype.name, 2, 2, 1)(
        reward, next_value, terminated, done, reward.dtype.type(gamma), return_TN
    )
    return return_TN[:-1]


def discounted_sum(reward: FloatArray, done: BoolArray, gamma: float) -> FloatArray:
    """The return to go of REINFORCE: nothing is bootstrapped (Sutton and Barto 2018, eq. 3.8 and sec. 13.3).

        G_t = r_t + gamma (1 - done_t) G_{t+1},    G_T = 0

    Arguments, result and errors are those of `gae`. Meant for whole episodes: one that the last row cuts
    off is summed as if it had ended there.
    """
    gamma = unit_interval("gamma", gamma)
    (reward,) = float_columns(reward=reward)
    (done,) = flag_columns(reward, done=done)
    return_TN = _rows_and_one_beyond(reward)
    _compiled(_discounted_sum, reward.dtype.name, 1, 1, 1)(reward, done, reward.dtype.type(gamma), return_TN)
    return return_TN[:-1]


def group_relative(
    return_: FloatArray, group_size: int, baseline: Literal["mean", "others"] = "mean", scale: bool = False
) -> FloatArray:
    r"""What a response got beyond the others to its prompt: credit without a critic.

        mean      A_i = R_i - mean_j R_j                      GRPO (Shao et al. 2024, arXiv 2402.03300, sec. 4.1.2)
        others    A_i = R_i - mean_{j != i} R_j               RLOO (Kool et al. 2019; Ahmadian et al. 2024, eq. 8)
        scale     A_i / (deviation of the group's R + 1e-4)   the population's deviation; GRPO scales

    `others` is `mean` times k / (k - 1), k being the group's size: unbiased, since R_i is not in its own baseline.

    Args:
        return_: R, [N], float32 or float64: responses to one prompt lie side by side, N / group_size prompts.
        group_size: k, responses to each prompt, 2 or more; N for the mean of a whole batch.
        baseline: what is subtracted.
        scale: divide by the group's deviation; a group whose returns are all alike gets zeros.

    Returns:
        The advantage of each response, [N], of return_'s type; summed in float64.

    Raises:
        ValueError: a shape, a type or the group's size breaks these rules.
    """
    if (
        not isinstance(return_, np.ndarray)
        or return_.ndim != 1
        or return_.dtype not in (np.float32, np.float64)
    ):
        raise ValueError(f"return_ must be a float array [N], got {_describe(return_)}")
    if group_size < 2 or len(return_) % group_size:
        raise ValueError(
            f"group_size must be 2 or more and divide the number of responses, got {group_size} for {len(return_)}"
        )
    return_PK = return_.astype(np.float64).reshape(-1, group_size)
    advantage_PK = return_PK - return_PK.mean(axis=1, keepdims=True)
    if baseline == "others":
        advantage_PK *= group_size / (group_size - 1)
    if scale:
        advantage_PK /= return_PK.std(axis=1, keepdims=True) + 1e-4
    return advantage_PK.reshape(-1).astype(return_.dtype)


def _rows_and_one_beyond(like: FloatArray) -> FloatArray:
    """[T + 1, N]: room for a result, and a row of zeros for what follows the last step."""
    rows = np.empty((len(like) + 1, like.shape[1]), like.dtype)
    rows[-1] = 0
    return rows


# Kernels: rows from the last to the first, and along a row the columns, which lie side by side in memory, so
# that the inner loop has no dependency. The result has one row more than the inputs, which says what comes
# after the last one. A row is a function of its own, called from one place, because LLVM proves that the row
# written and the row after it do not overlap only where it sees one row at a time (3 times faster on wide
# arrays); the index is unsigned because a signed one is tested for wrap-around. No float literal appears: it
# would widen float32 to float64. Where rows are too short to fill vectors, `gae` takes all TD errors first, which
# lie side by side over rows, and then the recursion alone (3 times faster at 8 columns, and the same bits).

_NARROW = 32  # columns


@numba.njit(nogil=True)  # type: ignore[untyped-decorator]
def td_error(reward, value, next_value, terminated, gamma):  # type: ignore[no-untyped-def]
    """delta_t of `gae` on scalars. Also the CUDA kernel's."""
    with_future = reward + gamma * next_value - value
    return reward - value if terminated else with_future


@numba.njit(nogil=True)  # type: ignore[untyped-decorator]
def add_later(delta, done, gamma_lam, later):  # type: ignore[no-untyped-def]
    """A_t of `gae` on scalars, `later` being the advantage of the row after it. Also the CUDA kernel's."""
    with_later = delta + gamma_lam * later
    return delta if done else with_later


@numba.njit(nogil=True)  # type: ignore[untyped-decorator]
def _gae_row(t, reward, value, next_value, terminated, done, gamma, gamma_lam, advantage):  # type: ignore[no-untyped-def]
    for n in range(reward.shape[1]):
        delta = td_error(reward[t, n], value[t, n], next_value[t, n], terminated[t, n], gamma)
        advantage[t, n] = add_later(delta, done[t, n], gamma_lam, advantage[t + 1, n])


@numba.njit(nogil=True)  # type: ignore[untyped-decorator]
def _gae_narrow(reward, value, next_value, terminated, done, gamma, gamma_lam, num_columns, advantage):  # type: ignore[no-untyped-def]
    """All arrays flat."""
    for i in range(reward.size):
        advantage[i] = td_error(reward[i], value[i], next_value[i], terminated[i], gamma)
    for i in range(1, reward.size + 1):
        here = np.uint64(reward.size - i)
        advantage[here] = add_later(
            advantage[here], done[here], gamma_lam, advantage[here + np.uint64(num_columns)]
        )


def _gae(reward, value, next_value, terminated, done, gamma, gamma_lam, advantage):  # type: ignore[no-untyped-def]
    if reward.shape[1] < _NARROW:
        _gae_narrow(
            reward.reshape(-1), value.reshape(-1), next_value.reshape(-1), terminated.reshape(-1), done.reshape(-1),
            gamma, gamma_lam, reward.shape[1], advantage.reshape(-1),
        )  # fmt: skip
        return
    for i in range(1, len(reward) + 1):
        t = np.uint64(len(reward) - i)
        _gae_row(t, reward, value, next_value, terminated, done, gamma, gamma_lam, advantage)


@numba.njit(nogil=True)  # type: ignore[untyped-decorator]
def _returns_row(t, reward, next_value, terminated, done, gamma, return_TN):  # type: ignore[no-untyped-def]
    for n in range(reward.shape[1]):
        bootstrapped = reward[t, n] + gamma * next_value[t, n]
        ended = reward[t, n] if terminated[t, n] else bootstrapped
        with_later = reward[t, n] + gamma * return_TN[t + 1, n]
        return_TN[t, n] = ended if done[t, n] else with_later


def _returns(reward, next_value, terminated, done, gamma, return_TN):  # type: ignore[no-untyped-def]
    for i in range(1, len(reward) + 1):
        _returns_row(np.uint64(len(reward) - i), reward, next_value, terminated, done, gamma, return_TN)


@numba.njit(nogil=True)  # type: ignore[untyped-decorator]
def _sum_row(t, reward, done, gamma, return_TN):  # type: ignore[no-untyped-def]
    for n in range(reward.shape[1]):
        with_later = reward[t, n] + gamma * return_TN[t + 1, n]
        return_TN[t, n] = reward[t, n] if done[t, n] else with_later


def _discounted_sum(reward, done, gamma, return_TN):  # type: ignore[no-untyped-def]
    for i in range(1, len(reward) + 1):
        _sum_row(np.uint64(len(reward) - i), reward, done, gamma, return_TN)


@cache
def _compiled(
    kernel: Callable[..., None], dtype: str, num_floats: int, num_flags: int, num_scalars: int
) -> Callable[..., None]:
    """The kernel for one float type: (float arrays, flag arrays, scalars, the result) -> None.

    One explicit signature, on first use, because every mix of writable and read-only arguments (arrays
    from an object store are read-only) would otherwise compile anew, seconds each.
    """
    real = getattr(numba.types, dtype)
    floats = [numba.types.Array(real, 2, "C", readonly=True)] * num_floats
    flags = [numba.types.Array(numba.types.boolean, 2, "C", readonly=True)] * num_flags
    signature = numba.void(*floats, *flags, *[real] * num_scalars, real[:, ::1])
    compiled: Callable[..., None] = numba.njit(signature, cache=True, nogil=True)(kernel)
    return compiled


def float_columns(**arrays: FloatArray) -> list[FloatArray]:
    """The arrays, C-contiguous; ValueError unless all are [T, N] of one shape and one type, float32 or float64."""
    first_name, first = next(iter(arrays.items()))
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray) or array.dtype not in (np.float32, np.float64):
            raise ValueError(
                f"{name} must be a float32 or float64 array, got {_describe(array)}; convert it first"
            )
        if array.ndim != 2:
            raise ValueError(
                f"{name} must be time-major, [T, N], got shape {array.shape}; use x[:, None] for one env"
            )
        if array.shape != first.shape or array.dtype != first.dtype:
            raise ValueError(
                f"{name} must have the shape and type of {first_name}, {_describe(first)}, got {_describe(array)}"
            )
    return [np.ascontiguousarray(array) for array in arrays.values()]


def flag_columns(like: FloatArray, **arrays: BoolArray) -> list[BoolArray]:
    """The arrays, C-contiguous; ValueError unless all are bool and of like's shape."""
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray) or array.dtype != np.bool_:
            raise ValueError(
                f"{name} must be a bool array, got {_describe(array)}; use x.astype(bool) on 0/1 flags"
            )
        if array.shape != like.shape:
            raise ValueError(f"{name} must have the shape of reward, {like.shape}, got {array.shape}")
    return [np.ascontiguousarray(array) for array in arrays.values()]


def unit_interval(name: str, number: float) -> float:
    """The number as a float; ValueError unless it lies in [0, 1]."""
    if not (math.isfinite(number) and 0 <= number <= 1):
        raise ValueError(f"{name} must lie in [0, 1], got {number}")
    return float(number)


def _describe(array: object) -> str:
    if isinstance(array, np.ndarray):
        return f"{array.dtype} {array.shape}"
    return type(array).__name__
