"""Acrobot, step for step `gymnasium.envs.classic_control.AcrobotEnv` (Sutton 1996), the book's dynamics.

The first state of an episode is float32 there, and so is what is seen of it; from the first step on all is float64.
State: two angles, two velocities, and 1 at an episode's start.
"""

from __future__ import annotations

import math

import numba
import numpy as np
from gymnasium import spaces

from distrl.envs.native.floats import cos_float32, sin_float32, squared
from distrl.envs.native.protocol import NativeEnv
from distrl.maths.random_kernels import uniform

PI = np.pi
DT = 0.2
GRAVITY = 9.8
MAX_VELOCITY_1 = 4 * PI
MAX_VELOCITY_2 = 9 * PI


@numba.njit(cache=True, nogil=True, error_model="numpy")
def acceleration(theta1, theta2, dtheta1, dtheta2, torque):  # type: ignore[no-untyped-def]
    """Of both joints. Link masses, lengths and moments are 1, centres of mass at 0.5: the terms stand as in the
    original, with these folded in where that is exact."""
    cosine, sine = math.cos(theta2), math.sin(theta2)
    d1 = 0.25 + (1.25 + cosine) + 1.0 + 1.0
    d2 = (0.25 + 0.5 * cosine) + 1.0
    phi2 = 4.9 * math.cos(theta1 + theta2 - PI / 2.0)
    phi1 = (
        -0.5 * squared(dtheta2) * sine
        - dtheta2 * dtheta1 * sine
        + 1.5 * GRAVITY * math.cos(theta1 - PI / 2)
        + phi2
    )
    ddtheta2 = (torque + d2 / d1 * phi1 - 0.5 * squared(dtheta1) * sine - phi2) / (
        0.25 + 1.0 - squared(d2) / d1
    )
    return -(d2 * ddtheta2 + phi1) / d1, ddtheta2


@numba.njit(cache=True, nogil=True)
def wrapped(angle):  # type: ignore[no-untyped-def]
    while angle > PI:
        angle = angle - 2 * PI
    while angle < -PI:
        angle = angle + 2 * PI
    return angle


@numba.njit(cache=True, nogil=True)
def bounded(velocity, limit):  # type: ignore[no-untyped-def]
    return min(max(velocity, -limit), limit)


def reset(state, rng):  # type: ignore[no-untyped-def]
    for i in range(4):
        state[i] = np.float32(uniform(rng, -0.1, 0.1))
    state[4] = 1.0


def step(state, action, rng):  # type: ignore[no-untyped-def]
    torque = action - 1.0
    a, b, c, d = state[0], state[1], state[2], state[3]
    half = DT / 2.0
    e1, f1 = acceleration(a, b, c, d, torque)
    c2, d2 = c + half * e1, d + half * f1
    e2, f2 = acceleration(a + half * c, b + half * d, c2, d2, torque)
    c3, d3 = c + half * e2, d + half * f2
    e3, f3 = acceleration(a + half * c2, b + half * d2, c3, d3, torque)
    c4, d4 = c + DT * e3, d + DT * f3
    e4, f4 = acceleration(a + DT * c3, b + DT * d3, c4, d4, torque)
    sixth = DT / 6.0
    theta1 = wrapped(a + sixth * (c + 2 * c2 + 2 * c3 + c4))
    theta2 = wrapped(b + sixth * (d + 2 * d2 + 2 * d3 + d4))
    state[0], state[1] = theta1, theta2
    state[2] = bounded(c + sixth * (e1 + 2 * e2 + 2 * e3 + e4), MAX_VELOCITY_1)
    state[3] = bounded(d + sixth * (f1 + 2 * f2 + 2 * f3 + f4), MAX_VELOCITY_2)
    state[4] = 0.0
    up = -math.cos(theta1) - math.cos(theta2 + theta1) > 1.0
    return (0.0 if up else -1.0), up


def observe(state, out):  # type: ignore[no-untyped-def]
    if state[4] == 1.0:
        first, second = np.float32(state[0]), np.float32(state[1])
        out[0], out[1] = cos_float32(first), sin_float32(first)
        out[2], out[3] = cos_float32(second), sin_float32(second)
    else:
        out[0], out[1] = math.cos(state[0]), math.sin(state[0])
        out[2], out[3] = math.cos(state[1]), math.sin(state[1])
    out[4], out[5] = state[2], state[3]


_HIGH = np.array([1.0, 1.0, 1.0, 1.0, MAX_VELOCITY_1, MAX_VELOCITY_2], np.float32)

ENV = NativeEnv(
    observation_space=spaces.Box(-_HIGH, _HIGH, dtype=np.float32),
    action_space=spaces.Discrete(3),
    state_size=5,
    max_episode_steps=500,
    reset=reset,
    step=step,
    observe=observe,
)
