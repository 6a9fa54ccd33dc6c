"""Native envs of chosen observation size for scaling.py: `scaling_envs:SIZE_4` … `scaling_envs:SIZE_4096`.

A step moves one number of the state whatever its size, so that a curve over sizes shows what seeing costs. Episodes
end at the time limit alone: `--max-episode-steps` chooses their length.
"""

from __future__ import annotations

import numpy as np
from gymnasium import spaces

from distrl.envs.native import NativeEnv, uniform

SIZES = (4, 16, 64, 256, 1024, 4096)


def reset(state, rng):  # type: ignore[no-untyped-def]
    for i in range(len(state)):
        state[i] = uniform(rng, -1.0, 1.0)


def step(state, action, rng):  # type: ignore[no-untyped-def]
    wanted = 1 if state[0] > 0 else 0
    state[0] = uniform(rng, -1.0, 1.0)
    return 1.0 if action == wanted else 0.0, False


def observe(state, out):  # type: ignore[no-untyped-def]
    for i in range(len(out)):
        out[i] = state[i]


def _env(size: int) -> NativeEnv:
    return NativeEnv(
        observation_space=spaces.Box(-1.0, 1.0, (size,), np.float32),
        action_space=spaces.Discrete(2),
        state_size=size,
        max_episode_steps=500,
        reset=reset,
        step=step,
        observe=observe,
    )


SIZE_4, SIZE_16, SIZE_64, SIZE_256, SIZE_1024, SIZE_4096 = (_env(size) for size in SIZES)
