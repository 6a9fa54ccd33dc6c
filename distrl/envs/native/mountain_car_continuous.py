"""MountainCarContinuous, step for step `gymnasium.envs.classic_control.Continuous_MountainCarEnv`.

Its state is float64 at an episode's start and float32 from the first step on: the arithmetic changes with it.
State: position, velocity, and 1 at an episode's start.
"""

from __future__ import annotations

import math

import numba
import numpy as np
from gymnasium import spaces

from distrl.envs.native.protocol import NativeEnv
from distrl.maths.random_kernels import uniform

LEFT, RIGHT, GOAL = -1.2, 0.6, 0.45
MAX_SPEED = 0.07
POWER = 0.0015
_LEFT, _RIGHT, _GOAL = np.float32(LEFT), np.float32(RIGHT), np.float32(GOAL)
_MAX_SPEED, _POWER = np.float32(MAX_SPEED), np.float32(POWER)


def reset(state, rng):  # type: ignore[no-untyped-def]
    state[0] = uniform(rng, -0.6, -0.4)
    state[1] = 0.0
    state[2] = 1.0


@numba.njit(cache=True, nogil=True)
def push(force, slope):  # type: ignore[no-untyped-def]
    """The change of velocity, float32 unless the action is outside of its bounds."""
    if force < -1.0:
        return -1.0 * POWER - slope
    if force > 1.0:
        return 1.0 * POWER - slope
    return np.float64(force * _POWER - np.float32(slope))


def step(state, action, rng):  # type: ignore[no-untyped-def]
    force = action[0]
    if state[2] == 1.0:
        position, velocity = state[0], state[1]
        velocity += push(force, 0.0025 * math.cos(3 * position))
        velocity = min(max(velocity, -MAX_SPEED), MAX_SPEED)
        position = min(max(position + velocity, LEFT), RIGHT)
        if position == LEFT and velocity < 0:
            velocity = 0.0
        arrived = position >= GOAL and velocity >= 0
        state[0], state[1] = np.float32(position), np.float32(velocity)
        state[2] = 0.0
    else:
        place, speed = np.float32(state[0]), np.float32(state[1])
        slope = 0.0025 * math.cos(np.float64(np.float32(3) * place))
        speed = speed + np.float32(push(force, slope))
        speed = min(max(speed, -_MAX_SPEED), _MAX_SPEED)
        place = min(max(place + speed, _LEFT), _RIGHT)
        if place == _LEFT and speed < 0:
            speed = np.float32(0)
        arrived = place >= _GOAL and speed >= 0
        state[0], state[1] = place, speed
    cost = np.float64(force) * np.float64(force) * 0.1
    return (100.0 if arrived else 0.0) - cost, arrived


def observe(state, out):  # type: ignore[no-untyped-def]
    out[0], out[1] = state[0], state[1]


ENV = NativeEnv(
    observation_space=spaces.Box(
        np.array([LEFT, -MAX_SPEED], np.float32), np.array([RIGHT, MAX_SPEED], np.float32)
    ),
    action_space=spaces.Box(-1.0, 1.0, (1,), np.float32),
    state_size=3,
    max_episode_steps=999,
    reset=reset,
    step=step,
    observe=observe,
)
