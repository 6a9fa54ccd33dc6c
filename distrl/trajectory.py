"""Trajectory: what was collected, time-major [T, N], and how it is cut into minibatches.

T steps or tokens, N environments or responses, B rows of a flat batch. Row (t, n) is one decision:
the observation seen, the action taken, what came back. A row that is no decision (the reset row of
Gymnasium's NEXT_STEP mode, padding after an episode's end) has `valid` False and counts nowhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distrl.trees import Tree, tree_leaves, tree_map

Array = NDArray[Any]


@dataclass(frozen=True)
class Trajectory:
    """Arrays of shape [T, N] (observations and actions [T, N, ...]); all float arrays are float32.

    `next_value` is V of the true next observation: `value[t+1]` but at done and last rows, where it was
    computed apart; undefined (may be NaN) where terminated. `done = terminated | truncated`.
    `initial_state` is a recurrent policy's state before row 0, [N, ...], or None.
    """

    observation: Tree
    action: Array
    reward: Array
    terminated: Array
    done: Array
    valid: Array
    episode_start: Array
    value: Array
    next_value: Array
    log_prob: Array
    initial_state: Tree = None
    extra: dict[str, Array] = field(default_factory=dict)
    version: int = 0  # of the policy that made it

    @property
    def num_steps(self) -> int:
        """T."""
        return int(self.reward.shape[0])

    @property
    def num_envs(self) -> int:
        """N."""
        return int(self.reward.shape[1])

    @property
    def num_valid(self) -> int:
        """Decisions in it: env steps that count."""
        return int(np.count_nonzero(self.valid))

    @property
    def episode(self) -> NDArray[np.int32]:
        """[T, N]: the number of the piece of an episode that a row belongs to, no two alike in the whole trajectory."""
        begun = np.cumsum(self.episode_start, axis=0, dtype=np.int32)
        return begun + np.arange(self.num_envs, dtype=np.int32) * np.int32(self.num_steps + 1)

    @property
    def num_bytes(self) -> int:
        """Bytes of all its arrays."""
        columns = [getattr(self, column.name) for column in fields(self) if column.name != "version"]
        return sum(leaf.nbytes for tree in columns for leaf in tree_leaves(tree))

    def padded(self, num_steps: int) -> Trajectory:
        """The same with rows that are not valid added up to `num_steps`."""
        missing = num_steps - self.num_steps
        if missing == 0:
            return self

        def zeros(array: Array) -> Array:
            return np.concatenate([array, np.zeros((missing, *array.shape[1:]), array.dtype)])

        def last(array: Array) -> Array:  # zeros may lie outside the observation space
            return np.concatenate([array, np.repeat(array[-1:], missing, axis=0)])

        padded = {
            column.name: tree_map(last if column.name == "observation" else zeros, getattr(self, column.name))
            for column in fields(self)
            if column.name not in ("initial_state", "version")
        }
        return replace(self, **padded)

    @staticmethod
    def concatenate(trajectories: list[Trajectory]) -> Trajectory:
        """Side by side along N, in the given order, each padded to the longest; the version is the oldest."""
        num_steps = max(trajectory.num_steps for trajectory in trajectories)
        padded = [trajectory.padded(num_steps) for trajectory in trajectories]

        def join(axis: int, name: str) -> Tree:
            columns = [getattr(trajectory, name) for trajectory in padded]
            return tree_map(lambda *leaves: np.concatenate(leaves, axis=axis), *columns)

        names = [
            column.name for column in fields(Trajectory) if column.name not in ("initial_state", "version")
        ]
        return Trajectory(
            **{name: join(1, name) for name in names},
            initial_state=join(0, "initial_state"),
            version=min(trajectory.version for trajectory in trajectories),
        )


def flat_minibatches(
    valid_TN: Array, num_minibatches: int, generator: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    """Rows of the flattened [T*N] batch in one global permutation, cut in `num_minibatches`; valid rows only.

    Fewer parts where there are fewer rows: none is empty.
    """
    rows = np.flatnonzero(valid_TN)
    parts = np.array_split(generator.permutation(rows), num_minibatches)
    yield from (part for part in parts if len(part))


def column_minibatches(
    num_envs: int, num_minibatches: int, generator: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    """Whole columns (envs, responses) in one global permutation, cut in `num_minibatches`.

    What a policy with memory needs: its state is carried along time inside the update too.
    """
    parts = np.array_split(generator.permutation(num_envs), num_minibatches)
    yield from (part for part in parts if len(part))
