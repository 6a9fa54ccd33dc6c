"""How a reward function is recognised by its signature, called, and read."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from distrl.errors import BadInput
from distrl.rlhf.reward_calls import Callee, Outcome, Row, clashes, form_of, outcome_of, outcomes_of
from distrl.rlhf.reward_pool import Pool, ThreadCaller

ROWS = [Row("p", "r", {"answer": 1}), Row("q", "s", {"answer": 2, "level": 3})]


def one(prompt: str, response: str, **columns: Any) -> Any: ...
def positional(question: str, text: str) -> Any: ...
def swapped(response: str, prompt: str) -> Any: ...
def alone(completion: str) -> Any: ...
def trl(prompts: Any, completions: Any, answer: Any, **kwargs: Any) -> Any: ...
def trl_alone(completions: Any, **kwargs: Any) -> Any: ...
def anything(**kwargs: Any) -> Any: ...
def in_a_batch(prompts: Any, responses: Any) -> Any: ...
def of_messages(messages: Any, response: str) -> Any: ...


@pytest.mark.parametrize(
    ("function", "batch", "first", "given"),
    [
        (one, False, False, {"prompt", "response"}),
        (positional, False, True, {"question", "text"}),
        (swapped, False, False, {"prompt", "response"}),
        (alone, False, False, {"completion"}),
        (of_messages, False, False, {"messages", "response"}),
        (trl_alone, True, False, {"prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric"}),
        (in_a_batch, True, False, {"prompts", "responses"}),
    ],
)  # fmt: skip
def test_the_form_follows_from_the_names_of_the_parameters(
    function: Callable[..., Any], batch: bool, first: bool, given: set[str]
) -> None:
    form = form_of(function)
    assert (form.batch, form.first, set(form.given)) == (batch, first, given)


def test_any_keywords_are_a_batch_and_a_required_parameter_is_a_column() -> None:
    assert form_of(anything).batch and form_of(trl).required == ("answer",)
    assert not form_of(lambda *parts: 1.0).batch
    with pytest.raises(BadInput, match=r"must take \(prompt, response"):
        form_of(lambda text: 1.0)


def test_columns_come_by_name_and_those_that_a_row_lacks_are_none() -> None:
    seen: list[Any] = []

    def batch(prompts: Any, completions: Any, level: Any, **columns: Any) -> list[float]:
        seen.append((prompts, completions, level, columns["answer"]))
        return [1.0, 2.0]

    def single(prompt: str, response: str, level: Any) -> float:
        seen.append((prompt, response, level))
        return 1.0

    outcomes, _ = Callee(batch).call(ROWS, 5)
    assert [one.score for one in outcomes] == [1.0, 2.0]
    for row in ROWS:
        Callee(single).call([row], 0)
    assert seen == [(["p", "q"], ["r", "s"], [None, 3], [1, 2]), ("p", "r", None), ("q", "s", 3)]


def test_a_column_with_a_name_that_is_taken_is_a_clash() -> None:
    columns = [{"response": "x", "answer": 1}]
    assert "'response'" in clashes(form_of(one), columns)[0]
    assert clashes(form_of(positional), columns) == []
    assert "'solution'" in clashes(form_of(lambda prompt, response, solution: 1.0), [{"answer": 1}])[0]


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (None, Outcome(skipped=True)),
        (True, Outcome(1.0)),
        (np.float32(0.5), Outcome(0.5)),
        ({"score": 2, "x": np.int64(3), "text": "no metric"}, Outcome(2.0, extras={"x": 3.0})),
        ({"score": None, "x": 1}, Outcome(skipped=True, extras={"x": 1.0})),
        (10**400, Outcome(fault="returned a number that no float holds")),
    ],
)
def test_what_a_function_returns_for_one_response(value: Any, found: Outcome) -> None:
    got = outcome_of(value)
    assert (got.skipped, got.fault, got.extras) == (found.skipped, found.fault, found.extras)
    np.testing.assert_equal(got.score, found.score)


def test_a_batch_is_a_list_an_array_or_a_dict_of_lists() -> None:
    several = outcomes_of({"score": [1.0, None], "x": [4, 5]}, 2)
    assert [(one.skipped, one.extras) for one in several] == [(False, {"x": 4.0}), (True, {"x": 5.0})]
    assert [one.score for one in outcomes_of(np.arange(2.0), 2)] == [0.0, 1.0]
    for wrong in ([1.0], [[1.0], [2.0]], 3.0, "ab", None):
        assert all(one.fault for one in outcomes_of(wrong, 2)), wrong


def test_calls_at_once_keep_the_order_and_a_hanging_one_is_left_behind() -> None:
    running, most = [0], [0]
    lock = threading.Lock()

    def score(prompt: str, response: str) -> float:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.5 if response == "slow" else 0.05)
        with lock:
            running[0] -= 1
        return float(prompt)

    rows = [[Row(str(n), "slow" if n == 2 else "quick")] for n in range(8)]
    pool = Pool("python:score", score, 0.3, 4, lambda: None)
    answers, timeouts = pool.run(rows, 0)
    scores = [outcomes[0].score for outcomes, _ in answers]
    np.testing.assert_equal(scores, [0.0, 1.0, np.nan, 3.0, 4.0, 5.0, 6.0, 7.0])
    assert timeouts == 1 and 1 < most[0] <= 5
    pool.close()


def test_an_object_changes_only_copies_and_exits_nothing() -> None:
    def score(prompts: Any, completions: Any, tags: Any) -> list[float]:
        tags[0].append("changed")
        raise SystemExit(3)

    row = Row("p", "r", {"tags": ["kept"]})
    caller = ThreadCaller(score, 5.0)
    ((outcome,), _) = caller.call([row])
    assert outcome.fault == "SystemExit: 3" and row.columns["tags"] == ["kept"]
    caller.close()
