"""A policy's actions become the env's: rescaled, clipped, moved and cast as the space says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from distrl.envs.actions import ActionMap
from distrl.resolve import read_config, resolve, write_config

X = np.array([[-3.0, -1.0, -0.5], [0.0, 0.25, 9.0]], np.float32)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_finite_boxes_are_rescaled_from_minus_one_to_one(dtype: Any) -> None:
    low, high = np.array([5, -1000, -1], dtype), np.array([10, 1000, 1], dtype)
    space = spaces.Box(low, high, dtype=dtype)
    action = ActionMap(space, rescale=True)(X)
    exact = low.astype(float) + (np.clip(X, -1, 1) + 1) / 2 * (high.astype(float) - low)
    assert action.dtype == dtype
    np.testing.assert_allclose(action.astype(float), exact, rtol=1e-3 if dtype == np.float16 else 1e-6)
    assert all(space.contains(row) for row in action)


def test_a_box_of_minus_one_to_one_keeps_its_bits() -> None:
    space = spaces.Box(-1, 1, (3,), np.float32)
    numbers = np.random.default_rng(0).normal(size=(1000, 3)).astype(np.float32)
    assert (
        ActionMap(space, rescale=True)(numbers).tobytes() == np.clip(numbers, space.low, space.high).tobytes()
    )


def test_without_rescaling_actions_are_clipped() -> None:
    space = spaces.Box(np.array([5, -1000, -1]), np.array([10, 1000, 1]), dtype=np.float64)
    np.testing.assert_array_equal(ActionMap(space)(X), np.clip(X.astype(np.float64), space.low, space.high))


def test_a_dimension_without_both_bounds_is_clipped_to_what_there_is() -> None:
    huge = float(np.finfo(np.float32).max)
    space = spaces.Box(np.array([0, -np.inf, -huge]), np.array([np.inf, 3, huge]), dtype=np.float64)
    np.testing.assert_array_equal(ActionMap(space, True)(X), [[0, -1, -0.5], [0, 0.25, 9]])


def test_bounds_that_are_equal_leave_one_action() -> None:
    assert ActionMap(spaces.Box(2, 2, (3,), np.float32), True)(X).tolist() == [[2, 2, 2]] * 2


def test_no_action_leaves_its_box_by_rounding() -> None:
    generator = np.random.default_rng(1)
    for _ in range(200):
        low = generator.normal(size=3).astype(np.float32)
        high = low + generator.random(3).astype(np.float32)
        space = spaces.Box(low, high, dtype=np.float32)
        ends = np.array([[-1, -1, -1], [1, 1, 1], [-9, 9, 0]], np.float32)
        assert all(space.contains(row) for row in ActionMap(space, True)(ends))


@pytest.mark.parametrize("dtype", [np.int64, np.int8, np.uint8])
def test_boxes_of_integers_are_rounded(dtype: Any) -> None:
    space = spaces.Box(0, 20, (3,), dtype)
    action = ActionMap(space, True)(X)
    assert action.dtype == dtype and action.tolist() == [[0, 0, 5], [10, 12, 20]]


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.int8])
def test_discrete_actions_keep_their_dtype_and_start(dtype: Any) -> None:
    space = spaces.Discrete(4, start=-2, dtype=dtype)
    action = ActionMap(space)(np.arange(4))
    assert action.dtype == dtype and action.tolist() == [-2, -1, 0, 1]
    assert all(space.contains(one) for one in action)


def test_a_multi_discrete_of_two_dimensions_keeps_its_shape() -> None:
    space = spaces.MultiDiscrete([[3, 2], [2, 4]], dtype=np.int16, start=[[1, 0], [-1, 5]])
    action = ActionMap(space)(np.array([[2, 1, 0, 3], [0, 0, 1, 1]]))
    assert action.tolist() == [[[3, 1], [-1, 8]], [[1, 0], [0, 6]]] and space.contains(action[0])


def test_a_run_that_is_older_than_the_choice_keeps_what_it_did(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    write_config(path, resolve({}))
    new = read_config(path).config
    assert new.rescale_action and new.observation_scale == "auto"
    flat = json.loads(path.read_text())
    for name in ("rescale_action", "observation_scale", "mask_key"):
        del flat[name]
    path.write_text(json.dumps(flat))
    old = read_config(path).config
    assert not old.rescale_action and old.observation_scale == "bytes" and old.mask_key is None
