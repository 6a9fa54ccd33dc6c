"""Numbers that tell what a batch of responses is like."""

from __future__ import annotations

import numpy as np
import pytest

from distrl.rlhf.diagnostics import repetition, response_metrics, score_metrics
from distrl.rlhf.opinions import Part
from distrl.rlhf.responses import Responses


def written(*answers: list[int]) -> Responses:
    noughts = [[0.0] * len(one) for one in answers]
    return Responses.write([[1]] * len(answers), answers, noughts, [True] * len(answers), range(len(answers)))


def test_repetition_is_the_share_of_runs_of_four_that_were_there_before() -> None:
    assert repetition(written([1, 2, 3, 4, 5])) == 0
    assert repetition(written([7] * 8)) == pytest.approx(4 / 5)
    assert repetition(written([1, 2, 3, 4, 1, 2, 3, 4])) == pytest.approx(1 / 5)
    assert repetition(written([7] * 8, [1, 2])) == pytest.approx(2 / 5), "a mean of responses"


def test_a_group_whose_scores_are_alike_has_no_spread() -> None:
    responses = written(*[[1, 2]] * 6)
    score = np.array([1, 1, 0, 1, np.nan, 1], np.float32)
    assert response_metrics(responses, score, 2)["groups_without_spread"] == pytest.approx(2 / 3)
    assert "groups_without_spread" not in response_metrics(responses, score, 1)


def test_a_rewards_mean_is_of_what_it_scores_whoever_scored_it() -> None:
    parts = [
        Part(np.array([2, 0]), np.zeros(2), named={"f": np.array([4.0, np.nan])}),
        Part(np.array([1]), np.zeros(1), named={"f": np.array([1.0]), "f/x": np.array([7.0])}),
    ]
    assert score_metrics(parts, 3) == {"score/f": 2.5, "score/f/x": 7.0}
