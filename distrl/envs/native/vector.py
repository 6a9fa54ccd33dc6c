"""A Gymnasium vector env over any native env: `NativeVectorEnv("CartPole-v1", 64)`, or over one's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from distrl.envs.native.kernels import action_of, kernels
from distrl.envs.native.protocol import NativeEnv
from distrl.maths.random_kernels import seed_generator

Array = NDArray[Any]


class NativeVectorEnv(VectorEnv[Array, Array, Array]):
    """N envs stepped by one compiled loop. The three autoreset modes are Gymnasium's; `reset` takes a seed for all
    (env n gets seed + n), one for each, and in DISABLED mode `options={"reset_mask": mask}`.

    Without a seed an episode goes on with its env's generator, as Gymnasium's do. Observations, rewards and flags
    given are new arrays unless `copy` is False. `snapshot` and `restore` are exact, in this process or another.

    Raises ValueError for a seed, mask or action that does not fit, BadInput for an env that is unknown.
    """

    def __init__(
        self,
        env: NativeEnv | str,
        num_envs: int = 1,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        max_episode_steps: int | None = None,
        copy: bool = True,
    ) -> None:
        if isinstance(env, str):
            from distrl.envs.native.choice import native_env

            env, limit = native_env(env)
            max_episode_steps = max_episode_steps or limit
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}")
        self.env = env
        self.num_envs = num_envs
        self.single_observation_space, self.single_action_space = env.observation_space, env.action_space
        self.observation_space = batch_space(env.observation_space, num_envs)
        self.action_space = batch_space(env.action_space, num_envs)
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {"autoreset_mode": self.autoreset_mode}
        self.limit = max_episode_steps or env.max_episode_steps or 0
        self.copy = copy
        self.kernels = kernels(env)
        self.state = np.zeros((num_envs, env.state_size))
        self.rng = np.zeros((num_envs, 4), np.uint64)
        self.elapsed = np.zeros(num_envs, np.int64)
        self.observation = np.zeros((num_envs, *env.observation_space.shape), np.float32)
        self.pending = np.zeros(num_envs, np.bool_)  # next_step: the next step is a reset
        self._none = np.zeros(num_envs, np.bool_)
        self._seeded = False
        self._compile()

    def _compile(self) -> None:
        """Here, and not in a step that somebody waits for: compiles, or reads Numba's cache, by moving no env."""
        seeds, action = (
            np.zeros(self.num_envs, np.uint64),
            action_of(np.zeros_like(self.action_space.sample())),
        )
        self.begin(self._none, seeds)
        self.kernels.begin_unseeded(self.state, self.rng, self.elapsed, self._none, self.observation)
        self.kernels.step(
            self.state, self.rng, self.elapsed, self.limit, action, ~self._none, self.observation,
            np.empty(self.num_envs), self._none.copy(), self._none.copy(),
        )  # fmt: skip

    def reset(  # type: ignore[override]
        self,
        *,
        seed: int | Sequence[int | None] | Array | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Array, dict[str, Any]]:
        """New episodes, where the mask of `options` says so; (observations [N, ...], {})."""
        mask = self._mask(options)
        seeds, given = self._seeds(seed)
        self.begin(mask & given, seeds)
        if not given.all() and (rest := mask & ~given).any():
            self.kernels.begin_unseeded(self.state, self.rng, self.elapsed, rest, self.observation)
        self.pending &= ~mask
        return self._shown(self.observation), {}

    def begin(self, mask: Array, seeds: Array) -> None:
        """New episodes where mask [N], from seeds [N], uint64."""
        self.kernels.begin(self.state, self.rng, self.elapsed, seeds, mask, self.observation)

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """One step of each env by actions [N, ...]: observations, rewards float64 [N], two flags [N], infos."""
        actions = np.asarray(actions)
        if actions.shape != self.action_space.shape:
            raise ValueError(f"actions must have shape {self.action_space.shape}, got {actions.shape}")
        reward = np.empty(self.num_envs)
        terminated, truncated = np.empty(self.num_envs, np.bool_), np.empty(self.num_envs, np.bool_)
        skip = self.pending if self.autoreset_mode == AutoresetMode.NEXT_STEP else self._none
        if skip.any():
            self.kernels.begin_unseeded(self.state, self.rng, self.elapsed, skip, self.observation)
        self.kernels.step(
            self.state, self.rng, self.elapsed, self.limit, action_of(actions.astype(self.action_space.dtype, copy=False)),
            skip, self.observation, reward, terminated, truncated,
        )  # fmt: skip
        infos: dict[str, Any] = {}
        ended = terminated | truncated
        if self.autoreset_mode == AutoresetMode.NEXT_STEP:
            self.pending = ended
        elif self.autoreset_mode == AutoresetMode.SAME_STEP and ended.any():
            infos = {"final_obs": _rows(self.observation, ended), "_final_obs": ended.copy(),
                     "final_info": {}, "_final_info": ended.copy()}  # fmt: skip
            self.kernels.begin_unseeded(self.state, self.rng, self.elapsed, ended, self.observation)
        return self._shown(self.observation), reward, terminated, truncated, infos

    def snapshot(self) -> dict[str, Any]:
        """All that the next step depends on, as a state tree of arrays."""
        return {
            "state": self.state.copy(),
            "rng": self.rng.copy(),
            "elapsed": self.elapsed.copy(),
            "observation": self.observation.copy(),
            "pending": self.pending.copy(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Back to what `snapshot` gave. ValueError where it is of other envs."""
        for name, value in state.items():
            own = getattr(self, name)
            value = np.asarray(value)
            if value.shape != own.shape:
                raise ValueError(f"the snapshot's {name} has shape {value.shape}, these envs' is {own.shape}")
            own[...] = value
        self._seeded = True

    def _shown(self, observation: Array) -> Array:
        return observation.copy() if self.copy else observation

    def _mask(self, options: dict[str, Any] | None) -> Array:
        if options is None or "reset_mask" not in options:
            return np.ones(self.num_envs, np.bool_)
        mask = np.asarray(options["reset_mask"])
        if mask.shape != (self.num_envs,) or mask.dtype != np.bool_ or not mask.any():
            raise ValueError(
                f"options['reset_mask'] must be a bool array of shape ({self.num_envs},) with a True in it, "
                f"got {mask!r}"
            )
        if self.autoreset_mode != AutoresetMode.DISABLED:
            raise ValueError(
                f"reset_mask is for autoreset mode DISABLED; this env resets by itself: {self.autoreset_mode}"
            )
        return mask

    def _seeds(self, seed: Any) -> tuple[Array, Array]:
        """(seeds [N] uint64, which of them were given [N])."""
        given = np.ones(self.num_envs, np.bool_)
        if seed is None:
            seeds: list[Any] = [None] * self.num_envs
        elif np.ndim(seed) == 0:
            seeds = [int(seed) + n for n in range(self.num_envs)]
        else:
            seeds = list(seed)
        if len(seeds) != self.num_envs:
            raise ValueError(f"seed must be one number or {self.num_envs}, got {len(seeds)}")
        out = np.zeros(self.num_envs, np.uint64)
        for n, one in enumerate(seeds):
            if one is None:
                given[n] = False
            elif not 0 <= int(one) < 1 << 64:
                raise ValueError(f"a seed must lie in 0..2**64-1, got {one}")
            else:
                out[n] = int(one)
        if not given.all() and not self._seeded:
            fresh = np.random.SeedSequence().generate_state(self.num_envs, np.uint64)
            for n in np.flatnonzero(~given).tolist():
                seed_generator(self.rng[n], fresh[n])
        self._seeded = True
        return out, given


def _rows(observation: Array, mask: Array) -> Array:
    """Gymnasium's own form of final observations: an object array [N], None elsewhere."""
    rows = np.full(len(observation), None, object)
    for n in np.flatnonzero(mask):
        rows[n] = observation[n].copy()
    return rows
