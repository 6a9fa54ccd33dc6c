"""PoolVectorEnv: a pool as an env group's vector env.

The pool steps and resets; this keeps the rest, so that it is the same for every library:

    time limit      counted here: the final observation is that of a whole step, and termination is told apart
    disabled        ended envs wait for `begin`
    next_step       ended envs are reset by the step that follows, whose row is told as a reset's
    lost life       told as `life_lost`; in a game that waits for FIRE the next step is FIRE, and told as `forced`
    snapshot        how each env came to where it is: seed, resets, actions (`Origin`)
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from distrl.envs.infos import entry_point_numbers
from distrl.envs.pools.protocol import Array, Origin, Pool
from distrl.maths.random import derive_seed

_FIRST_CAPACITY = 256


class PoolVectorEnv(VectorEnv[Array, Array, Array]):
    """Envs `first_env .. first_env + num_envs - 1` of a run, played by `pool`; limit 0 is none.

    Episode k of env e is seeded, where the pool seeds it, by `derive_seed(seed, "episode", e, k)`.
    An env that took more than `max_replay_steps` steps in its episode is not restored.
    """

    def __init__(
        self,
        pool: Pool,
        num_envs: int,
        autoreset_mode: AutoresetMode,
        limit: int,
        first_env: int,
        seed: int,
        max_replay_steps: int,
    ) -> None:
        self.pool, self.num_envs, self.limit = pool, num_envs, limit
        self.single_observation_space, self.single_action_space = pool.observation_space, pool.action_space
        self.observation_space = batch_space(pool.observation_space, num_envs)
        self.action_space = batch_space(pool.action_space, num_envs)
        self.autoreset_mode = autoreset_mode
        self.metadata = {"autoreset_mode": autoreset_mode}
        self._first_env, self._run_seed, self._max_replay_steps = first_env, seed, max_replay_steps
        self._fresh = True  # the next reset seeds all generators
        self._observation: Array = np.empty(0)
        self.episode = np.full(num_envs, -1)
        self.seeds = np.zeros(num_envs, np.int64)
        self.resets = np.zeros(num_envs, np.int64)
        self.elapsed = np.zeros(num_envs, np.int64)
        self.lives: Array | None = None
        self.pending = np.zeros(num_envs, np.bool_)  # next_step: the next step is a reset
        self._by_hand = np.zeros(num_envs, np.bool_)  # of these, the pool would not reset by itself
        self.firing = np.zeros(num_envs, np.bool_)  # the next action is FIRE
        self._history = _History(num_envs, pool.action_space)

    def episode_number(self, episode: int) -> None:
        """The next reset starts episode `episode` in every env."""
        self.episode[:] = episode - 1
        self._fresh = True

    def reset(
        self, *, seed: Any = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """The next episode in every env; its seeds are the run's, so `seed` is refused."""
        if seed is not None or options is not None:
            raise ValueError("a pool's seeds are the run's: reset takes neither seed nor options")
        return self.begin(np.ones(self.num_envs, np.bool_)), {}

    def begin(self, rows: NDArray[np.bool_]) -> Array:
        """The next episode in `rows` [N]; observations [N, ...], which elsewhere mean nothing."""
        self.episode += rows
        if self._fresh:
            self._fresh = False
            self.seeds = np.array(self._episode_seeds(), np.int64)
            observation, lives = self.pool.start(self.seeds.tolist())
            self.resets[:] = 0
            self._observation, self.lives = observation, None if lives is None else np.array(lives)
        else:
            observation = self._restart(rows)
        self._begun(rows)
        return observation

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """One step of each env by actions [N, ...]: observations, rewards float64 [N], two flags [N], infos."""
        forced, reset = self.firing, self.pending
        if self.pool.fire is not None and forced.any():
            actions = np.where(forced, self.pool.fire, actions)
        if self.pool.restorable:
            self._history.add(actions)
        observation, reward, terminated, lives, infos = self.pool.step(actions)
        reward = np.array(reward, np.float64)
        terminated = np.array(terminated, np.bool_)
        self.elapsed += ~forced
        truncated = self.elapsed >= self.limit if self.limit else np.zeros(self.num_envs, np.bool_)
        before, self._observation = self.lives, observation
        if lives is not None:
            self.lives = np.array(lives)
        if reset.any():
            observation = self._reset_by_step(reset, observation)
            reward[reset], terminated[reset], truncated[reset] = 0.0, False, False
        ended = terminated | truncated
        if self.autoreset_mode == AutoresetMode.NEXT_STEP:
            self.pending = ended
            self._by_hand = ended & ~terminated
        told: dict[str, Any] = {"forced": forced} if forced.any() else {}
        if self.lives is not None and before is not None:
            lost = (self.lives > 0) & (self.lives < before) & ~ended & ~reset
            self.firing = lost & (self.pool.fire is not None)
            if lost.any():
                told |= {"life_lost": lost, "life_final_obs": observation}
        if ended.any():
            told["numbers"] = lambda slot: entry_point_numbers(infos, slot)
        return observation, reward, terminated, truncated, told

    def snapshot(self) -> dict[str, Any]:
        """How each env came to where it is, as a state tree; `lost` [N] where that cannot be told."""
        whole = ~self.pending
        lost = whole & (self._history.lengths() > self._max_replay_steps)
        if not self.pool.restorable:
            lost[:] = True
        told = [
            {"actions": self._history.of(slot), "digest": _digest(self._observation[slot])}
            if whole[slot] and not lost[slot]
            else {}
            for slot in range(self.num_envs)
        ]
        numbers = {name: getattr(self, name).copy() for name in _NUMBERS}
        return {"envs": told, "lost": lost, "fresh": self._fresh, **numbers}

    def restore(self, state: dict[str, Any]) -> NDArray[np.bool_]:
        """Back to what `snapshot` gave; the rows [N] that could not be put back, whose next episode is to begin."""
        for name in _NUMBERS:
            getattr(self, name)[...] = state[name]
        self._fresh = bool(state["fresh"])
        lost = np.array(state["lost"], np.bool_)
        if not self.pool.restorable:
            self._fresh = True
            return np.ones_like(lost)
        none = np.zeros((0, *self._history.shape), self._history.dtype)
        taken = [np.asarray(env["actions"]) if env else none for env in state["envs"]]
        self._observation, lives = self.pool.replay(
            [
                Origin(int(self.seeds[slot]), int(self.resets[slot]), actions)
                for slot, actions in enumerate(taken)
            ]
        )
        self.lives = None if lives is None else np.array(lives)
        self._by_hand = self.pending.copy()  # it was not played to its end
        self._history.replace(taken)
        for slot, env in enumerate(state["envs"]):
            if env and _digest(self._observation[slot]) != env["digest"]:
                lost[slot] = True
        return lost

    def close_extras(self, **named: Any) -> None:
        """Ends the pool's threads."""
        self.pool.close()

    def _reset_by_step(self, rows: NDArray[np.bool_], observation: Array) -> Array:
        """next_step: `rows` that the pool has reset in this step, or has yet to; the observations [N, ...]."""
        self.episode += rows
        by_hand = rows & (self._by_hand | self._reseeds())
        self.resets += rows & ~by_hand
        if by_hand.any():
            observation = np.array(observation)
            observation[by_hand] = self._restart(by_hand)[by_hand]
            self._observation = observation
        self._begun(rows)
        return observation

    def _restart(self, rows: NDArray[np.bool_]) -> Array:
        """A reset of `rows` by the pool, seeded where it is time to."""
        seeded = rows & self._reseeds()
        parts = []
        if seeded.any():
            seeds = np.array(self._episode_seeds(), np.int64)
            self.seeds[seeded], self.resets[seeded] = seeds[seeded], 0
            parts.append((seeded, self.pool.restart(seeded, seeds.tolist())))
        if (rest := rows & ~seeded).any():
            self.resets += rest
            parts.append((rest, self.pool.restart(rest, None)))
        observation = parts[0][1][0]
        if len(parts) == 2:
            observation = np.array(observation)
        for part, (seen, lives) in parts:
            if seen is not parts[0][1][0]:
                observation[part] = seen[part]
            if lives is not None and self.lives is not None:
                self.lives[part] = lives[part]
        if self._observation is not observation:
            self._observation = np.array(self._observation)
            self._observation[rows] = observation[rows]
        return observation

    def _reseeds(self) -> NDArray[np.bool_]:
        every = self.pool.reseed_every
        return self.resets + 1 >= every if every else np.zeros(self.num_envs, np.bool_)

    def _begun(self, rows: NDArray[np.bool_]) -> None:
        self.elapsed[rows] = 0
        self.pending = self.pending & ~rows
        self._by_hand = self._by_hand & ~rows
        self.firing = self.firing & ~rows
        self._history.begin(rows)

    def _episode_seeds(self) -> list[int]:
        return [
            derive_seed(self._run_seed, "episode", self._first_env + slot, max(int(episode), 0))
            for slot, episode in enumerate(self.episode)
        ]


_NUMBERS = ("episode", "seeds", "resets", "elapsed", "pending", "firing")


class _History:
    """The actions of each env since its last reset."""

    def __init__(self, num_envs: int, space: Any) -> None:
        self.shape = tuple(space.shape or ())
        self.dtype = np.dtype(np.uint8) if getattr(space, "n", 1000) <= 256 else np.dtype(space.dtype)
        self._rows = np.zeros((_FIRST_CAPACITY, num_envs, *self.shape), self.dtype)
        self._written = 0
        self._since = np.zeros(num_envs, np.int64)

    def begin(self, rows: NDArray[np.bool_]) -> None:
        self._since[rows] = self._written

    def add(self, actions: Array) -> None:
        if self._written == len(self._rows):
            first = int(self._since.min())
            kept = self._rows[first:]
            size = len(self._rows) * (2 if len(kept) > len(self._rows) // 2 else 1)
            self._rows = np.zeros((size, *self._rows.shape[1:]), self.dtype)
            self._rows[: len(kept)] = kept
            self._written -= first
            self._since -= first
        self._rows[self._written] = actions
        self._written += 1

    def lengths(self) -> NDArray[np.int64]:
        return self._written - self._since

    def of(self, slot: int) -> Array:
        return self._rows[self._since[slot] : self._written, slot].copy()

    def replace(self, taken: list[Array]) -> None:
        longest = max(len(actions) for actions in taken)
        self._rows = np.zeros((max(2 * longest, _FIRST_CAPACITY), len(taken), *self.shape), self.dtype)
        for slot, actions in enumerate(taken):
            self._rows[longest - len(actions) : longest, slot] = actions
            self._since[slot] = longest - len(actions)
        self._written = longest


def _digest(observation: Array) -> str:
    return hashlib.sha256(np.ascontiguousarray(observation).tobytes()).hexdigest()
