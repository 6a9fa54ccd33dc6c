"""From the functions of one native env to loops over a batch, compiled once for each env.

N envs, S numbers of state, D... an observation's shape.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numba

from distrl.envs.native.protocol import NativeEnv
from distrl.maths.random_kernels import seed_generator


@dataclass(frozen=True)
class Kernels:
    """Nopython functions over a batch; arrays are written in place.

    begin(state, rng, elapsed, seeds, mask, observation): where mask [N], a new episode from seeds [N] uint64.
    begin_unseeded(state, rng, elapsed, mask, observation): the same, each rng [N, 4] going on where it is.
    step(state, rng, elapsed, limit, action, skip, observation, reward, terminated, truncated): one step of every
        env, but for those where skip [N]; limit 0 is none.
    """

    begin: Callable[..., None]
    begin_unseeded: Callable[..., None]
    step: Callable[..., None]


@functools.cache
def kernels(env: NativeEnv) -> Kernels:
    """The loops of `env`, compiled at their first call, or read from Numba's cache."""
    reset, step, observe = env.compiled
    options, stamp = env.kernel_options(seed_generator)
    compiled = numba.njit(**options)

    @compiled
    def begin(state, rng, elapsed, seeds, mask, observation):  # type: ignore[no-untyped-def]
        _ = stamp
        for n in range(len(state)):
            if mask[n]:
                seed_generator(rng[n], seeds[n])
                elapsed[n] = 0
                reset(state[n], rng[n])
                observe(state[n], observation[n])

    @compiled
    def begin_unseeded(state, rng, elapsed, mask, observation):  # type: ignore[no-untyped-def]
        for n in range(len(state)):
            if mask[n]:
                elapsed[n] = 0
                reset(state[n], rng[n])
                observe(state[n], observation[n])

    @compiled
    def step_all(  # type: ignore[no-untyped-def]
        state, rng, elapsed, limit, action, skip, observation, reward, terminated, truncated
    ):
        for n in range(len(state)):
            reward[n], terminated[n], truncated[n] = 0.0, False, False
            if not skip[n]:
                reward[n], terminated[n] = step(state[n], action[n], rng[n])
                elapsed[n] += 1
                truncated[n] = limit > 0 and elapsed[n] >= limit
                observe(state[n], observation[n])

    return Kernels(begin, begin_unseeded, step_all)


def action_of(array: Any) -> Any:
    """Actions [N, ...] as the kernels take them: contiguous, Discrete ones int64."""
    import numpy as np

    array = np.ascontiguousarray(array)
    return array.astype(np.int64) if array.dtype.kind in "iub" and array.ndim == 1 else array
