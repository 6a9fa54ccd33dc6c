"""MountainCar, step for step `gymnasium.envs.classic_control.MountainCarEnv` (Moore 1990)."""

from __future__ import annotations

import math

import numpy as np
from gymnasium import spaces

from distrl.envs.native.protocol import NativeEnv
from distrl.maths.random_kernels import uniform

LEFT, RIGHT, GOAL = -1.2, 0.6, 0.5
MAX_SPEED = 0.07
FORCE = 0.001
GRAVITY = 0.0025


def reset(state, rng):  # type: ignore[no-untyped-def]
    state[0] = uniform(rng, -0.6, -0.4)
    state[1] = 0.0


def step(state, action, rng):  # type: ignore[no-untyped-def]
    position, velocity = state[0], state[1]
    velocity += (action - 1) * FORCE + math.cos(3 * position) * (-GRAVITY)
    velocity = min(max(velocity, -MAX_SPEED), MAX_SPEED)
    position = min(max(position + velocity, LEFT), RIGHT)
    if position == LEFT and velocity < 0:
        velocity = 0.0
    state[0], state[1] = position, velocity
    return -1.0, position >= GOAL and velocity >= 0


def observe(state, out):  # type: ignore[no-untyped-def]
    out[0], out[1] = state[0], state[1]


ENV = NativeEnv(
    observation_space=spaces.Box(
        np.array([LEFT, -MAX_SPEED], np.float32), np.array([RIGHT, MAX_SPEED], np.float32)
    ),
    action_space=spaces.Discrete(3),
    state_size=2,
    max_episode_steps=200,
    reset=reset,
    step=step,
    observe=observe,
)
