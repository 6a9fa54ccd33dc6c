"""EnvGroup: a fixed batch of environments, the unit of collection that can be put back exactly.

One step, in gymnasium's three autoreset modes (s' where the transition arrived, o the next observation):

    disabled    step -> s'; where done, reset with a seed of our choosing -> o       (all rows valid)
    same_step   step -> o, and s' in the info where done                             (all rows valid)
    next_step   step -> s' = o; where done, the next step is a reset: its action is
                ignored, its reward 0, and its row not valid

The rest is the same: the caller sees s' as `final_observation` and o as `group.observation`.
N is the number of environments of the group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from distrl.envs import group_state, running_statistics
from distrl.envs import infos as info_arrays
from distrl.envs.calls import Calls
from distrl.envs.masks import KEY, mask_parts, read_masks
from distrl.envs.native.single import NativeSingleEnv
from distrl.envs.native.vector import NativeVectorEnv
from distrl.envs.observations import LARGEST_REWARD, Outside, Ranges
from distrl.envs.results import Episode, StepResult, replaced
from distrl.envs.snapshots import has_own
from distrl.envs.spaces import ObservationReader, check_supported
from distrl.envs.spec import EnvSpec
from distrl.envs.vector import make_vector, reset_rows
from distrl.errors import BadInput, RunFailed
from distrl.maths.random import derive_seed
from distrl.maths.random_kernels import derived_seeds
from distrl.trees import Tree

Array = NDArray[Any]
_MAX_FIRST_OBSERVATIONS = 10
SAFE_SQUARES = 1e70  # a sum of squared rewards below it: none is infinite in float32
LEAVES_SPACE = " leaves its space: "
HOW_TO_GO_ON = "; fix the env, or drop such episodes with --nonfinite drop"


class EnvGroup:
    """Envs `first_env .. first_env + num_envs - 1` of a run, which are all that decides its episodes.

    Episode k of env e starts with seed `derive_seed(seed, "episode", e, k)`. All arrays that it gives are
    new at each step. `reproducibility` is "exact" until an episode was or would be lost: then "episode".
    `warnings` collects messages for the user, a line each.

    Raises BadInput where the environment cannot be made; `start`, `step` and `reset_all` raise RunFailed
    where it fails while it runs.
    """

    def __init__(self, spec: EnvSpec, index: int, num_envs: int, first_env: int, seed: int) -> None:
        self.spec, self.index, self.seed = spec, index, seed
        self.num_envs, self.first_env = num_envs, first_env
        self.reproducibility = "exact"
        self.warnings: list[str] = []
        self.dropped = 0
        self._vector: Any = make_vector(spec, num_envs, first_env, seed)
        self.is_wrapped = spec.vectorization != "vector_entry_point" and not (spec.is_native or spec.is_pool)
        self.observation_space: gymnasium.Space[Any] = self._vector.single_observation_space
        self.action_space: gymnasium.Space[Any] = self._vector.single_action_space
        try:
            check_supported(self.observation_space, self.action_space, spec.env_id)
        except BadInput:
            self._vector.close()
            raise
        self._reader = ObservationReader(self.observation_space)
        self._ranges = Ranges(self.observation_space, spec.check_observations != "off" and not spec.is_native)
        kind = "wrapped" if self.is_wrapped else "own" if spec.is_native or spec.is_pool else "entry_point"
        self._own_infos = info_arrays.READERS[kind]
        self._clip = spec.is_atari()
        self._next_step = spec.autoreset == "next_step"
        self._all_valid = np.ones(num_envs, np.bool_)
        self._all_valid.flags.writeable = False
        self.observation: Tree = None
        self.action_mask: Array | None = None
        self.episode_start = np.ones(num_envs, np.bool_)
        self.running_return = np.zeros(num_envs)
        self.running_length = np.zeros(num_envs, np.int64)
        self.episode = np.full(num_envs, -1)
        self.resetting = np.zeros(num_envs, np.bool_)  # next_step: the next step is a reset
        self.calls = Calls(self._vector, spec, index, first_env)
        self.has_own = not self.is_wrapped and spec.own_snapshots and has_own(self._vector.unwrapped)
        if not self.is_wrapped and not self.has_own:
            self.lose(
                f"{spec.env_id} as vector_entry_point has no snapshot(): a recovery starts fresh episodes"
            )
        if spec.is_pool and not self.calls.vector.pool.restorable:
            way_out = "gymnasium"
            if self._clip:
                way_out += " or ale, or --env-kwargs.repeat-action-probability 0"
            self.lose(
                f"{spec.env_id} may draw at every step, which EnvPool cannot repeat: a recovery starts fresh episodes; "
                f"to have them put back, use --env-backend {way_out}"
            )

    def start(self) -> None:
        """The first episodes; after `restore`, nothing."""
        if self.observation is None:
            self.reset_all(0)

    def reset_all(self, episode: int) -> None:
        """Starts episode number `episode` in every env; running ones end uncounted."""
        self.episode[:] = episode - 1
        self.resetting[:] = False
        if self.is_wrapped:
            self.watched(self._vector.call, "episode_number", episode)
        elif self.spec.is_pool:
            self._vector.episode_number(episode)
        self.observation = None
        self.observation = self._reset(self._all_valid, None)
        self.episode_start = np.ones(self.num_envs, np.bool_)

    def step(self, action: Array) -> StepResult:
        """All envs one step on, by `action` [N, ...] in the env's own format."""
        raw, reward, terminated, truncated, infos = self.watched(self._vector.step, action)
        if not self.is_wrapped:  # an env's own arrays may be its memory
            terminated, truncated = (np.array(terminated, np.bool_), np.array(truncated, np.bool_))
        if (outside := self._ranges.outside(raw)) is not None:
            self._outside(outside)
        observation, finite = self._reader.read(raw)
        valid, start = self._all_valid, None
        if self._next_step:
            start = self.resetting
            valid = ~start
            self.episode += start
        self.running_return += reward
        self.running_length += valid
        with np.errstate(over="ignore"):  # looked at below
            learned = (np.sign(reward) if self._clip else reward).astype(np.float32)
        ended = terminated | truncated
        over, final, bad = ended, observation, None
        if start is None:
            start = ended
        if infos or self.action_mask is not None:
            infos = self._own_infos(infos, self.num_envs) if infos else infos
            final, lost_life = self._read_infos(infos, ended, observation)
            if lost_life is not None:
                terminated, start = terminated | lost_life, start | lost_life
            if "forced" in infos:  # the first step of a life, which the env chose itself
                forced = infos["forced"]
                valid, start, learned[forced] = valid & ~forced, start | forced, 0.0
                self.running_length -= forced
        if not finite or final is not observation or not float(np.vdot(reward, reward)) < SAFE_SQUARES:
            bad = self._nonfinite(final, reward, self._all_valid)
            if bad.any():
                final = replaced(final, self.observation, bad)
                learned[bad] = 0.0
                terminated, truncated = terminated & ~bad, truncated | bad
                valid, start, over = valid & ~bad, start | bad, over | bad
        episodes: list[Episode] = []
        if over.any():
            episodes = self._episodes(over if bad is None else over & ~bad, infos)
            self.running_return[over] = 0.0
            self.running_length[over] = 0
            observation = self._begin_next(ended, bad, observation, infos)
        elif self._next_step:
            self.resetting = ended
        self.observation, self.episode_start = observation, start
        return StepResult(learned, terminated, truncated, valid, final, episodes)

    def snapshot(self) -> dict[str, Any]:
        """Everything that the next step depends on, as a state tree: nested dicts and lists of arrays,
        strings and numbers. Before `start`, only that nothing has begun."""
        return group_state.capture(self)

    def restore(self, state: dict[str, Any]) -> None:
        """Back to `state`, in this or another process. An episode that cannot be put back is replaced by the
        next one of its env, with a warning, and `reproducibility` becomes "episode"."""
        lost = group_state.put_back(self, state)
        if lost.any():
            self.observation = self._reset(lost, self.observation)

    @property
    def native(self) -> NativeVectorEnv:
        """The vector env, where it is native: a fused rollout changes its arrays, and those of the running episodes."""
        vector: NativeVectorEnv = self._vector
        return vector

    def draw_from(self, generators: Sequence[np.random.Generator]) -> None:
        """From here on each env that draws at all draws from its own of `generators` [N], for envs of this process
        (`sync`). What follows is no longer that of (seed, env, episode)."""
        for env, generator in zip(self._vector.envs, generators, strict=True):
            if isinstance(env.unwrapped, NativeSingleEnv):
                env.unwrapped.draw_from(generator)
            elif env.unwrapped._np_random is not None:
                env.unwrapped.np_random = generator

    @property
    def first_single_env(self) -> gymnasium.Env[Any, Any]:
        """The first env with all its wrappers but distrl's own, for envs of this process (`sync`)."""
        env: gymnasium.Env[Any, Any] = self._vector.envs[0].env
        return env

    @property
    def max_episode_steps(self) -> int | None:
        """The time limit of an episode, in steps; None where there is none that Gymnasium knows of."""
        return self.spec.max_episode_steps or self.spec.registered().max_episode_steps

    def running_statistics(self) -> list[tuple[str, str | None]]:
        """The layers of its envs that keep running statistics, with the flag to use instead of each."""
        if self.is_wrapped:
            return list(self._vector.call("running_statistics")[0])
        return running_statistics.found(self._vector)

    def render(self) -> Any:
        """What the first env's `render()` gives; a picture, where it was made with `render_mode="rgb_array"`."""
        return self._vector.envs[0].render()

    @property
    def metadata(self) -> Any:
        """The envs' own metadata, where they have some."""
        return self._vector.metadata

    def close(self) -> None:
        """Ends the envs and their processes; what an env's `close` raises is said, unless it was never reset. The group is
        of no use afterwards."""
        self.calls.close(quietly=self.observation is None)

    def watched(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Calls into the vector env, watched; what it raises becomes RunFailed."""
        return self.calls.watched(function, *arguments, **named)

    # -- inside -----------------------------------------------------------------------------------

    def _reset(self, mask: Array, previous: Tree) -> Tree:
        """The observations [N, ...] after the next episode began where `mask`; elsewhere `previous`."""
        for _ in range(_MAX_FIRST_OBSERVATIONS):
            self.episode += mask
            raw, infos = self.watched(reset_rows, self._vector, mask, self._episode_seeds(mask))
            observation, finite = self._reader.read(raw)
            if previous is not None:
                observation = replaced(previous, observation, mask)
            self.running_return[mask] = 0.0
            self.running_length[mask] = 0
            self.resetting = self.resetting & ~mask
            if (outside := self._ranges.outside(raw)) is not None and mask[outside.slot]:
                self._outside(outside)
            if infos:
                infos = self._own_infos(infos, self.num_envs)
            self._notice(infos, mask)
            if "unlearned_reward" in infos:
                self.running_return += infos["unlearned_reward"]
            if finite:
                return observation
            mask, previous = self._nonfinite(observation, None, mask), observation
            if not mask.any():
                return observation
        raise RunFailed(
            f"{self.calls.who(int(np.argmax(mask)))}: the first observations of {_MAX_FIRST_OBSERVATIONS} episodes "
            "in a row were NaN or Inf"
        )

    def _episode_seeds(self, mask: Array) -> Any:
        """Of the running episodes, [N]; where not `mask`, anything."""
        if self.spec.is_native:
            envs = np.arange(self.first_env, self.first_env + self.num_envs)
            return derived_seeds(self.seed, "episode", envs, np.maximum(self.episode, 0))
        return [self._episode_seed(slot) if mask[slot] else 0 for slot in range(self.num_envs)]

    def _episode_seed(self, slot: int) -> int:
        return derive_seed(self.seed, "episode", self.first_env + slot, max(int(self.episode[slot]), 0))

    def _begin_next(self, ended: Array, bad: Array | None, observation: Tree, infos: dict[str, Any]) -> Tree:
        """The next observation, where episodes have `ended` by the env, or by force because they are `bad`."""
        bad = np.zeros(self.num_envs, np.bool_) if bad is None else bad
        if self.spec.autoreset == "disabled":
            return self._reset(ended | bad, observation)
        if self._next_step:
            self.resetting = ended & ~bad
            forced = bad
        else:
            self.episode += ended
            if "unlearned_reward" in infos:  # of the reset inside this step
                self.running_return += infos["unlearned_reward"] * ended
            forced = (bad & ~ended) | self._nonfinite(observation, None, ended)
        return self._reset(forced, observation) if forced.any() else observation

    def _read_infos(
        self, infos: dict[str, Any], ended: Array, observation: Tree
    ) -> tuple[Tree, Array | None]:
        """(where the transitions truly arrived, who lost a life and plays on [N] or None)."""
        final, same_step = observation, self.spec.autoreset == "same_step"
        self._notice(infos, self._all_valid, None if same_step else ended)
        if "unlearned_reward" in infos:
            self.running_return += (
                infos["unlearned_reward"] * ~ended if same_step else infos["unlearned_reward"]
            )
        if "final_unlearned_reward" in infos:
            self.running_return += infos["final_unlearned_reward"]
        if "final_obs" in infos and ended.any():
            final = info_arrays.with_rows(observation, infos["final_obs"], ended, self.observation_space)
        if "life_lost" not in infos:
            return final, None
        lost_life = infos["life_lost"].astype(np.bool_) & ~ended
        return info_arrays.with_rows(
            final, infos["life_final_obs"], lost_life, self.observation_space
        ), lost_life

    def _notice(self, infos: dict[str, Any], rows: Array, over: Array | None = None) -> None:
        """Action masks of `rows`, which have new observations or are `over`, and restarts."""
        masks = mask_parts(self.action_space)
        if KEY in infos and not masks:
            self._warn(
                f"{self.spec.env_id} gives an action_mask, which {self.action_space} does not take: ignored"
            )
        elif KEY in infos:
            told = infos["_action_mask"]
            given = read_masks(self.action_space, infos[KEY], told & rows, self._who_now, over)
            self._miss_masks(rows & ~told if over is None else rows & ~told & ~over)
            if self.action_mask is None and self.observation is not None:
                raise RunFailed(
                    f"env group {self.index} ({self.spec.env_id}) gives its first action_mask in the info of "
                    f"{'a step' if rows is self._all_valid else 'a later reset'}; give one in that of every reset and "
                    "step, true where an action may be taken"
                )
            old = self.action_mask if self.action_mask is not None else np.ones_like(given)
            self.action_mask = np.where(rows[:, None], given, old)
        elif self.action_mask is not None:
            self._miss_masks(rows if over is None else rows & ~over)
            self.action_mask = self.action_mask | rows[:, None]
        for message in infos.get("env_restarted", ()):
            self._warn(message)

    def _who_now(self, slot: int) -> str:
        return f"{self.calls.who(slot)}: step {int(self.running_length[slot])} of its episode"

    def _miss_masks(self, rows: Array) -> None:
        """Says once that `rows` gave no mask where others were given before."""
        if rows.any():
            self._warn(
                f"{self.spec.env_id} gives an action_mask at some steps and none at others: without one, every action "
                "is taken as legal"
            )

    def _nonfinite(self, observation: Tree, reward: Array | None, among: Array) -> Array:
        """Rows [N] of `among` with a NaN or Inf: counted where they may be dropped, else RunFailed."""
        rows, key = self._reader.nonfinite_rows(observation)
        bad = (rows if reward is None else rows | ~(np.abs(reward) <= LARGEST_REWARD)) & among
        if not bad.any():
            return bad
        slot = int(np.argmax(bad))
        given = math.nan if reward is None or rows[slot] else float(reward[slot])
        too_large = given if math.isfinite(given) else None
        message = self.not_finite(slot, key if rows[slot] else "reward", too_large)
        if self.spec.nonfinite == "fail":
            raise RunFailed(message + HOW_TO_GO_ON)
        self.dropped += int(bad.sum())
        self._warn(f"{message}; dropped")
        return bad

    def not_finite(self, slot: int, what: str, too_large: float | None = None) -> str:
        """Says that the env at `slot` gave a NaN or Inf as `what`, or what float32 cannot hold, and in which episode."""
        is_bad = "is NaN or Inf" if too_large is None else f"is {too_large:g}, infinite in float32,"
        return (
            f"{self.calls.who(slot)}: {what} {is_bad} at step {int(self.running_length[slot])} "
            f"of the episode with reset seed {self._episode_seed(slot)}"
        )

    def _outside(self, found: Outside) -> None:
        """An entry of an observation is not in its space: RunFailed, or for a Box's bounds a warning, once a leaf."""
        if not found.is_box or self.spec.check_observations == "error":
            raise RunFailed(
                f"{self.calls.who(found.slot)}: observation{found.key} is outside its space at step "
                f"{int(self.running_length[found.slot]) + 1} of the episode with reset seed "
                f"{self._episode_seed(found.slot)}: {found}"
            )
        self._ranges.forget_boxes(found.key)
        self._warn(
            f"{self.spec.env_id}: observation{found.key}{LEAVES_SPACE}{found} (env "
            f"{self.first_env + found.slot}); --check-observations error makes it an error"
        )

    def _episodes(self, over: Array, infos: dict[str, Any]) -> list[Episode]:
        numbers = infos.get("numbers", lambda slot: {})
        return [
            Episode(
                self.first_env + int(slot),
                float(self.running_return[slot]),
                int(self.running_length[slot]),
                numbers(int(slot)),
            )
            for slot in np.flatnonzero(over)
        ]

    def lose(self, message: str) -> None:
        """An episode was or would be lost; says so."""
        self.reproducibility = "episode"
        self._warn(message)

    def _warn(self, message: str) -> None:
        if message not in self.warnings:
            self.warnings.append(message)
