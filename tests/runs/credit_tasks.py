"""Tasks that hold credit to what it means. Env ids: `credit_tasks:Delayed-v0`, `credit_tasks:Bandit-v0`."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from gymnasium import spaces


class Delayed(gym.Env[Any, Any]):
    """`length` steps; the reward is 1 at the end if the first action was 1, else 0. Observes the step number, one-hot."""

    def __init__(self, length: int = 5) -> None:
        self.observation_space = spaces.Discrete(length + 1)
        self.action_space = spaces.Discrete(2)
        self.length, self.t, self.first = length, 0, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return 0, {}

    def step(self, action: Any) -> Any:
        if self.t == 0:
            self.first = int(action)
        self.t += 1
        over = self.t == self.length
        return self.t, float(over and self.first == 1), over, False, {}


class Bandit(gym.Env[Any, Any]):
    """One step; the reward is 1 if the action is the context that was observed, else 0."""

    def __init__(self, arms: int = 3) -> None:
        self.observation_space = spaces.Discrete(arms)
        self.action_space = spaces.Discrete(arms)
        self.context = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.context = int(self.np_random.integers(self.action_space.n))
        return self.context, {}

    def step(self, action: Any) -> Any:
        return self.context, float(int(action) == self.context), True, False, {}


for one in (Delayed, Bandit):
    # more steps than an episode has: whole episodes are collected where there is a limit
    gym.register(f"{one.__name__}-v0", one, max_episode_steps=100)
