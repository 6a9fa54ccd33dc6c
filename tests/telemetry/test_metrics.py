"""Merging is exact: no split into workers, and no order, changes a bit of a mean."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distrl.telemetry.metrics import EpisodeWindow, Mean, Metrics

FLOATS = st.floats(allow_nan=False, allow_infinity=False)


def exact_mean(values: list[float]) -> float:
    """The slow twin: rational arithmetic, rounded once."""
    return float(sum(map(Fraction, values), Fraction(0)) / len(values))


def mean_of(values: list[float]) -> Mean:
    mean = Mean()
    for value in values:
        mean.add(value)
    return mean


@given(st.lists(FLOATS, min_size=1, max_size=30), st.data())
def test_any_split_merged_in_any_order_gives_the_rational_mean_rounded_once(
    values: list[float], data
) -> None:
    num_workers = data.draw(st.integers(1, 5))
    owner = data.draw(st.lists(st.integers(0, num_workers - 1), min_size=len(values), max_size=len(values)))
    parts = [
        mean_of([value for value, who in zip(values, owner, strict=True) if who == w])
        for w in range(num_workers)
    ]
    merged = Mean()
    for part in data.draw(st.permutations(parts)):
        merged.merge(part)
    assert merged.count == len(values)
    assert merged.value == exact_mean(values)


@given(st.lists(FLOATS, min_size=1, max_size=30))
def test_adding_an_array_is_adding_its_elements(values: list[float]) -> None:
    mean = Mean()
    mean.add_many(np.array(values))  # where the sum passes the largest float64, too
    assert mean.count == len(values)
    assert mean.value == exact_mean(values)


def test_cancellation_that_float_sums_lose_is_kept() -> None:
    assert mean_of([1e16, 1.0, -1e16, 1.0]).value == 0.5
    assert sum([1e16, 1.0, -1e16, 1.0]) / 4 != 0.5


def test_it_is_not_a_mean_of_means() -> None:
    few, many = mean_of([10.0]), mean_of([1.0, 1.0, 1.0])
    few.merge(many)
    assert few.value == 13.0 / 4


def test_a_sum_may_be_added_with_its_count_and_a_mask_selects() -> None:
    mean = Mean()
    mean.add(6.0, count=3)
    mean.add_many(np.array([[1.0, np.nan], [3.0, 1e300]]), mask=np.array([[True, False], [True, False]]))
    assert (mean.total, mean.count, mean.value) == (10.0, 5, 2.0)
    with pytest.raises(ValueError, match="mask must have the shape"):
        mean.add_many(np.zeros(3), mask=np.ones(2, bool))


def test_not_a_number_and_infinity_propagate_and_nothing_yet_is_nan() -> None:
    assert math.isnan(Mean().value)
    assert mean_of([1.0, math.inf]).value == math.inf
    assert math.isnan(mean_of([math.inf, -math.inf]).value)
    mean = Mean()
    mean.add_many(np.array([1.0, np.nan]))
    mean.merge(mean_of([1.0]))
    assert math.isnan(mean.value)
    assert mean.count == 3


def test_metrics_merge_name_by_name() -> None:
    first, second = Metrics(), Metrics()
    first.add("info/x", 1.0)
    first.add_many("entropy", np.array([2.0, 4.0]))
    second.add("info/x", 9.0, count=3)
    second.add("approx_kl", 0.5)
    first.merge(second)
    assert first.values() == {"approx_kl": 0.5, "entropy": 3.0, "info/x": 2.5}
    assert second.values() == {"approx_kl": 0.5, "info/x": 3.0}


def test_the_episode_window_keeps_the_last_hundred_and_its_state_gives_it_back() -> None:
    window = EpisodeWindow()
    assert (window.return_mean, window.length_mean) == (None, None)
    window.extend([float(i) for i in range(130)], range(1000, 1130))
    assert len(window) == 100
    assert window.return_mean == np.mean(np.arange(30, 130))
    assert window.length_mean == np.mean(np.arange(1030, 1130))

    again = EpisodeWindow.from_state(window.state())
    for either in (window, again):
        either.add(-0.1, 7)
    assert again.return_mean == window.return_mean
    assert again.length_mean == window.length_mean
    assert again.state()["episode_return"].dtype == np.float64
    with pytest.raises(ValueError, match="at least 1 episode"):
        EpisodeWindow(0)
