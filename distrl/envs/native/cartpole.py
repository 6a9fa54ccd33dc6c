"""CartPole, step for step `gymnasium.envs.classic_control.CartPoleEnv` (Barto, Sutton and Anderson 1983)."""

from __future__ import annotations

import math

import numpy as np
from gymnasium import spaces

from distrl.envs.native.protocol import NativeEnv
from distrl.maths.random_kernels import uniform

GRAVITY = 9.8
POLE_MASS = 0.1
TOTAL_MASS = POLE_MASS + 1.0
HALF_LENGTH = 0.5
POLE_MOMENT = POLE_MASS * HALF_LENGTH
FORCE = 10.0
TAU = 0.02
ANGLE_LIMIT = 12 * 2 * math.pi / 360
PLACE_LIMIT = 2.4


def reset(state, rng):  # type: ignore[no-untyped-def]
    for i in range(4):
        state[i] = uniform(rng, -0.05, 0.05)


def step(state, action, rng):  # type: ignore[no-untyped-def]
    x, x_dot, theta, theta_dot = state[0], state[1], state[2], state[3]
    force = FORCE if action == 1 else -FORCE
    cosine, sine = math.cos(theta), math.sin(theta)
    temp = (force + POLE_MOMENT * (theta_dot * theta_dot) * sine) / TOTAL_MASS
    theta_acc = (GRAVITY * sine - cosine * temp) / (
        HALF_LENGTH * (4.0 / 3.0 - POLE_MASS * (cosine * cosine) / TOTAL_MASS)
    )
    x_acc = temp - POLE_MOMENT * theta_acc * cosine / TOTAL_MASS
    x = x + TAU * x_dot
    x_dot = x_dot + TAU * x_acc
    theta = theta + TAU * theta_dot
    theta_dot = theta_dot + TAU * theta_acc
    state[0], state[1], state[2], state[3] = x, x_dot, theta, theta_dot
    fell = x < -PLACE_LIMIT or x > PLACE_LIMIT or theta < -ANGLE_LIMIT or theta > ANGLE_LIMIT
    return 1.0, fell


def observe(state, out):  # type: ignore[no-untyped-def]
    for i in range(4):
        out[i] = state[i]


_HIGH = np.array([PLACE_LIMIT * 2, np.inf, ANGLE_LIMIT * 2, np.inf], np.float32)

ENV = NativeEnv(
    observation_space=spaces.Box(-_HIGH, _HIGH, dtype=np.float32),
    action_space=spaces.Discrete(2),
    state_size=4,
    max_episode_steps=500,
    reset=reset,
    step=step,
    observe=observe,
)
