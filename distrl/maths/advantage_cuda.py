"""`gae` on a CUDA device, for trajectories that are there already. Import it only where CUDA is wanted.

One thread walks one column from the last row to the first; neighbouring threads read neighbouring
addresses. The arithmetic is the CPU's, but the compiler may fuse a product and a sum, so results
agree to rounding, not to the bit. Shape suffixes: T time, N environments or responses.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda

from distrl.maths.advantage import add_later, td_error, unit_interval

THREADS_PER_BLOCK = 128


_td_error = cuda.jit(device=True)(td_error.py_func)
_add_later = cuda.jit(device=True)(add_later.py_func)


@cuda.jit  # type: ignore[untyped-decorator]
def _gae_columns(reward, value, next_value, terminated, done, gamma, gamma_lam, advantage):  # type: ignore[no-untyped-def]
    n = cuda.grid(1)
    if n < reward.shape[1]:
        later = gamma - gamma  # zero, of the arrays' type
        for i in range(1, reward.shape[0] + 1):
            t = reward.shape[0] - i
            delta = _td_error(reward[t, n], value[t, n], next_value[t, n], terminated[t, n], gamma)
            later = _add_later(delta, done[t, n], gamma_lam, later)
            advantage[t, n] = later


def gae_cuda(
    reward: Any,
    value: Any,
    next_value: Any,
    terminated: Any,
    done: Any,
    gamma: float,
    lam: float,
    out: Any = None,
) -> Any:
    """`distrl.maths.advantage.gae` for numba device arrays: same arguments, rules and equation.

    `numba.cuda.as_cuda_array(tensor)` wraps a torch tensor without a copy, and `torch.as_tensor(result)` takes
    the result back. Returns `out`, or a new numba device array [T, N] of reward's type, on the current device; the launch is
    asynchronous, on numba's default stream. Raises ValueError where shapes or types break the rules of `gae`.
    """
    gamma, lam = unit_interval("gamma", gamma), unit_interval("lam", lam)
    arrays = {
        "reward": reward,
        "value": value,
        "next_value": next_value,
        "terminated": terminated,
        "done": done,
    }
    shape, dtype = arrays["reward"].shape, np.dtype(arrays["reward"].dtype)
    if dtype not in (np.float32, np.float64) or len(shape) != 2:
        raise ValueError(f"reward must be time-major, [T, N], float32 or float64, got {dtype} {shape}")
    for name, array in arrays.items():
        wanted = np.dtype(bool) if name in ("terminated", "done") else dtype
        if array.shape != shape or array.dtype != wanted:
            raise ValueError(
                f"{name} must be {wanted} {shape} to go with reward, got {array.dtype} {array.shape}"
            )
    if out is not None and (out.shape != shape or out.dtype != dtype):
        raise ValueError(f"out must be {dtype} {shape} to go with reward, got {out.dtype} {out.shape}")
    advantage = cuda.device_array(shape, dtype) if out is None else out
    blocks = -(-shape[1] // THREADS_PER_BLOCK)
    if shape[0] and blocks:
        _gae_columns[blocks, THREADS_PER_BLOCK](
            *arrays.values(), dtype.type(gamma), dtype.type(gamma * lam), advantage
        )
    return advantage
