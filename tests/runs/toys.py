"""Environments and a wrapper that break on purpose. Env ids: `toys:Toy-v0`, `toys:Picture-v0`.

This folder has to be on PYTHONPATH; `conftest.py` sees to it. A fault happens at the `at`-th step that an env object
takes in its process (`episode_step`: of an episode). With `once`, the path of a file that the first to fail makes, it
happens a single time in the whole run, whoever gets there first; without it, always.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

import gymnasium
import numpy as np


class Toy(gymnasium.Env[np.ndarray, np.int64]):
    """A walk on a line: go right (1) to be paid. Observation [3] float32, 2 actions, episodes of 25 steps."""

    observation_space = gymnasium.spaces.Box(-10.0, 10.0, (3,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(
        self,
        fault: str | None = None,
        at: int = 0,
        episode_step: int = 0,
        once: str | None = None,
        sleep_sec: float = 0.0,
        render_mode: str | None = None,
    ) -> None:
        self.fault, self.at, self.episode_step, self.once, self.sleep_sec = (
            fault,
            at,
            episode_step,
            once,
            sleep_sec,
        )
        self.render_mode = render_mode
        self.num_steps = 0
        self.length = 0
        self.place = 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.length = 0
        self.place = float(self.np_random.normal())
        if self.fault == "raise in reset" and self._is_due(self.num_steps >= self.at):
            raise RuntimeError("the toy broke in reset")
        return self._observation(), {}

    def step(self, action: Any) -> Any:
        self.num_steps += 1
        self.length += 1
        self.place += 0.1 * (2 * int(action) - 1) + 0.05 * float(self.np_random.normal())
        self.place = float(np.clip(self.place, -9.0, 9.0))
        reward, observation = self.place, self._observation()
        time.sleep(self.sleep_sec)
        due = self.num_steps == self.at or self.length == self.episode_step
        if self.fault not in (None, "raise in reset") and self._is_due(due):
            if self.fault == "raise":
                raise RuntimeError("the toy broke in step")
            if self.fault == "hang":
                time.sleep(600)
            if self.fault == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.fault == "nan reward":
                reward = float("nan")
            if self.fault == "inf observation":
                observation[1] = np.inf
            if self.fault == "outside":
                observation = np.zeros(4, np.float32)
        return observation, reward, abs(self.place) > 8.0, False, {"place": self.place}

    def _observation(self) -> np.ndarray:
        return np.array([self.place, self.place**2 / 10.0, self.length / 25.0], np.float32)

    def _is_due(self, due: bool) -> bool:
        return due and (self.once is None or claim(self.once))


class Picture(Toy):
    """The same walk, seen as a picture [36, 36, 1] of bytes."""

    observation_space = gymnasium.spaces.Box(0, 255, (36, 36, 1), np.uint8)

    def _observation(self) -> np.ndarray:
        picture = np.zeros((36, 36, 1), np.uint8)
        picture[:, int(18 + 1.9 * self.place)] = 255
        picture[: self.length, 0] = 100
        return picture


def claim(path: str) -> bool:
    """Whether this is the first process to ask."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return False
    return True


def mortal(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    """A `--wrapper` that leaves the env as it is, but for its pace and the one step that kills its process with -9.

    TOYS_KILL is `<step>:<path>`: at that step of an env object, the first process to make the file dies. TOYS_SLEEP
    is seconds a step. The env's own class stays outermost, so its exact snapshot serves as without this.
    """
    step, _, path = os.environ.get("TOYS_KILL", "0").partition(":")
    sleep_sec = float(os.environ.get("TOYS_SLEEP", "0"))
    if path or sleep_sec:
        inner, count = env.step, 0

        def counted(action: Any) -> Any:
            nonlocal count
            count += 1
            time.sleep(sleep_sec)
            if count == int(step) and claim(path):
                os.kill(os.getpid(), signal.SIGKILL)
            return inner(action)

        env.step = counted  # type: ignore[method-assign]
    return env


def crooked_policy(observation_space: Any, action_space: Any, **kwargs: Any) -> Any:
    """An MLP whose gradient is NaN from the `nan_from`-th `evaluate` of the learner on."""
    import torch

    from distrl.policies.mlp import MLPPolicy

    class Crooked(MLPPolicy):
        def __init__(self) -> None:
            super().__init__(observation_space, action_space, (8,))
            self.num_updates = 0

        def evaluate(self, *arguments: Any) -> Any:
            result = super().evaluate(*arguments)
            if not torch.is_grad_enabled():
                return result
            self.num_updates += 1
            if kwargs["nan_from"] <= self.num_updates < kwargs.get("nan_until", 10**9):
                return result._replace(log_prob=result.log_prob * float("nan"))
            return result

    return Crooked()


def unfit_for_workers(observation_space: Any, action_space: Any) -> Any:
    """An MLP that the driver can make and a Ray worker cannot."""
    from distrl.policies.mlp import MLPPolicy

    if "default_worker" in sys.argv[0]:
        raise OSError("the toy policy's weights are not on this machine")
    return MLPPolicy(observation_space, action_space, (8,))


for name, entry in (("Toy-v0", Toy), ("Picture-v0", Picture)):
    if name not in gymnasium.registry:
        gymnasium.register(name, entry_point=entry, max_episode_steps=25)
