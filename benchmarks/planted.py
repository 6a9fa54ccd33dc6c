"""Plants for the autopsy: environments and a policy whose bottleneck is known because it was put there.

`--env benchmarks.planted:Planted/Slow-v0` and its like; `--policy benchmarks.planted:glance`.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from torch import nn

from distrl.policies import Evaluation, make_distribution

EPISODE_LENGTH = 200


class Slow(gym.Env[Any, Any]):
    """Observes `size` numbers and rewards 1; a step waits `wait_sec`, as one that asks a simulator elsewhere does.

    `slow_folder`: the first of Ray's workers to take its place there, and none that comes while it lives, waits
    `slow_times` as long: a straggler.
    """

    def __init__(
        self, wait_sec: float = 0.0, size: int = 4, slow_folder: str | None = None, slow_times: float = 1.0
    ) -> None:
        self.observation_space = spaces.Box(-1.0, 1.0, (size,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.wait_sec, self.size, self.t = wait_sec, size, 0
        self.slow_folder, self.slow_times = slow_folder, slow_times
        self._is_slow: bool | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return self._observation(), {}

    def step(self, action: Any) -> Any:
        if self.wait_sec:
            time.sleep(self.wait_sec * (self.slow_times if self._slow() else 1.0))
        self.t += 1
        return self._observation(), 1.0, False, self.t >= EPISODE_LENGTH, {}

    def _observation(self) -> Any:
        return np.full(self.size, self.t / EPISODE_LENGTH, np.float32)

    def _slow(self) -> bool:
        if self._is_slow is None:
            on_ray = Path(sys.argv[0]).name == "default_worker.py"
            self._is_slow = (
                on_ray and self.slow_folder is not None and _takes(Path(self.slow_folder) / "straggler")
            )
        return self._is_slow


def _takes(place: Path) -> bool:
    """Whether this process is the one that `place` names, or takes it because no living process has it."""
    while True:
        try:
            with place.open("x") as file:
                file.write(str(os.getpid()))
            return True
        except FileExistsError:
            holder = place.read_text()
        if holder == str(os.getpid()):
            return True
        if holder and Path(f"/proc/{holder}").exists():
            return False
        if holder:
            place.unlink(missing_ok=True)


class Picture(gym.Env[Any, Any]):
    """Observes `size` bytes, nearly for free: what costs is to move them."""

    def __init__(self, size: int = 250_000) -> None:
        self.observation_space = spaces.Box(0, 255, (size,), np.uint8)
        self.action_space = spaces.Discrete(2)
        self.picture, self.t = np.zeros(size, np.uint8), 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return self.picture, {}

    def step(self, action: Any) -> Any:
        self.t += 1
        return self.picture, 1.0, False, self.t >= EPISODE_LENGTH, {}


class Glance(nn.Module):
    """Looks at the first 4 numbers of an observation alone."""

    recurrent = False

    def __init__(self, action_space: Any) -> None:
        super().__init__()
        self.distribution = make_distribution(action_space)
        self.actor = nn.Linear(4, self.distribution.num_outputs)
        self.critic = nn.Linear(4, 1)

    @staticmethod
    def _seen(observation: Any) -> Any:
        return observation[..., :4].to(torch.float32) / 255.0

    def initial_state(self, num_envs: int) -> None:
        return None

    def act(self, observation: Any, state: Any, noise: Any, action_mask: Any) -> Any:
        return self.distribution.sample(self.actor(self._seen(observation)), noise, action_mask), None

    def value(self, observation: Any, state: Any) -> Any:
        return self.critic(self._seen(observation)).squeeze(-1)

    def evaluate(
        self, observation: Any, action: Any, action_mask: Any, state: Any, episode_start: Any
    ) -> Any:
        seen = self._seen(observation)
        log_prob, entropy = self.distribution.log_prob_and_entropy(self.actor(seen), action, action_mask)
        return Evaluation(log_prob, entropy, self.critic(seen).squeeze(-1))


def glance(observation_space: Any, action_space: Any) -> Glance:
    """`--policy benchmarks.planted:glance`."""
    return Glance(action_space)


class Ponder(Glance):
    """Thinks at every step, for nothing: `rounds` of a wide layer before an action, none of them in the update."""

    def __init__(self, action_space: Any, width: int, rounds: int) -> None:
        super().__init__(action_space)
        self.rounds = rounds
        self.register_buffer("thought", torch.eye(width) * 0.5, persistent=False)

    @staticmethod
    def _seen(observation: Any) -> Any:
        return observation[..., :4]

    def act(self, observation: Any, state: Any, noise: Any, action_mask: Any) -> Any:
        hidden = torch.zeros(len(observation), len(self.thought))
        for _ in range(self.rounds):
            hidden = torch.tanh(hidden @ self.thought)
        output = self.actor(self._seen(observation)) + hidden[:, :1]
        return self.distribution.sample(output, noise, action_mask), None


def ponder(observation_space: Any, action_space: Any, width: int = 512, rounds: int = 8) -> Ponder:
    """`--policy benchmarks.planted:ponder`."""
    return Ponder(action_space, width, rounds)


for _name, _env in (("Planted/Slow-v0", Slow), ("Planted/Picture-v0", Picture)):
    if _name not in gym.registry:
        gym.register(_name, _env)
