"""Many futures of one state: an env group put back to where a trajectory was, played on by the same policy.

    trajectory   s_0 ---- s_t -------------->        a snapshot of the group is kept at chosen t
                           |---- a = left,  noise stream 1, 2, ... S
                           '---- a = right, noise stream 1, 2, ... S     common random numbers

The first action is given; all later ones are the policy's, from noise streams that no other part of a run
uses. The mean return of such branches is Q(s, a) by Monte Carlo.

Shape suffixes: T time, M = J * S branches (J first actions, each with the same S noise streams).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Discrete
from numpy.typing import NDArray

from distrl.envs import EnvGroup, EnvSpec
from distrl.envs.actions import ActionMap
from distrl.evaluation import Loaded
from distrl.maths.random import derive_seed, stream
from distrl.policies import rescales_action
from distrl.policies.observe import CLIP
from distrl.rollout import Collector, reset_where
from distrl.trajectory import Trajectory
from distrl.trees import Tree, tree_map

Array = NDArray[Any]
MAX_ENUMERATED = 6  # actions of a Discrete space up to which all are tried
NUM_SAMPLED = 4  # else as many as this, drawn from the policy
MAX_FRAGMENTS = 64  # of a trajectory in which no episode ends


@dataclass(frozen=True)
class Columns:
    """What `gae` wants, each [T, N] (or [T, M]), float64 and bool; actions as the policy has them."""

    reward: NDArray[np.float64]
    value: NDArray[np.float64]
    next_value: NDArray[np.float64]
    terminated: NDArray[np.bool_]
    done: NDArray[np.bool_]

    @property
    def for_gae(self) -> tuple[Array, Array, Array, Array, Array]:
        """In the order of `gae`'s arguments."""
        return self.reward, self.value, self.next_value, self.terminated, self.done


@dataclass(frozen=True)
class State:
    """A state of a trajectory that can be gone back to, with the first actions to try there.

    `action_J` are distinct actions and `weight_J` their probabilities, or, where there are too many, draws
    from the policy with equal weights.
    """

    snapshot: dict[str, Any]  # of a group of one env
    memory: Tree  # of a recurrent policy, [1, ...]
    action_J: Array
    weight_J: NDArray[np.float64]


class Branching:
    """A policy, its envs and the noise that belongs to this picture alone."""

    def __init__(self, loaded: Loaded, seed: int) -> None:
        self.policy: Any = loaded.policy
        self.recipe = loaded.config.recipe
        self.seed = derive_seed(seed, "branches")
        self.spec: EnvSpec = dataclasses.replace(
            loaded.env, vectorization="sync", autoreset="disabled", repro_dir=None, backend="gymnasium"
        )
        self.reward_scale = _reward_scale(loaded)

    def trajectory(self, num_states: int, stride: int) -> tuple[Columns, Array, list[State]]:
        """A real trajectory of one env, [num_states * stride, 1], its actions, and every `stride`th state.

        It is collected as in training, `stride` rows a fragment: at each boundary the group can be put back.
        The rows are those around the first end of an episode, where there is one within MAX_FRAGMENTS.
        """
        group = EnvGroup(self.spec, index=0, num_envs=1, first_env=0, seed=self.seed)
        try:
            collector = Collector(group, self.policy, self.seed, "steps", stride)
            collector.start()
            states: list[State] = []
            parts: list[Trajectory] = []
            last = MAX_FRAGMENTS - 1
            while len(parts) <= max(last, num_states - 1):
                number = len(parts)
                snapshot, memory = group.snapshot(), tree_map(torch.clone, collector.state)
                states.append(State(snapshot, memory, *self._first_actions(group, memory, number)))
                parts.append(collector.collect(number, version=0).trajectory)
                if parts[-1].done.any():
                    last = min(last, number + 1)
        finally:
            group.close()
        parts, states = parts[-num_states:], states[-num_states:]

        def whole(name: str, kind: type) -> Array:
            return np.concatenate([getattr(part, name) for part in parts]).astype(kind)

        columns = Columns(
            self._scaled(whole("reward", np.float64)),
            whole("value", np.float64),
            whole("next_value", np.float64),
            whole("terminated", np.bool_),
            whole("done", np.bool_),
        )
        return columns, np.concatenate([part.action for part in parts]), states

    def _first_actions(self, group: EnvGroup, memory: Tree, number: int) -> tuple[Array, NDArray[np.float64]]:
        space, policy = group.action_space, self.policy
        observation = tree_map(torch.from_numpy, group.observation)
        with torch.inference_mode():
            if (
                isinstance(space, Discrete)
                and space.n <= MAX_ENUMERATED
                and not policy.recurrent
                and group.action_mask is None
            ):
                action_J = np.arange(space.n)
                repeated = tree_map(lambda leaf: leaf.repeat_interleave(len(action_J), 0), observation)
                log_prob_J = policy.evaluate(repeated, torch.from_numpy(action_J), None, None, None).log_prob
                return action_J, log_prob_J.double().exp().numpy()
            noise = policy.distribution.noise(stream(self.seed, "first action", number), (NUM_SAMPLED, 1))
            state = reset_where(group.episode_start, memory)
            mask = None if group.action_mask is None else torch.from_numpy(group.action_mask)
            actions = [
                policy.act(observation, state, torch.from_numpy(one), mask)[0].numpy() for one in noise
            ]
        return np.concatenate(actions), np.full(NUM_SAMPLED, 1 / NUM_SAMPLED)

    def group(self, num_branches: int, horizon: int) -> EnvGroup:
        """Envs for that many branches at once, without a time limit inside `horizon` steps of any state."""
        probe = EnvGroup(self.spec, index=0, num_envs=1, first_env=0, seed=self.seed)
        limit = probe.max_episode_steps
        probe.close()
        spec = self.spec
        if limit is not None and not spec.is_atari():
            spec = dataclasses.replace(spec, max_episode_steps=limit + horizon + 1)
        return EnvGroup(spec, index=1, num_envs=num_branches, first_env=0, seed=self.seed)

    def play(self, group: EnvGroup, state: State, number: int, batch: int, horizon: int) -> Columns:
        """The futures of `state`, [T, M] with T <= horizon: branch j * S + i has first action j and noise stream i.

        Rows after a branch's `done` mean nothing. A branch cut off at the horizon bootstraps from the critic,
        as `gae` does in the last row. Streams are keyed by (number, batch).
        """
        num_actions = len(state.action_J)
        num_streams = group.num_envs // num_actions
        self._put_back(group, state, number, batch)
        policy = self.policy
        noise_TS = policy.distribution.noise(
            stream(self.seed, "branch", number, batch), (horizon, num_streams)
        )
        noise_TM = torch.from_numpy(np.tile(noise_TS, (1, num_actions, *[1] * (noise_TS.ndim - 2))))
        memory = tree_map(lambda leaf: leaf.repeat_interleave(group.num_envs, 0), state.memory)
        rows: dict[str, list[Array]] = {field.name: [] for field in dataclasses.fields(Columns)}
        alive = np.ones(group.num_envs, bool)
        to_env = ActionMap(group.action_space, rescales_action(policy))
        with torch.inference_mode():
            memory = reset_where(group.episode_start, memory)
            value = self._value(group.observation, memory)
            for step in range(horizon):
                mask = None if group.action_mask is None else torch.from_numpy(group.action_mask)
                observation = tree_map(torch.from_numpy, group.observation)
                action, memory = policy.act(observation, memory, noise_TM[step], mask)
                chosen = np.repeat(state.action_J, num_streams, axis=0) if step == 0 else action.numpy()
                result = group.step(to_env(chosen))
                done = result.terminated | result.truncated
                next_value = self._value(group.observation, memory)
                if (result.truncated & alive).any():
                    next_value = np.where(done, self._value(result.final_observation, memory), next_value)
                row = (self._scaled(result.reward), value, next_value, result.terminated, done)
                for column, entry in zip(rows.values(), row, strict=True):
                    column.append(np.array(entry))
                alive &= ~done
                if not alive.any():
                    break
                memory = reset_where(group.episode_start, memory)
                value = self._value(group.observation, memory)
        return Columns(**{name: np.stack(column) for name, column in rows.items()})

    def _put_back(self, group: EnvGroup, state: State, number: int, batch: int) -> None:
        count = group.num_envs
        single = state.snapshot
        many = {
            name: _repeat(entry, count) if name not in ("begun", "dropped", "reproducibility") else entry
            for name, entry in single.items()
        }
        group.restore(many)
        # The env's own randomness was put back too, alike in all branches: from here on each has its own.
        group.draw_from([stream(self.seed, "branch env", number, batch, branch) for branch in range(count)])

    def _value(self, observation: Tree, memory: Tree) -> NDArray[np.float64]:
        value: torch.Tensor = self.policy.value(tree_map(torch.from_numpy, observation), memory)
        return value.double().numpy()

    def _scaled(self, reward: Array) -> NDArray[np.float64]:
        if self.reward_scale is None:
            return np.asarray(reward, np.float64)
        return np.clip(np.asarray(reward, np.float64) / self.reward_scale, -CLIP, CLIP)


def _repeat(entry: Any, count: int) -> Any:
    """State tree of one env's rows -> of `count` equal ones."""
    if isinstance(entry, dict):
        return {name: _repeat(value, count) for name, value in entry.items()}
    if isinstance(entry, list):  # the envs' own states, or the parts of a Tuple observation
        return (
            [*entry] * count if entry and _is_env_state(entry[0]) else [_repeat(one, count) for one in entry]
        )
    return None if entry is None else np.repeat(np.asarray(entry), count, axis=0)


def _is_env_state(entry: Any) -> bool:
    return isinstance(entry, dict) and "strategy" in entry


def _reward_scale(loaded: Loaded) -> float | None:
    """What the critic's rewards were divided by (`distrl.normalization.RewardScale`); None where by nothing."""
    state = loaded.checkpoint.trees["learner"]["reward_scale"]
    if state is None or not state["count"]:
        return None
    return float(np.sqrt(state["m2"] / state["count"] + 1e-8))
