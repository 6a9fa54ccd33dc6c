"""What the checks of observations, rewards and flags cost a step of an env group.

    python benchmarks/env_checks.py

Per env step, in microseconds: the group as it is (`warn`), the same with bounds not looked at (`off`), and Gymnasium's bare
SyncVectorEnv around the same envs. CPU time, best of 5 rounds, so that a busy machine does not count.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from distrl.envs import EnvGroup, EnvSpec

NUM_ENVS, STEPS, ROUNDS = 8, 400, 5


class Pictures(gymnasium.Env[Any, Any]):
    """84x84x4 bytes, or floats in [0, 1], which cost nothing to make."""

    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, floats: bool = False) -> None:
        dtype, high = (np.float32, 1) if floats else (np.uint8, 255)
        self.observation_space = gymnasium.spaces.Box(0, high, (84, 84, 4), dtype)
        self.picture = np.ones((84, 84, 4), dtype)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        return self.picture, {}

    def step(self, action: Any) -> Any:
        return self.picture, 1.0, False, False, {}


def best_us(step: Callable[[Any], Any]) -> float:
    """Microseconds a step of one env."""
    action = np.zeros(NUM_ENVS, np.int64)
    rounds = []
    for _ in range(ROUNDS):
        started = time.process_time()
        for number in range(STEPS):
            action[:] = number % 2
            step(action)
        rounds.append(time.process_time() - started)
    return min(rounds) / STEPS / NUM_ENVS * 1e6


def measured(env_id: str, **kwargs: Any) -> dict[str, float]:
    """All three ways of one env."""
    found = {}
    for check in ("warn", "off"):
        group = EnvGroup(EnvSpec(env_id, kwargs, check_observations=check), 0, NUM_ENVS, 0, 1)
        group.start()
        found[f"group, {check}"] = best_us(group.step)
        group.close()
    bare = SyncVectorEnv(
        [lambda: gymnasium.make(env_id, **kwargs)] * NUM_ENVS,
        copy=False,
        autoreset_mode=AutoresetMode.NEXT_STEP,
    )
    bare.reset(seed=1)
    found["bare SyncVectorEnv"] = best_us(bare.step)
    bare.close()
    return {name: round(value, 2) for name, value in found.items()}


def main() -> None:
    gymnasium.register("Pictures-v0", Pictures)
    cases: list[tuple[str, str, dict[str, Any]]] = [
        ("CartPole-v1 in Python", "CartPole-v1", {}),
        ("84x84x4 bytes", "Pictures-v0", {}),
        ("84x84x4 float32 in [0, 1]", "Pictures-v0", {"floats": True}),
    ]
    print(json.dumps({name: measured(env_id, **kwargs) for name, env_id, kwargs in cases}, indent=1))


if __name__ == "__main__":
    main()
