"""Group-relative credit against its twin, and what makes `others` unbiased and `mean` not."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distrl.maths.advantage import group_relative
from tests import reference

EXAMPLES = settings(max_examples=40, deadline=None)
FORMS = [(baseline, scale) for baseline in ("mean", "others") for scale in (False, True)]


@EXAMPLES
@given(st.integers(0, 2**32), st.integers(2, 6), st.integers(1, 5), st.sampled_from(FORMS))
def test_group_relative_credit_equals_the_sums_written_out(seed, size, groups, form):
    return_N = np.random.default_rng(seed).standard_normal(size * groups) * 10
    found = group_relative(return_N, size, *form)
    np.testing.assert_allclose(found, reference.group_relative(return_N, size, *form), rtol=1e-9, atol=1e-12)


@EXAMPLES
@given(st.integers(0, 2**32), st.integers(2, 6))
def test_leaving_oneself_out_of_the_mean_weighs_k_over_k_minus_one(seed, size):
    return_N = np.random.default_rng(seed).standard_normal(3 * size)
    others, mean = (group_relative(return_N, size, form) for form in ("others", "mean"))
    np.testing.assert_allclose(others, mean * size / (size - 1), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(mean.reshape(3, size).sum(axis=1), 0, atol=1e-12)


def test_the_mean_of_the_others_leaves_the_policy_gradient_unbiased_and_that_of_all_shrinks_it():
    """Exactly: over all pairs of samples of a policy over three actions, each pair with its probability."""
    probability = np.array([0.5, 0.3, 0.2])
    reward = np.array([1.0, -2.0, 5.0])
    score = np.eye(3) - probability  # of each action, the gradient of log pi in the logits
    true = (probability * reward) @ score

    def expected(baseline):
        total = np.zeros(3)
        for pair in itertools.product(range(3), repeat=2):
            weight = group_relative(reward[list(pair)], 2, baseline)
            total += probability[list(pair)].prod() * (weight @ score[list(pair)]) / 2
        return total

    np.testing.assert_allclose(expected("others"), true, rtol=1e-12)
    np.testing.assert_allclose(expected("mean"), true / 2, rtol=1e-12)


def test_a_group_whose_returns_are_all_alike_gets_nothing_and_not_nan():
    for form in FORMS:
        assert group_relative(np.full(4, 7.0, np.float32), 4, *form).tolist() == [0.0] * 4


def test_scaled_credit_is_the_same_for_scores_of_any_unit_and_plain_credit_is_not():
    return_N = np.array([3.0, 1.0, -2.0, 4.0])
    scaled = [group_relative(factor * return_N, 4, scale=True) for factor in (1.0, 100.0)]
    np.testing.assert_allclose(*scaled, rtol=1e-4)
    assert not np.allclose(group_relative(return_N, 4), group_relative(100 * return_N, 4))


def test_returns_keep_their_type_and_large_ones_keep_their_differences():
    return_N = (np.arange(4) + 2.0**23).astype(np.float32)  # their float32 sum would lose the ones
    found = group_relative(return_N, 4)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, [-1.5, -0.5, 0.5, 1.5])


@pytest.mark.parametrize(
    ("return_", "size", "said"),
    [
        (np.zeros((2, 2)), 2, "must be a float array \\[N\\]"),
        (np.zeros(4, np.int64), 2, "must be a float array \\[N\\]"),
        (np.zeros(4), 1, "2 or more and divide"),
        (np.zeros(5), 2, "got 2 for 5"),
    ],
)
def test_what_cannot_be_grouped_is_refused(return_, size, said):
    with pytest.raises(ValueError, match=said):
        group_relative(return_, size)
