"""EnvPool as a pool: its generators are seeded when it is made, and never again."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distrl.envs.pools.protocol import Array, Moved, Origin

NO_LIMIT = 2**30  # steps; the limit is counted by the caller
# What EnvPool has of these draws at resets alone, which a test tries; other families draw at steps too.
_DRAW_AT_RESETS = ("envpool.classic_control", "envpool.mujoco.gym", "envpool.atari")
_UNTOLD = {"env_id", "elapsed_step", "lives", "reward", "terminated"}


class EnvPoolPool:
    """N envs of EnvPool's `env_id`, with `options` of its configuration; `fire` as in `Pool`."""

    reseed_every = 0

    def __init__(self, env_id: str, num_envs: int, options: dict[str, Any], fire: int | None = None) -> None:
        import envpool

        self._make = envpool.make
        self._env_id, self.num_envs, self._options = env_id, num_envs, options
        self._pool: Any = self._made([0] * num_envs)
        self.observation_space = self._pool.single_observation_space
        self.action_space = self._pool.single_action_space
        family = envpool.registration.registry.specs[env_id][0]
        config = self._pool.config
        self.restorable = family in _DRAW_AT_RESETS and not config.get("repeat_action_probability", 0)
        self.fire = fire

    def start(self, seeds: list[int]) -> tuple[Array, Array | None]:
        """See `Pool`."""
        self._pool = self._made(seeds)
        observation, infos = self._pool.reset()
        return observation, infos.get("lives")

    def restart(self, rows: NDArray[np.bool_], seeds: list[int] | None) -> tuple[Array, Array | None]:
        """See `Pool`."""
        chosen = np.flatnonzero(rows).astype(np.int32)
        some, infos = self._pool.reset(chosen)
        observation = np.zeros((self.num_envs, *some.shape[1:]), some.dtype)
        observation[rows] = some
        if "lives" not in infos:
            return observation, None
        lives = np.zeros(self.num_envs, np.int32)
        lives[rows] = infos["lives"]
        return observation, lives

    def step(self, actions: Array) -> Moved:
        """See `Pool`."""
        observation, reward, terminated, truncated, infos = self._pool.step(np.asarray(actions))
        told = {
            name: values
            for name, values in infos.items()
            if name not in _UNTOLD and isinstance(values, np.ndarray) and values.shape == (self.num_envs,)
        }
        return Moved(observation, reward, terminated | truncated, infos.get("lives"), told)

    def replay(self, origins: list[Origin]) -> tuple[Array, Array | None]:
        """See `Pool`."""
        observation, lives = self.start([origin.seed for origin in origins])
        observation = np.array(observation)
        lives = None if lives is None else np.array(lives)
        resets = np.array([origin.resets for origin in origins])
        for again in range(int(resets.max())):
            rows = resets > again
            seen, left = self.restart(rows, None)
            observation[rows] = seen[rows]
            if lives is not None and left is not None:
                lives[rows] = left[rows]
        lengths = np.array([len(origin.actions) for origin in origins])
        for step in range(int(lengths.max())):
            rows = np.flatnonzero(lengths > step).astype(np.int32)
            actions = np.stack([origins[slot].actions[step] for slot in rows.tolist()])
            seen, _, _, _, infos = self._pool.step(actions, rows)
            observation[rows] = seen
            if lives is not None:
                lives[rows] = infos["lives"]
        return observation, lives

    def close(self) -> None:
        """See `Pool`."""
        self._pool = None

    def _made(self, seeds: list[int]) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Gymnasium, on EnvPool's bounds being float64
            pool = self._make(
                self._env_id,
                env_type="gymnasium",
                num_envs=self.num_envs,
                env_seed=seeds,
                max_episode_steps=NO_LIMIT,
                **self._options,
            )
            _ = pool.observation_space, pool.action_space  # made once, at the first look
        return pool
