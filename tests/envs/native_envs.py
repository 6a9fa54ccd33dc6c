"""Native envs of one's own: a noisy walk with its twin faults, and one with rows of actions."""

from __future__ import annotations

import numpy as np
from gymnasium import spaces

from distrl.envs.native import NativeEnv, integer, normal


def reset(state, rng):
    state[0] = normal(rng)
    state[1] = 0.0


def step(state, action, rng):
    state[0] += 0.1 * (2 * action - 1) + 0.05 * normal(rng) + 0.01 * integer(rng, 3)
    state[1] += 1.0
    return state[0], abs(state[0]) > 2.0


def step_raises(state, action, rng):
    if state[1] == 10.0:
        raise ValueError("the walk broke")
    return step_of_walk(state, action, rng)


def step_spoils(state, action, rng):
    reward, terminated = step_of_walk(state, action, rng)
    if state[1] == 11.0:
        state[0] = np.nan
    return reward, terminated


def step_hangs(state, action, rng):
    reward, terminated = step_of_walk(state, action, rng)
    while state[0] > 2.0:  # which not every env meets at the same time
        state[1] += 1.0
    return reward, terminated


def observe(state, out):
    out[0], out[1] = state[0], state[1]


def step_many(state, action, rng):
    state[0] += action[0] - action[1]
    return -abs(state[0]), abs(state[0]) > 5.0


def make(step, observation_space=None, action_space=None):
    return NativeEnv(
        observation_space=observation_space or spaces.Box(-np.inf, np.inf, (2,), np.float32),
        action_space=action_space or spaces.Discrete(2),
        state_size=2,
        max_episode_steps=25,
        reset=reset,
        step=step,
        observe=observe,
    )


WALK = make(step)
step_of_walk = WALK.compiled[1]
RAISES, SPOILS, HANGS = make(step_raises), make(step_spoils), make(step_hangs)
MANY = make(step_many, action_space=spaces.MultiDiscrete([3, 3]))
