"""A native env as one `gymnasium.Env`: for wrappers, `distrl doctor`, and whoever wants a single one."""

from __future__ import annotations

import functools
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec

from distrl.envs.native.protocol import NativeEnv
from distrl.envs.native.vector import NativeVectorEnv


class NativeSingleEnv(gymnasium.Env[Any, Any]):
    """One env of a native kind, without its time limit, which is a wrapper's. Exact `snapshot` and `restore`."""

    def __init__(self, env: NativeEnv) -> None:
        self.vector = NativeVectorEnv(env, 1, "Disabled")
        self.vector.limit = 0
        self.observation_space, self.action_space = env.observation_space, env.action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        observation, info = self.vector.reset(seed=seed)
        return observation[0], info

    def step(self, action: Any) -> Any:
        observation, reward, terminated, _, info = self.vector.step(np.asarray(action)[None])
        return observation[0], float(reward[0]), bool(terminated[0]), False, info

    def snapshot(self) -> dict[str, Any]:
        """All that the next step depends on."""
        return self.vector.snapshot()

    def restore(self, state: dict[str, Any]) -> None:
        """Back to what `snapshot` gave."""
        self.vector.restore(state)

    def draw_from(self, generator: np.random.Generator) -> None:
        """From here on its draws follow from this generator."""
        self.vector.rng[0] = generator.integers(0, 2**64, 4, dtype=np.uint64)
        self.vector.rng[0, 3] |= np.uint64(1)  # PCG64's increment is odd


def registered_as(name: str, env: Any) -> EnvSpec | None:
    """Gymnasium's spec of one's own NativeEnv; None where it is no such thing."""
    if not isinstance(env, NativeEnv):
        return None
    point: Any = functools.partial(NativeSingleEnv, env)
    return EnvSpec(id=name, entry_point=point, max_episode_steps=env.max_episode_steps)
