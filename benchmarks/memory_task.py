"""A task where memory is needed: CartPole without its velocities."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class HideVelocities(gym.ObservationWrapper[Any, Any, Any]):
    """CartPole's position and angle alone: [x, theta]. Their rates must be remembered from earlier steps."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        box = env.observation_space
        assert isinstance(box, spaces.Box)
        self.observation_space = spaces.Box(box.low[[0, 2]], box.high[[0, 2]], dtype=np.float32)

    def observation(self, observation: Any) -> Any:
        return observation[[0, 2]]


def hide_velocities(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    """For `--wrapper benchmarks.memory_task:hide_velocities`."""
    return HideVelocities(env)
