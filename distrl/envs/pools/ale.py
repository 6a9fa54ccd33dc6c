"""ALE's own AtariVectorEnv as a pool: games with the standard preprocessing, on threads of ALE's.

What it shows is what `AtariGame` shows, but for the first rows of a game: FIRE is pressed once and before the
0 to 29 no-ops, and the stack begins with black frames.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from distrl.envs.pools.protocol import Array, Moved, Origin

NO_LIMIT = 10**9  # frames; the limit is counted by the caller
FRAME_SKIP = 4
RESEED_EVERY = 50  # a seeded reset costs 15 others; a restore repeats those since the last seeded one
_FIRE = 1


class AlePool:
    """N games. `sticky`: the probability that a frame repeats the action of the one before."""

    restorable = True

    def __init__(
        self,
        game: str,
        num_envs: int,
        frame_stack: int,
        sticky: float,
        full_action_space: bool,
        num_threads: int,
    ) -> None:
        from ale_py.vector_env import AtariVectorEnv

        self.num_envs = num_envs
        self._vector: Any = AtariVectorEnv(
            game,
            num_envs,
            num_threads=num_threads,
            stack_num=frame_stack,
            frameskip=FRAME_SKIP,
            max_num_frames_per_episode=NO_LIMIT,
            repeat_action_probability=sticky,
            full_action_space=full_action_space,
            reward_clipping=False,
        )
        self.observation_space = self._vector.single_observation_space
        self.action_space = self._vector.single_action_space
        meanings = [action.name for action in self._vector.ale.get_action_set()]
        self.fire = _FIRE if len(meanings) >= 3 and meanings[_FIRE] == "FIRE" else None
        self.reseed_every = RESEED_EVERY if sticky == 0 else 1  # sticky actions draw at each frame

    def start(self, seeds: list[int]) -> tuple[Array, Array | None]:
        """See `Pool`."""
        observation, infos = self._vector.reset(seed=np.array(seeds, np.int64))
        return observation, infos["lives"]

    def restart(self, rows: NDArray[np.bool_], seeds: list[int] | None) -> tuple[Array, Array | None]:
        """See `Pool`."""
        given = None if seeds is None else np.array(seeds, np.int64)[rows]
        observation, infos = self._vector.reset(seed=given, options={"reset_mask": rows})
        return observation, infos["lives"]

    def step(self, actions: Array) -> Moved:
        """See `Pool`."""
        observation, reward, terminated, _, infos = self._vector.step(np.asarray(actions, np.int64))
        return Moved(
            observation, reward, terminated, infos["lives"], {"episode_frames": infos["episode_frame_number"]}
        )

    def replay(self, origins: list[Origin]) -> tuple[Array, Array | None]:
        """See `Pool`. All games step together, so one with fewer actions is reset when its turn comes."""
        longest = max(len(origin.actions) for origin in origins)
        seeds = [origin.seed for origin in origins]
        observation, lives = self.start(seeds)
        actions = np.zeros(self.num_envs, np.int64)
        for step in range(longest + 1):
            for slot, origin in enumerate(origins):
                waits = longest - len(origin.actions)
                if step == waits:
                    row = np.arange(self.num_envs) == slot
                    observation, lives = self.restart(row, seeds)
                    for _ in range(origin.resets):
                        observation, lives = self.restart(row, None)
                actions[slot] = origin.actions[step - waits] if waits <= step < longest else 0
            if step < longest:
                observation, _, _, lives, _ = self.step(actions)
        return observation, lives

    def close(self) -> None:
        """See `Pool`."""
        self._vector = None
