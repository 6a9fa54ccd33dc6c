"""Pendulum, step for step `gymnasium.envs.classic_control.PendulumEnv`. State: angle, velocity."""

from __future__ import annotations

import math

import numpy as np
from gymnasium import spaces

from distrl.envs.native.floats import squared, squared_float32
from distrl.envs.native.protocol import NativeEnv
from distrl.maths.random_kernels import uniform

PI = np.pi
MAX_SPEED = 8.0
DT = 0.05
GRAVITY = 10.0
_TORQUE = np.float32(2.0)


def reset(state, rng):  # type: ignore[no-untyped-def]
    state[0] = uniform(rng, -PI, PI)
    state[1] = uniform(rng, -1.0, 1.0)


def step(state, action, rng):  # type: ignore[no-untyped-def]
    theta, velocity = state[0], state[1]
    torque = min(max(action[0], -_TORQUE), _TORQUE)
    angle = ((theta + PI) % (2 * PI)) - PI
    effort = np.float32(0.001) * squared_float32(torque)
    cost = squared(angle) + 0.1 * squared(velocity) + np.float64(effort)
    push = 3 * GRAVITY / 2 * math.sin(theta) + np.float64(np.float32(3.0) * torque)
    velocity = min(max(velocity + push * DT, -MAX_SPEED), MAX_SPEED)
    state[0], state[1] = theta + velocity * DT, velocity
    return -cost, False


def observe(state, out):  # type: ignore[no-untyped-def]
    out[0], out[1], out[2] = math.cos(state[0]), math.sin(state[0]), state[1]


_HIGH = np.array([1.0, 1.0, MAX_SPEED], np.float32)

ENV = NativeEnv(
    observation_space=spaces.Box(-_HIGH, _HIGH, dtype=np.float32),
    action_space=spaces.Box(-2.0, 2.0, (1,), np.float32),
    state_size=2,
    max_episode_steps=200,
    reset=reset,
    step=step,
    observe=observe,
)
