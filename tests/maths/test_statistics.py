"""Moments pool exactly, for any split; summary numbers equal their slow twins."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distrl.maths.statistics import Moments, explained_variance
from tests import reference

EXAMPLES = settings(max_examples=40, deadline=None)
SPLITS = st.lists(st.integers(0, 6), min_size=1, max_size=6)


def _rows(seed: int, count: int, offset: float = 0.0) -> np.ndarray:
    return offset + np.random.default_rng(seed).standard_normal((count, 2, 3)) * [0.01, 1.0, 50.0]


@EXAMPLES
@given(st.integers(0, 2**32), SPLITS, st.sampled_from([0.0, 1e4, -1e6]))
def test_merged_moments_equal_those_of_the_concatenation_for_any_split(seed, sizes, offset):
    rows = _rows(seed, sum(sizes), offset)
    merged = Moments.zeros((2, 3))
    for part in np.split(rows, np.cumsum(sizes)[:-1]):
        merged = merged.merge(Moments.of(part))
    assert merged.count == len(rows)
    if len(rows):
        mean, variance = reference.moments(rows)
        np.testing.assert_allclose(merged.mean, mean, rtol=1e-13, atol=1e-13)
        np.testing.assert_allclose(merged.variance, variance, rtol=1e-9, atol=1e-18 * offset**2)
        np.testing.assert_allclose(
            merged.std, np.concatenate([rows]).std(axis=0), rtol=1e-9, atol=1e-9 * abs(offset)
        )


@EXAMPLES
@given(st.integers(0, 2**32), st.lists(st.integers(1, 5), min_size=3, max_size=3))
def test_merging_is_associative_and_commutative_up_to_rounding(seed, sizes):
    a, b, c = (Moments.of(part) for part in np.split(_rows(seed, sum(sizes)), np.cumsum(sizes)[:-1]))
    left = a.merge(b).merge(c)
    for other in (a.merge(b.merge(c)), c.merge(b).merge(a)):
        assert other.count == left.count
        np.testing.assert_allclose(other.mean, left.mean, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(other.m2, left.m2, rtol=1e-12)


def test_an_empty_part_changes_not_a_bit_on_either_side():
    some, none = Moments.of(_rows(0, 5)), Moments.of(np.zeros((0, 2, 3)))
    for merged in (some.merge(none), none.merge(some)):
        assert merged.count == 5
        assert merged.mean.tobytes() == some.mean.tobytes() and merged.m2.tobytes() == some.m2.tobytes()


def test_a_mean_far_from_zero_costs_no_precision():
    # The naive E[x^2] - E[x]^2 gives garbage here: 1e8**2 leaves no digit for a variance of 2/3.
    parts = [Moments.of(1e8 + np.array([[-1.0]])), Moments.of(1e8 + np.array([[0.0], [1.0]]))]
    assert parts[0].merge(parts[1]).variance == pytest.approx(2 / 3, rel=1e-9)


def test_float32_and_integer_rows_are_summed_in_float64():
    rows = np.full((3001, 1), 0.1, np.float32)
    assert Moments.of(rows).mean == pytest.approx(float(np.float32(0.1)), rel=1e-14)
    assert Moments.of(np.full((300, 1), 255, np.uint8)).mean == 255.0


def test_the_same_rows_in_another_memory_layout_give_the_same_bits():
    rows = _rows(1, 37).reshape(37, 6)
    assert Moments.of(np.asfortranarray(rows)).m2.tobytes() == Moments.of(rows).m2.tobytes()


def test_taking_moments_leaves_the_rows_alone():
    rows = _rows(2, 4)
    before = rows.copy()
    Moments.of(rows)
    assert np.array_equal(rows, before)


def test_normalising_by_the_moments_of_nothing_changes_nothing():
    none = Moments.zeros((2,))
    assert np.array_equal((np.array([3.0, -4.0]) - none.mean) / none.std, [3.0, -4.0])


def test_moments_of_rows_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(2,\) and \(3,\)"):
        Moments.zeros((2,)).merge(Moments.zeros((3,)))
    with pytest.raises(ValueError, match="scalar"):
        Moments.of(1.0)


@EXAMPLES
@given(st.integers(0, 2**32), st.integers(2, 30))
def test_explained_variance_equals_its_definition_over_the_valid_rows(seed, count):
    rng = np.random.default_rng(seed)
    prediction, target = rng.standard_normal((2, count + 4))
    mask = np.arange(count + 4) < count
    got = explained_variance(np.where(mask, prediction, np.nan), np.where(mask, target, np.nan), mask)
    assert got == pytest.approx(
        reference.explained_variance(prediction[:count], target[:count]), rel=1e-9, abs=1e-9
    )


def test_a_perfect_critic_explains_all_a_constant_nothing_and_a_shift_does_not_matter():
    target = np.array([1.0, 2.0, 5.0])
    assert explained_variance(target, target) == 1.0
    assert explained_variance(np.full(3, 9.0), target) == pytest.approx(0.0)
    assert explained_variance(target + 4.0, target) == pytest.approx(1.0)
    assert explained_variance(-target, target) == pytest.approx(-3.0)


def test_explained_variance_of_a_constant_target_is_undefined_not_an_error():
    assert math.isnan(explained_variance(np.array([1.0, 2.0]), np.ones(2)))
    assert math.isnan(explained_variance(np.ones(1), np.ones(1)))
    with pytest.raises(ValueError, match="one shape"):
        explained_variance(np.ones(2), np.ones(3))
