"""Environments that an evaluation has trouble with. Ids: `tests.wild.evaluation_envs:Stay-v0`, `...:Short-v0`."""

from __future__ import annotations

import socket
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces

RENDERED = {
    "array": lambda frame: frame,
    "list": lambda frame: [frame],
    "dict": lambda frame: {"front": frame},
    "none": lambda frame: None,
    "empty": lambda frame: [],
    "grey": lambda frame: frame[:, :, 0],
    "rgba": lambda frame: np.dstack([frame, frame[:, :, :1]]),
    "float": lambda frame: frame / 255.0,
    "too-large": lambda frame: frame.astype(np.float32) * 3,
}


class Stay(gym.Env[Any, Any]):
    """A reward of 1 a step and no end. It may bind a port, draw pictures of any kind, and raise in `close()`."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"]}

    def __init__(
        self,
        render_mode: str | None = None,
        pictures: str = "array",
        height: int = 31,
        width: int = 45,
        port: int = 0,
        close_raises: bool = False,
        grows: bool = False,
        nan_reward: bool = False,
    ) -> None:
        self.observation_space = spaces.Box(-100, 100, (2,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.render_mode, self.pictures, self.size = render_mode, pictures, (height, width)
        self.close_raises, self.grows, self.t = close_raises, grows, 0
        self.nan_reward = nan_reward
        self.socket = socket.socket() if port else None
        if self.socket is not None:
            self.socket.bind(("127.0.0.1", int(port)))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return self._observation(), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        reward = float("nan") if self.nan_reward and self.t == 3 else 1.0
        return self._observation(), reward, False, False, {}

    def _observation(self) -> Any:
        return self.np_random.uniform(20, 40, 2).astype(np.float32)

    def render(self) -> Any:
        height = self.size[0] + (self.t if self.grows else 0)
        frame = np.full((height, self.size[1], 3), 10 * (self.t % 25), np.uint8)
        return RENDERED[self.pictures](frame)

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()
        if self.close_raises:
            raise RuntimeError("the simulator is gone")


gym.register("Stay-v0", Stay)
gym.register("Short-v0", Stay, max_episode_steps=20)


def normalized(env: Any) -> Any:
    """Observations by running statistics of this one env."""
    return gym.wrappers.NormalizeObservation(env)


def scaled_reward(env: Any) -> Any:
    """Rewards by running statistics, below another wrapper."""
    return gym.wrappers.ClipReward(gym.wrappers.NormalizeReward(env), -10, 10)


def fixed(env: Any) -> Any:
    """Observations by numbers that no longer change."""
    wrapped = gym.wrappers.NormalizeObservation(env)
    wrapped.update_running_mean = False
    return wrapped


class CopiedMoments:
    """A running mean and variance as many projects have copied it."""

    def __init__(self) -> None:
        self.mean, self.var, self.count = 0.0, 1.0, 1e-4

    def update(self, x: Any) -> None:
        self.count += 1
        self.mean += (float(np.mean(x)) - self.mean) / self.count


class OwnNormalize(gym.ObservationWrapper[Any, Any, Any]):
    """Normalizes by a copied running mean."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self.obs_rms = CopiedMoments()

    def observation(self, observation: Any) -> Any:
        self.obs_rms.update(observation)
        return (observation - self.obs_rms.mean).astype(np.float32)
