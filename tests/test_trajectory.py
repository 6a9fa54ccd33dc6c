"""Trajectories: padding and joining keep every row where it is; minibatches are a partition."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distrl.maths.random import stream
from distrl.trajectory import Trajectory, column_minibatches, flat_minibatches
from distrl.trees import tree_leaves, tree_map

EXAMPLES = settings(max_examples=40, deadline=None)
SIZE = st.integers(1, 7)


def make(num_steps: int, num_envs: int, first: int = 0, version: int = 0) -> Trajectory:
    """Every number says where it stands: step + 100 * env."""
    place = np.arange(num_steps)[:, None] + 100.0 * (first + np.arange(num_envs))
    flag = np.ones((num_steps, num_envs), bool)
    columns = {name: place.astype(np.float32) for name in ("reward", "value", "next_value", "log_prob")}
    return Trajectory(
        observation={"a": place.astype(np.float32), "b": (np.stack([place] * 3, -1).astype(np.uint8),)},
        action=place.astype(np.int64),
        terminated=flag & False,
        done=flag & False,
        valid=flag,
        episode_start=flag & False,
        initial_state=(place[0].astype(np.float32)[:, None],),
        extra={"action_mask": np.stack([flag, flag], -1)},
        version=version,
        **columns,
    )


@EXAMPLES
@given(SIZE, SIZE, SIZE, SIZE)
def test_joined_trajectories_lie_side_by_side_and_the_shorter_is_padded_with_rows_that_do_not_count(
    steps, more_steps, envs, more_envs
):
    left, right = make(steps, envs, version=4), make(more_steps, more_envs, envs, version=3)
    joined = Trajectory.concatenate([left, right])
    longest = max(steps, more_steps)
    assert (joined.num_steps, joined.num_envs) == (longest, envs + more_envs)
    assert joined.num_valid == left.num_valid + right.num_valid == joined.valid.sum()
    assert joined.version == 3, "the oldest"
    whole = make(longest, envs + more_envs)
    for column in fields(Trajectory):
        if column.name in ("version", "initial_state", "valid"):
            continue
        got, expected = getattr(joined, column.name), getattr(whole, column.name)
        for one, other in zip(tree_leaves(got), tree_leaves(expected), strict=True):
            assert one.dtype == other.dtype and one.shape == other.shape, column.name
            np.testing.assert_array_equal(one[joined.valid], other[joined.valid], err_msg=column.name)
    np.testing.assert_array_equal(joined.initial_state[0], whole.initial_state[0])
    assert not joined.done[~joined.valid].any()


def test_padding_repeats_the_last_observation_which_is_sure_to_lie_in_the_space():
    padded = make(2, 2).padded(5)
    np.testing.assert_array_equal(padded.observation["a"][2:], np.tile([1.0, 101.0], (3, 1)))
    np.testing.assert_array_equal(padded.reward[2:], 0)
    assert padded.valid.sum() == 4


def test_a_trajectory_without_padding_to_do_is_returned_as_it_is():
    trajectory = make(3, 2)
    assert trajectory.padded(3) is trajectory


def test_the_bytes_are_those_of_all_arrays():
    trajectory = make(4, 3)
    rows, scalars = 12, 3 * 4 + 4 + 8 + 4 * 1  # reward, value, next_value; log_prob; action; four flags
    observation, mask, state = rows * 4 + rows * 3, rows * 2, 3 * 4
    assert trajectory.num_bytes == rows * scalars + observation + mask + state


@EXAMPLES
@given(SIZE, SIZE, st.integers(1, 12), st.integers(0, 2**32))
def test_flat_minibatches_hold_each_valid_row_exactly_once_and_no_other(steps, envs, count, seed):
    valid = np.random.default_rng(seed).random((steps, envs)) < 0.7
    parts = list(flat_minibatches(valid, count, stream(seed, "permutation")))
    rows = np.concatenate([*parts, np.zeros(0, np.int64)])
    assert sorted(rows) == np.flatnonzero(valid.reshape(-1)).tolist()
    assert len(parts) == min(count, valid.sum()), "none is empty"
    sizes = [len(part) for part in parts]
    assert not sizes or max(sizes) - min(sizes) <= 1


@EXAMPLES
@given(st.integers(1, 9), st.integers(1, 12), st.integers(0, 2**32))
def test_column_minibatches_hold_each_column_exactly_once(envs, count, seed):
    parts = list(column_minibatches(envs, count, stream(seed, "permutation")))
    assert sorted(np.concatenate(parts)) == list(range(envs))
    assert len(parts) == min(count, envs)


@pytest.mark.parametrize("cut", [flat_minibatches, column_minibatches])
def test_minibatches_are_a_shuffle_that_the_stream_alone_decides(cut: Any):
    what = np.ones((50, 4), bool) if cut is flat_minibatches else 200
    once, again, other = (
        np.concatenate(list(cut(what, 4, stream(1, "permutation", 0, epoch)))) for epoch in (0, 0, 1)
    )
    np.testing.assert_array_equal(once, again)
    assert not np.array_equal(once, other) and not np.array_equal(once, np.sort(once))
    for part in np.array_split(once, 4):  # each minibatch draws from the whole batch
        assert part.min() < 50 and part.max() >= 150


def test_trees_map_over_dicts_and_tuples_and_leave_none_alone():
    tree = {"a": 1, "b": (2, {"c": 3})}
    assert tree_map(lambda x, y: x + y, tree, tree) == {"a": 2, "b": (4, {"c": 6})}
    assert tree_map(lambda x: x, None) is None
    assert list(tree_leaves(tree)) == [1, 2, 3] and list(tree_leaves(None)) == []
    with pytest.raises(ValueError, match="zip"):
        tree_map(lambda x, y: x + y, (1, 2), (1,))
