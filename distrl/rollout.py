"""Collection: a policy plays one env group and gives back a fragment.

    noise <- stream(seed, "action", group, iteration)         all of an iteration's randomness, beforehand
    for t:   act on the group's own batch -> step the group -> write row t into preallocated [T, N] arrays
    once:    V and log-prob of all rows in one `evaluate`; V of the true next observation where an episode
             was truncated and at the last row, the only rows that cost an extra forward

A fragment depends on (snapshot of the policy, state of the group, seed, iteration) alone. Whoever has
these collects the same bits: that is what lets groups move between workers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from distrl.envs import EnvGroup
from distrl.envs.actions import ActionMap
from distrl.inference import Inference, TorchInference
from distrl.maths.random import stream
from distrl.policies import rescales_action
from distrl.telemetry.spans import span
from distrl.trajectory import Trajectory
from distrl.trees import Tree, tree_leaves, tree_map

NOISE_BLOCK = 128  # rows of noise drawn at a time where an episode's length is not known beforehand


class EpisodeRecord(NamedTuple):
    """One whole game that ended in a fragment: raw return, length in env steps, numeric info of its last step."""

    step: int
    env: int
    return_: float
    length: int
    info: dict[str, float]


@dataclass(frozen=True)
class Fragment:
    """What one group collected in one iteration: the trajectory, and what is told of it."""

    trajectory: Trajectory
    episodes: list[EpisodeRecord]
    dropped: int  # rows that the group dropped so far for a NaN or Inf


@dataclass
class _Rows:
    """The columns of a fragment while it is being written; grows where episodes are collected."""

    columns: dict[str, Tree]
    capacity: int

    @classmethod
    def allocate(cls, capacity: int, examples: dict[str, Tree]) -> _Rows:
        empty = {
            name: tree_map(lambda leaf: np.zeros((capacity, *leaf.shape), leaf.dtype), example)
            for name, example in examples.items()
            if example is not None
        }
        return cls(empty, capacity)

    def write(self, step: int, row: dict[str, Tree]) -> None:
        if step == self.capacity:
            self.columns = {
                name: tree_map(lambda leaf: np.concatenate([leaf, np.zeros_like(leaf)]), column)
                for name, column in self.columns.items()
            }
            self.capacity *= 2
        for name, column in self.columns.items():
            if isinstance(column, np.ndarray):
                column[step] = row[name]
            else:
                tree_map(lambda stored, value: stored.__setitem__(step, value), column, row[name])

    def first(self, num_steps: int) -> dict[str, Tree]:
        return {
            name: tree_map(lambda leaf: leaf[:num_steps], column) for name, column in self.columns.items()
        }


class Stopped(Exception):
    """The fragment is no longer wanted."""


class Collector:
    """Hosts one env group and the policy's memory of it (a recurrent state); the unit that can be put back."""

    def __init__(
        self,
        group: EnvGroup,
        policy: nn.Module,
        seed: int,
        collects: Literal["episodes", "steps"],
        num_steps: int,
        stopped: Callable[[], bool] = lambda: False,
        inference: Inference | None = None,
    ) -> None:
        self.group = group
        self.policy = cast(Any, policy)
        self.seed = seed
        self.collects = collects
        self.num_steps = num_steps
        self.stopped = stopped  # asked before each row
        self.inference = inference if inference is not None else TorchInference(policy)
        self.to_env = ActionMap(group.action_space, rescales_action(policy))
        self.state: Tree = self._fresh_state(group.num_envs)

    def _fresh_state(self, num_envs: int) -> Tree:
        """The policy's memory before an episode; kept on the CPU, wherever the policy is."""
        return tree_map(lambda leaf: leaf.cpu(), self.policy.initial_state(num_envs))

    def start(self) -> None:
        """The first resets. Not wanted before `restore`."""
        if self.collects == "steps":
            self.group.start()

    def snapshot(self) -> dict[str, Any]:
        """State tree of group and memory at a boundary; `restore` puts both back exactly."""
        if self.collects == "episodes":
            return {"group": None, "memory": []}  # every iteration starts episodes of its own
        return {
            "group": self.group.snapshot(),
            "memory": [leaf.numpy().copy() for leaf in tree_leaves(self.state)],
        }

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Put back what `snapshot` gave, in this process or another."""
        if snapshot["group"] is None:
            return
        self.group.restore(snapshot["group"])
        memory = iter(snapshot["memory"])
        self.state = tree_map(lambda leaf: torch.from_numpy(np.array(next(memory))), self._fresh_state(1))

    def collect(self, iteration: int, version: int) -> Fragment:
        """Play one iteration's fragment: `num_steps` rows, or one whole episode per env."""
        with torch.inference_mode():
            if self.collects == "episodes":
                self.group.reset_all(iteration)
                self.state = self._fresh_state(self.group.num_envs)
            return self._collect(iteration, version)

    def _collect(self, iteration: int, version: int) -> Fragment:
        group, whole_episodes = self.group, self.collects == "episodes"
        initial_state = tree_map(lambda leaf: leaf.numpy().copy(), self.state)
        rows = _Rows.allocate(NOISE_BLOCK if whole_episodes else self.num_steps, self._examples())
        alive = np.ones(group.num_envs, bool)
        episodes: list[EpisodeRecord] = []
        bootstraps = _Bootstraps()
        step = 0
        while alive.any() if whole_episodes else step < self.num_steps:
            if self.stopped():
                raise Stopped
            if step % NOISE_BLOCK == 0:
                noise = self._noise(iteration, step // NOISE_BLOCK).numpy()
            row, done, ended, final_observation = self._step(noise[step % NOISE_BLOCK])
            if whole_episodes:
                row["valid"] = row["valid"] & alive
            rows.write(step, row)
            episodes += [
                EpisodeRecord(step, e.env, e.return_, e.length, e.info)
                for e in ended
                if alive[e.env - group.first_env]
            ]
            needed = done & ~row["terminated"]
            if whole_episodes:
                alive &= ~done
            elif step == self.num_steps - 1:
                needed |= ~done
            bootstraps.add(
                step, needed & row["valid"], done, final_observation, group.observation, self.state
            )
            step += 1
        trajectory = self._finish(rows.first(step), bootstraps, initial_state, version)
        return Fragment(trajectory, episodes, group.dropped)

    def _examples(self) -> dict[str, Tree]:
        n, distribution = self.group.num_envs, self.policy.distribution
        flag = np.zeros(n, bool)
        return {
            "observation": self.group.observation,
            "action": np.zeros((n, *distribution.action_shape), distribution.action_dtype),
            "reward": np.zeros(n, np.float32),
            "terminated": flag,
            "done": flag,
            "valid": flag,
            "episode_start": flag,
            "action_mask": self.group.action_mask,
        }

    def _noise(self, iteration: int, block: int) -> torch.Tensor:
        generator = stream(self.seed, "action", self.group.index, iteration, block)
        return torch.from_numpy(self.policy.distribution.noise(generator, (NOISE_BLOCK, self.group.num_envs)))

    def _step(self, noise: NDArray[np.float32]) -> tuple[dict[str, Tree], NDArray[np.bool_], list[Any], Tree]:
        """One row: what was seen and done; then done [N], the episodes that ended, their final observation."""
        group = self.group
        with span("rollout: inference"):
            episode_start = group.episode_start
            self.state = reset_where(episode_start, self.state)
            observation, mask = group.observation, group.action_mask
            row = {"observation": observation, "episode_start": episode_start, "action_mask": mask}
            row["action"], self.state = self.inference.act(observation, self.state, noise, mask)
        with span("rollout: env step"):
            result = group.step(self.to_env(row["action"]))
        done = result.terminated | result.truncated
        row.update(reward=result.reward, terminated=result.terminated, done=done, valid=result.valid)
        return row, done, result.episodes, result.final_observation

    def _finish(
        self, rows: dict[str, Tree], bootstraps: _Bootstraps, initial_state: Tree, version: int
    ) -> Trajectory:
        with span("rollout: evaluate"):
            mask = rows.pop("action_mask", None)
            log_prob, value = self.inference.evaluate(rows, mask, initial_state)
            next_value = np.zeros_like(value)
            next_value[:-1] = value[1:]
            bootstraps.fill(next_value, self.inference)
        # a row that was dropped for a NaN: the episode ends with the row before, at V of what that one reached
        rows["done"][:-1] |= rows["done"][1:] & ~rows["valid"][1:]
        return Trajectory(
            **rows,
            value=value,
            next_value=next_value,
            log_prob=log_prob,
            initial_state=initial_state,
            extra={} if mask is None else {"action_mask": mask},
            version=version,
        )


class _Bootstraps:
    """Rows whose next observation is not the next row's: gathered along the fragment, one forward at its end."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, NDArray[np.int64]]] = []
        self.observations: list[Tree] = []
        self.states: list[Tree] = []

    def add(
        self,
        step: int,
        needed: NDArray[np.bool_],
        done: NDArray[np.bool_],
        final: Tree,
        following: Tree,
        state: Tree,
    ) -> None:
        """Row `step` of the envs `needed`: their true next observation, with the memory carried to it."""
        if not needed.any():
            return
        envs = np.flatnonzero(needed)
        ended = done[envs]

        def true_next(final_leaf: NDArray[Any], following_leaf: NDArray[Any]) -> NDArray[Any]:
            which = ended.reshape(-1, *[1] * (following_leaf.ndim - 1))
            return np.where(which, final_leaf[envs], following_leaf[envs])

        if ended.any():
            self.observations.append(tree_map(true_next, final, following))
        else:
            self.observations.append(tree_map(lambda leaf: leaf[envs], following))
        self.states.append(tree_map(lambda leaf: leaf[torch.from_numpy(envs)], state))
        self.rows.append((step, envs))

    def fill(self, next_value: NDArray[np.float32], inference: Inference) -> None:
        """Write V of the gathered observations where they belong."""
        if not self.rows:
            return
        observation = tree_map(lambda *leaves: np.concatenate(leaves), *self.observations)
        state = tree_map(lambda *leaves: torch.cat(leaves), *self.states)
        value = inference.value(observation, state)
        steps = np.concatenate([np.full(len(envs), step) for step, envs in self.rows])
        next_value[steps, np.concatenate([envs for _, envs in self.rows])] = value


def reset_where(episode_start: NDArray[np.bool_], state: Tree) -> Tree:
    """The state with zeros in the columns where an episode begins: put there, so that no NaN outlives its episode."""
    if state is None or not episode_start.any():
        return state
    begins = torch.from_numpy(episode_start)
    return tree_map(lambda leaf: leaf.masked_fill(begins.reshape(-1, *[1] * (leaf.dim() - 1)), 0), state)
