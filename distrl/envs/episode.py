"""EpisodeEnv: the outermost wrapper of each environment. It knows its episode well enough to start it again.

An episode is the seed that it was reset with and the actions since, or the newest exact snapshot and the
actions since that. From these it is put back after its process died (`episode_restore`) and after the
environment raised (`_recover`). It runs where the environment runs, in this process or in a subprocess.
"""

from __future__ import annotations

import hashlib
import traceback
from typing import Any, Protocol

import gymnasium
import numpy as np

from distrl.envs import repro, running_statistics, snapshots
from distrl.envs.closing import LONGEST_SEC, within
from distrl.envs.infos import told
from distrl.envs.masks import MaskReader
from distrl.envs.observations import Taker, flag_of, reward_of
from distrl.envs.spaces import check_observation
from distrl.envs.spec import EnvSpec
from distrl.errors import RunFailed
from distrl.maths.random import derive_seed


class Restarts(Protocol):
    """How many restarts a group has left: `multiprocessing.Value`, or `Counter` in one process."""

    value: int


class Counter:
    """A plain `value`."""

    def __init__(self, value: int) -> None:
        self.value = value


class EpisodeEnv(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Env number `env` of the run, at place `slot` of its group.

    A reset without a seed (an autoreset by the vector env) takes that of the next episode:
    `derive_seed(seed, "episode", env, episode)`, episodes counted from 0.
    """

    def __init__(self, spec: EnvSpec, env: int, slot: int, seed: int, restarts: Restarts) -> None:
        super().__init__(spec.make_one())
        self._spec, self._index, self._slot, self._run_seed, self._restarts = (
            spec,
            env,
            slot,
            seed,
            restarts,
        )
        self._who = f"env {env} ({spec.env_id})"
        self._episode = -1
        self._seed = 0
        self._actions: list[Any] = []
        self._base: snapshots.Layers | None = None  # where `_actions[_base_at:]` starts, if not at the reset
        self._base_at = 0
        self._whole = True  # `_actions` holds the episode since its reset
        self._last: Any = None
        self._check_first = spec.check_observations != "off"
        self._reset_pending = False
        self._take = Taker(self.observation_space, self._who)
        self._masks = MaskReader(self.env)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self._episode += 1
        self._seed = (
            derive_seed(self._run_seed, "episode", self._index, self._episode) if seed is None else seed
        )
        self._actions, self._base, self._base_at, self._whole = [], None, 0, True
        self._reset_pending = False
        restarted = None
        try:
            observation, info = self.env.reset(seed=self._seed, options=options or None)
        except RunFailed:
            raise
        except (Exception, SystemExit) as error:  # an env may raise anything
            (observation, info), restarted = self._recover(error)
        if self._check_first:
            check_observation(self.observation_space, observation, self._who)
            self._check_first = False
        self._last = self._take(observation)
        info = self._masks.put(self.env, info or {}, self._who, 0)
        return self._last, told(info, over=False, restarted=restarted)

    def step(self, action: Any) -> Any:
        if self._reset_pending:
            return self._begin_pending()
        kept = _copied(action)  # the env may write into what it is given
        restarted = None
        try:
            observation, reward, terminated, truncated, info = self.env.step(action)
        except RunFailed:
            raise
        except (Exception, SystemExit) as error:  # an env may raise anything
            result, restarted = self._recover(error, kept)
            observation, reward, terminated, truncated, info = result
        self._actions.append(kept)
        self._last = self._take(observation)
        if type(reward) is not float:
            reward = reward_of(reward, self._who)
        if type(terminated) is not bool:
            terminated = flag_of(terminated, "terminated", self._who)
        if type(truncated) is not bool:
            truncated = flag_of(truncated, "truncated", self._who)
        over = terminated or truncated
        if info or self._masks.has_method:
            info = self._masks.put(self.env, info or {}, self._who, len(self._actions), over)
        return self._last, reward, terminated, truncated, told(info, over, restarted)

    def episode_number(self, episode: int) -> None:
        """The next reset starts episode `episode`."""
        self._episode = episode - 1

    def running_statistics(self) -> list[tuple[str, str | None]]:
        """The layers of this env that keep running statistics, as `running_statistics.found`."""
        return running_statistics.found(self.env)

    def episode_snapshot(self, reset_pending: list[bool]) -> dict[str, Any]:
        """This episode as a state tree. `strategy`: "snapshot", "replay" or, over the budget, "lost"; and
        "pending" where `reset_pending[slot]`: it is over, and the next step will be its reset."""
        state: dict[str, Any] = {"episode": self._episode, "seed": self._seed, "strategy": "pending"}
        if reset_pending[self._slot]:
            return state
        layers = snapshots.capture(self.env, self._spec.own_snapshots)
        if layers is not None:
            self._base, self._base_at = layers, len(self._actions)
            if self._base_at > self._spec.max_replay_steps:
                self._actions, self._base_at, self._whole = [], 0, False
            return {**state, "strategy": "snapshot", "layers": layers}
        if not self._whole or len(self._actions) > self._spec.max_replay_steps:
            return {**state, "strategy": "lost"}
        return {**state, "strategy": "replay", "actions": self._action_array(), "digest": _digest(self._last)}

    def episode_restore(self, states: list[dict[str, Any]]) -> str:
        """Back to `states[slot]`: "exact", or "lost" or "differs", and a reset is needed."""
        state = states[self._slot]
        self._episode, self._seed = state["episode"], state["seed"]
        self._actions, self._base, self._base_at = [], None, 0
        if state["strategy"] == "pending":
            self._reset_pending = True
        elif state["strategy"] == "snapshot":
            snapshots.apply(self.env, state["layers"])
            self._base, self._whole = state["layers"], False
        elif state["strategy"] == "replay":
            self._whole = True
            self._replay(list(state["actions"]))
            return "exact" if _digest(self._last) == state["digest"] else "differs"
        else:
            return "lost"
        return "exact"

    def _begin_pending(self) -> Any:
        observation, info = self.reset()
        return observation, 0.0, False, False, info

    def _action_array(self) -> Any:
        space = self.action_space
        return np.array(self._actions, space.dtype).reshape(len(self._actions), *(space.shape or ()))

    def _replay(self, actions: list[Any]) -> None:
        """The episode up to the last of `actions`, from its base or its reset; kept as this episode's."""
        if self._base is None:
            self._last, _ = self.env.reset(seed=self._seed)
        else:
            self.env.reset(seed=self._seed)
            snapshots.apply(self.env, self._base)
        for action in actions[self._base_at :]:
            self._last = self.env.step(_copied(action))[0]
        if self._last is not None:
            self._last = self._take(self._last)
        self._actions = actions

    def _recover(self, error: BaseException, action: Any = None) -> tuple[Any, str]:
        """The result of the reset or step that raised, by a new env put back to where the old one was; what is told."""
        first = f"{type(error).__name__}: {' '.join(str(error).split())}"
        while self._restarts.value > 0:
            self._restarts.value -= 1
            try:
                if problem := within(
                    self.env.close, LONGEST_SEC
                ):  # half broken; it is thrown away in any case
                    error.add_note(f"close() {problem}, too")
                self.env = self._spec.make_one()
                message = f"{self._who} raised {first} and was recreated"
                if action is None:
                    return self.env.reset(seed=self._seed), message
                if self._base is None and not self._whole:
                    break
                self._replay(self._actions)
                return self.env.step(_copied(action)), message
            except (Exception, SystemExit) as again:  # the same bug, at the same place of the replay
                error = again
        raise self._failure(error, action) from error

    def _failure(self, error: BaseException, action: Any) -> RunFailed:
        where = "its reset" if action is None else f"step {len(self._actions)} of its episode"
        trace = "".join(traceback.format_exception(error))
        actions = self._actions if action is None else [*self._actions, action]
        path = repro.write(self._spec, self._index, self._episode, self._seed, actions, self._whole, trace)
        how = f"; reproduce with: python -m distrl.envs.repro {path}" if path else ""
        return RunFailed(
            f"{self._who} raised {type(error).__name__}: {' '.join(str(error).split())} in {where} (reset seed "
            f"{self._seed}), and {self._spec.max_env_restarts} restarts of its group are used up{how}"
        )


def _copied(action: Any) -> Any:
    return action.copy() if isinstance(action, np.ndarray) else action


def _digest(observation: Any) -> str:
    total = hashlib.sha256()
    _feed(total, observation)
    return total.hexdigest()


def _feed(total: Any, observation: Any) -> None:
    if isinstance(observation, dict):
        for key in sorted(observation):
            total.update(str(key).encode())
            _feed(total, observation[key])
    elif isinstance(observation, tuple | list):
        for part in observation:
            _feed(total, part)
    else:
        array = np.ascontiguousarray(observation)
        total.update(f"{array.dtype}{array.shape}".encode())
        total.update(array.tobytes())
