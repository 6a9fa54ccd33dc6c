"""V-trace: what it must equal on-policy, what its clips do, then the slow twin on random shapes and episode ends."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distrl.maths.advantage import gae, returns
from distrl.maths.vtrace import vtrace
from tests import reference
from tests.maths.test_advantage import make_columns

EXAMPLES = settings(max_examples=50, deadline=None)
FACTOR = st.sampled_from([0.0, 0.5, 0.95, 1.0])
CLIPS = st.sampled_from([(1.0, 1.0), (1.0, 0.5), (2.0, 1.0), (np.inf, 1.0), (np.inf, np.inf)])


def make_off_policy(
    seed: int, num_steps: int, num_columns: int, dtype: str = "float64"
) -> dict[str, np.ndarray]:
    """Arguments of `vtrace`, with log-probs that differ by up to a few units."""
    rng = np.random.default_rng(seed)
    log_probs = rng.normal(-1.0, 0.7, (2, num_steps, num_columns)).astype(dtype)
    return {
        **make_columns(seed, num_steps, num_columns, dtype),
        "behaviour_log_prob": log_probs[0],
        "log_prob": log_probs[1],
    }


def on_policy(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return columns | {"log_prob": columns["behaviour_log_prob"]}


def without_log_probs(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array for name, array in columns.items() if "log_prob" not in name}


COLUMNS = st.builds(make_off_policy, st.integers(0, 2**32), st.integers(1, 20), st.integers(1, 40))


@EXAMPLES
@given(COLUMNS, FACTOR, FACTOR, CLIPS)
def test_on_policy_it_is_gae_and_its_targets_the_lambda_return(columns, gamma, lam, clips):
    rho_bar, c_bar = max(clips[0], 1.0), max(clips[1], 1.0)
    target, advantage = vtrace(
        **on_policy(columns), gamma=gamma, lam=lam, rho_bar=max(rho_bar, c_bar), c_bar=c_bar
    )
    expected = gae(**without_log_probs(columns), gamma=gamma, lam=lam)
    np.testing.assert_allclose(advantage, expected, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(target, expected + columns["value"], rtol=1e-12, atol=1e-13)


@EXAMPLES
@given(COLUMNS, FACTOR)
def test_on_policy_at_lambda_one_the_targets_are_the_returns(columns, gamma):
    target, _ = vtrace(**on_policy(columns), gamma=gamma)
    arguments = {name: columns[name] for name in ("reward", "next_value", "terminated", "done")}
    np.testing.assert_allclose(target, returns(**arguments, gamma=gamma), rtol=1e-10, atol=1e-12)


@EXAMPLES
@given(COLUMNS, FACTOR, FACTOR, CLIPS)
def test_vtrace_equals_its_sum_written_out(columns, gamma, lam, clips):
    rho_bar, c_bar = clips
    arguments = {**columns, "gamma": gamma, "lam": lam, "rho_bar": rho_bar, "c_bar": c_bar}
    for got, expected in zip(vtrace(**arguments), reference.vtrace(**arguments), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-11)


@EXAMPLES
@given(COLUMNS, CLIPS)
def test_without_its_weight_the_advantage_lacks_its_own_clipped_ratio_alone(columns, clips):
    arguments = {**columns, "gamma": 0.9, "lam": 0.8, "rho_bar": clips[0], "c_bar": clips[1]}
    target, weighted = vtrace(**arguments)
    same_target, advantage = vtrace(**arguments, weighted=False)
    rho = np.minimum(clips[0], np.exp(columns["log_prob"] - columns["behaviour_log_prob"]))
    assert np.array_equal(same_target, target)
    np.testing.assert_allclose(rho * advantage, weighted, rtol=1e-12, atol=0)


@EXAMPLES
@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(1, 40))
def test_float32_is_kept_and_agrees_with_float64_to_its_precision(seed, num_steps, num_columns):
    columns = make_off_policy(seed, num_steps, num_columns, "float32")
    factors = {"gamma": 0.97, "lam": 0.9, "rho_bar": 1.5, "c_bar": 1.0}
    for got, expected in zip(
        vtrace(**columns, **factors), reference.vtrace(**columns, **factors), strict=True
    ):
        assert got.dtype == np.float32 and got.shape == (num_steps, num_columns)
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


@EXAMPLES
@given(COLUMNS)
def test_what_follows_a_termination_is_ignored_even_if_it_is_nan(columns):
    other = columns | {"next_value": np.where(columns["terminated"], 1e30, columns["next_value"])}
    for got, same in zip(vtrace(**columns, gamma=0.9), vtrace(**other, gamma=0.9), strict=True):
        assert np.isfinite(got).all()
        assert np.array_equal(got, same)


@EXAMPLES
@given(st.integers(0, 2**32), st.integers(2, 12), st.integers(1, 5))
def test_a_masked_row_inserted_after_an_episode_changes_no_other_row(seed, num_steps, num_columns):
    columns = make_off_policy(seed, num_steps, num_columns)
    end = np.random.default_rng(seed).integers(num_steps)
    columns["done"][end] = True
    flags = {"terminated": False, "done": True}
    longer = {name: np.insert(a, end + 1, flags.get(name, np.nan), axis=0) for name, a in columns.items()}
    for got, expected in zip(vtrace(**longer, gamma=0.9), vtrace(**columns, gamma=0.9), strict=True):
        assert np.array_equal(np.delete(got, end + 1, axis=0), expected)


def test_an_action_that_the_policy_no_longer_takes_teaches_nothing_and_stops_the_trace():
    one, no = np.ones((3, 1)), np.zeros((3, 1), bool)
    log_prob = np.array([[0.0], [-np.inf], [0.0]])
    target, advantage = vtrace(one, 0 * one, 0 * one, no, no, 0 * one, log_prob, gamma=0.5)
    assert advantage[1] == 0 and target[1] == 0
    assert target.tolist() == [[1.0], [0.0], [1.0]], "the first step does not see the last one's reward"


def test_a_ratio_that_overflows_is_clipped_without_a_warning():
    one, no = np.ones((1, 1), np.float32), np.zeros((1, 1), bool)
    target, advantage = vtrace(one, 0 * one, 0 * one, no, no, -500 * one, 0 * one, gamma=0.5, rho_bar=2.0)
    assert target == 2.0 and advantage == 2.0


def test_the_targets_are_the_value_of_the_learning_policy_in_a_bandit():
    """With rho_bar infinite the mean of v over what mu drew is pi's value, whatever mu (two arms, one step)."""
    mu, pi, pay = np.array([0.8, 0.2]), np.array([0.3, 0.7]), np.array([1.0, 5.0])
    arms, no = np.array([[0, 1]]), np.ones((1, 2), bool)
    nothing = np.zeros((1, 2))
    target, _ = vtrace(
        pay[arms], nothing, nothing, no, no, np.log(mu)[arms], np.log(pi)[arms], gamma=1.0, rho_bar=np.inf
    )
    assert float(mu @ target[0]) == pytest.approx(float(pi @ pay), rel=1e-12)


def test_arrays_that_are_write_protected_or_laid_out_otherwise_are_taken_and_left_alone():
    columns = make_off_policy(3, 9, 6)
    expected = vtrace(**columns, gamma=0.9)
    protected = {name: np.asfortranarray(array) for name, array in columns.items()}
    for array in protected.values():
        array.flags.writeable = False
    for got, same in zip(vtrace(**protected, gamma=0.9), expected, strict=True):
        assert np.array_equal(got, same)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_no_rows_or_no_columns_give_an_empty_result(shape):
    empty = {k: a[: shape[0], : shape[1]] for k, a in make_off_policy(0, 3, 3).items()}
    assert [array.shape for array in vtrace(**empty, gamma=0.9)] == [shape, shape]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"log_prob": np.ones((3, 2), np.float32)}, "log_prob must have the shape and type of reward"),
        ({"behaviour_log_prob": np.ones((2, 2))}, "behaviour_log_prob must have the shape and type"),
        ({"done": np.zeros((3, 2))}, "done must be a bool array, got float64"),
        ({"lam": 1.5}, "lam must lie in"),
        ({"rho_bar": 0.5}, r"c_bar <= rho_bar must hold, got c_bar 1.0 and rho_bar 0.5"),
        ({"c_bar": 0.0}, "0 < c_bar"),
        ({"rho_bar": float("nan")}, "c_bar <= rho_bar"),
    ],
)
def test_a_wrong_argument_is_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        vtrace(**(make_off_policy(0, 3, 2) | {"gamma": 0.9} | changes))
