"""Rewards: a model's score in its own units, a function that may do anything, and sums of them."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from distrl.errors import BadInput
from distrl.policies.lm import ScalarModel
from distrl.rlhf.data import Prompt
from distrl.rlhf.models import read_causal, scalar_from
from distrl.rlhf.opinions import SKIPPED, Part, first_fault
from distrl.rlhf.responses import Responses
from distrl.rlhf.reward_calls import Row
from distrl.rlhf.reward_process import FunctionProcess
from distrl.rlhf.rewards import (
    FunctionReward,
    ModelReward,
    ScoreScale,
    Weighted,
    changed_files,
    check_function,
    read_reward,
    read_scale,
    save_reward,
)

HERE = "tests.rlhf.reward_functions"


def prompt_of(tokenizer: Any, text: str, **fields: Any) -> Prompt:
    return Prompt(text, tuple(tokenizer(text)["input_ids"]), fields)


def answered(tokenizer: Any, prompts: Sequence[Prompt], texts: Sequence[str]) -> Responses:
    """Each text, ended, as the response to its prompt."""
    answers = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in texts]
    noughts = [[0.0] * len(answer) for answer in answers]
    return Responses.write(
        [one.tokens for one in prompts], answers, noughts, [True] * len(texts), range(len(texts))
    )


def every(responses: Responses) -> list[np.ndarray]:
    return [np.arange(responses.num_responses)]


def say(tokenizer: Any, texts: Sequence[str], name: str = "obeys", **more: Any) -> Part:
    """What a function says of texts."""
    prompts = tuple(prompt_of(tokenizer, "say") for _ in texts)
    source = FunctionReward(f"{HERE}:{name}", prompts, tokenizer, **more)
    scorer = source.build("cpu")
    try:
        responses = answered(tokenizer, prompts, texts)
        return scorer.score(responses, every(responses))
    finally:
        scorer.close()  # type: ignore[attr-defined]


def test_a_function_is_given_prompt_response_and_the_fields_it_has_room_for(
    tokenizer: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    prompts = (prompt_of(tokenizer, "abc", answer="yes", level=1), prompt_of(tokenizer, "ab", answer="no"))
    responses = answered(tokenizer, prompts, ["x", "y"])
    told = FunctionReward(f"{HERE}:told", prompts, tokenizer).build("cpu")
    np.testing.assert_array_equal(told.score(responses, every(responses)).said, [113.0, 2.0])
    picky = FunctionReward(f"{HERE}:picky", prompts, tokenizer).build("cpu")
    np.testing.assert_array_equal(picky.score(responses, every(responses)).said, [1.0, 0.0])
    shown = capfd.readouterr()
    assert not shown.out and "in nobody's way" in shown.err


def test_a_response_is_decoded_without_special_tokens_and_scored_in_the_columns_asked_for(
    tokenizer: Any,
) -> None:
    texts = ["the cat", "a", "the dog ran"]
    prompts = tuple(prompt_of(tokenizer, "say the words " * i) for i in (1, 2, 3))
    responses = answered(tokenizer, prompts, texts)
    scorer = FunctionReward(f"{HERE}:letters", prompts, tokenizer).build("cpu")
    part = scorer.score(responses, [np.array([2]), np.array([0, 1])])
    np.testing.assert_array_equal(part.columns, [2, 0, 1])
    np.testing.assert_array_equal(part.said, [len(texts[2]), len(texts[0]), len(texts[1])])
    assert part.said.dtype == np.float32
    nothing = scorer.score(responses, [])
    assert nothing.said.shape == (0,), "a worker may have no share"


def alive_in_group(group: int) -> list[int]:
    """Processes of a group that still run, whoever is to reap the others."""
    found = []
    for one in psutil.process_iter(["pid", "status"]):
        try:
            if os.getpgid(one.pid) == group and one.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(one.pid)
        except ProcessLookupError:
            continue
    return found


FAULTS = {
    "raise": "ValueError: as told",
    "exit": "the process exited with status 3",
    "system exit": "SystemExit: 4",
    "nan": "returned nan",
    "infinite": "returned -inf",
    "text": "returned str '1.0', not a number",
    "none": "every reward function returned None",
    "large": "returned -1e+39, more than float32 holds",
    "list": "returned list",
    "array": "ValueError",
    "complex": "returned complex",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_call_without_a_number_masks_its_response_alone(fault: str, tokenizer: Any) -> None:
    part = say(tokenizer, ["good", fault, "good", "good"])
    np.testing.assert_array_equal(part.said, [1.0, np.nan, 1.0, 1.0])
    found = first_fault([part])
    assert found is not None and found[0] == 1 and FAULTS[fault] in found[1]
    assert fault == "none" or f"reward function {HERE}:obeys: " in found[1]


@pytest.mark.parametrize("hang", ["hang", "stuck", "child"])
def test_a_call_that_takes_too_long_is_ended_with_all_it_started(hang: str, tokenizer: Any) -> None:
    process = FunctionProcess(f"{HERE}:obeys", timeout_sec=2.0)
    first = process.child
    ((outcome,), _) = process.call([Row("", hang)])
    assert (outcome.fault, outcome.timed_out) == ("no answer within 2 s", True)
    assert first.returncode == -signal.SIGKILL
    assert not alive_in_group(first.pid)
    assert process.call([Row("", "good")])[0][0].score == 1.0, "another took its place"
    process.close()


@pytest.mark.slow
def test_who_has_met_too_many_timeouts_calls_no_more_and_others_count_their_own(tokenizer: Any) -> None:
    texts = ["good", "hang", "raise", "hang", "good", "good"]
    prompts = tuple(prompt_of(tokenizer, "say") for _ in texts)
    responses = answered(tokenizer, prompts, texts)
    source = FunctionReward(f"{HERE}:obeys", prompts, tokenizer, timeout_sec=2.0, max_timeouts=1)
    nan, hung = np.nan, f"reward function {HERE}:obeys: no answer within 2 s"
    alone = source.build("cpu").score(responses, every(responses))
    np.testing.assert_array_equal(alone.said, [1, nan, nan, nan, nan, nan])
    assert (alone.timeouts, alone.fault) == (2, (1, hung))
    summed = Weighted(((1.0, source), (1.0, FunctionReward(f"{HERE}:letters", prompts, tokenizer)))).build(
        "cpu"
    )
    backwards = summed.score(responses, [np.array([5, 3, 1, 0])])
    assert (backwards.timeouts, backwards.fault) == (2, (0, hung)), "a response that was not called for, too"
    two = [Weighted(((1.0, source),)).build("cpu") for _ in range(2)]
    shares = [
        one.score(responses, [np.array(mine)]) for one, mine in zip(two, ([0, 1, 2], [3, 4, 5]), strict=True)
    ]
    np.testing.assert_array_equal(np.concatenate([one.said for one in shares]), [1, nan, nan, nan, 1, 1])
    assert [one.timeouts for one in shares] == [1, 1], "the same 2 for whoever sees all"
    assert first_fault(shares) == (1, hung)


def test_a_batch_function_sees_all_responses_whoever_scores_which(tokenizer: Any) -> None:
    texts = ["the cat", "a dog", "zebra", "moon"]
    prompts = tuple(prompt_of(tokenizer, "say") for _ in texts)
    responses = answered(tokenizer, prompts, texts)
    scorer = FunctionReward(f"{HERE}:rank", prompts, tokenizer).build("cpu")
    whole = scorer.score(responses, every(responses)).said
    np.testing.assert_array_equal(whole, [2, 0, 3, 1])
    shares = [scorer.score(responses, [np.array(mine)]) for mine in ([3, 0], [1, 2])]
    np.testing.assert_array_equal(np.concatenate([one.said for one in shares]), whole[[3, 0, 1, 2]])
    assert scorer.score(responses, []).said.shape == (0,)


def test_a_reward_that_does_not_score_a_response_is_left_out_of_its_sum(tokenizer: Any) -> None:
    texts = ["the cat", "a dog", "moon"]
    prompts = tuple(prompt_of(tokenizer, "say") for _ in texts)
    responses = answered(tokenizer, prompts, texts)
    some = FunctionReward(f"{HERE}:told_as_batch", prompts, tokenizer)
    other = FunctionReward(f"{HERE}:letters", prompts, tokenizer, name="other")
    part = Weighted(((2.0, some), (10.0, other))).build("cpu").score(responses, every(responses))
    np.testing.assert_array_equal(part.said, [84.0, 50.0, 48.0])
    np.testing.assert_array_equal(part.named["told_as_batch"], [7.0, np.nan, 4.0])
    assert (
        set(part.named) == {"told_as_batch", "told_as_batch/tokens", "other"} and first_fault([part]) is None
    )
    alone = some.build("cpu").score(responses, every(responses))
    assert first_fault([alone]) == (1, SKIPPED) and np.isnan(alone.said[1])


def test_special_tokens_reach_a_function_and_the_end_does_not(tokenizer: Any) -> None:
    prompts = (prompt_of(tokenizer, "say"),)
    user = tokenizer.convert_tokens_to_ids("<|user|>")
    tokens = [user, *tokenizer("the cat")["input_ids"], user, tokenizer.eos_token_id]
    responses = Responses.write([prompts[0].tokens], [tokens], [[0.0] * len(tokens)], [True], [0])
    scorer = FunctionReward(f"{HERE}:letters", prompts, tokenizer).build("cpu")
    assert scorer.score(responses, every(responses)).said[0] == len("<|user|>the cat<|user|>")


def test_a_process_that_was_killed_between_calls_costs_no_response() -> None:
    process = FunctionProcess(f"{HERE}:obeys", timeout_sec=30.0)
    process.child.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, process.child.pid, os.WEXITED | os.WNOWAIT)
    assert process.call([Row("", "good")])[0][0].score == 1.0
    process.close()


def test_a_scorer_ends_no_run_and_says_why_its_first_column_has_no_score(tokenizer: Any) -> None:
    texts = ["good", "nan", "raise", "text", "raise"]
    prompts = tuple(prompt_of(tokenizer, "say") for _ in texts)
    responses = answered(tokenizer, prompts, texts)
    obeys = FunctionReward(f"{HERE}:obeys", prompts, tokenizer)
    letters = FunctionReward(f"{HERE}:letters", prompts, tokenizer)
    scorer, summed = obeys.build("cpu"), Weighted(((1.0, letters), (1.0, obeys))).build("cpu")
    named = f"reward function {HERE}:obeys"
    for one in (scorer, summed):
        assert one.score(responses, [np.array([0])]).fault is None
        part = one.score(responses, [np.array([4, 3]), np.array([2])])
        assert np.isnan(part.said).all()
        assert part.fault == (2, f"{named}: ValueError: as told"), (
            "the lowest column, not the first looked at"
        )
        shares = [one.score(responses, [np.array(columns)]) for columns in ([4, 0], [3, 1], [2])]
        assert first_fault(shares) == (1, f"{named}: returned nan")


def test_a_reward_travels_to_its_workers(tokenizer: Any) -> None:
    prompts = (prompt_of(tokenizer, "say", answer="yes"),)
    responses = answered(tokenizer, prompts, ["the cat"])
    source = Weighted(((2.0, FunctionReward(f"{HERE}:letters", prompts, tokenizer)),))
    scorer = pickle.loads(pickle.dumps(source)).build("cpu")
    np.testing.assert_array_equal(scorer.score(responses, every(responses)).said, [14.0])


def test_a_number_of_numpys_is_a_number(tokenizer: Any) -> None:
    np.testing.assert_array_equal(say(tokenizer, ["a"], "numpy_score").said, [0.5])


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("no_such_module:f", "cannot be imported"),
        (f"{HERE}:lettres", "has no function 'lettres'"),
        ("letters", "must be module:function"),
    ],
)
def test_a_function_that_cannot_be_loaded_is_refused_before_the_run(name: str, told: str) -> None:
    with pytest.raises(BadInput, match=told):
        check_function(name)


def test_no_function_outlives_a_run_that_was_killed(tmp_path: Path) -> None:
    code = (
        "from distrl.rlhf.reward_process import FunctionProcess\n"
        f"process = FunctionProcess('{HERE}:obeys', 60.0)\n"
        "print(process.child.pid, flush=True)\n"
        "from distrl.rlhf.reward_calls import Row\n"
        "process.call([Row('', 'hang')])\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        child = int(run.stdout.readline())
        os.kill(child, 0)
        run.kill()
    deadline = time.monotonic() + 60
    while Path(f"/proc/{child}").exists() and "zombie" not in Path(f"/proc/{child}/status").read_text():
        assert time.monotonic() < deadline, "the function's process goes on"
        time.sleep(0.1)


def test_a_models_scores_are_told_in_units_of_its_scale(gpt2_folder: Path, tmp_path: Path) -> None:
    parts = scalar_from(read_causal(gpt2_folder), 0.5, seed=1)
    prompts = [[5, 6, 7], [8, 9], [10, 11, 12, 13]]
    answers = [[20, 21], [22, 23, 24, 25], [0]]
    responses = Responses.write(prompts, answers, [[0.0] * len(one) for one in answers], [True] * 3, range(3))
    save_reward(parts, ScoreScale(0.25, 2.0, 64), tmp_path)
    scorer = read_reward(tmp_path).build("cpu")
    part = scorer.score(responses, [np.array([2, 0]), np.array([1])])
    model = ScalarModel(parts.build())
    for column, said in zip(part.columns, part.said, strict=True):
        text = torch.tensor([[*prompts[column], *answers[column]]])
        with torch.no_grad():
            raw = model(text)[0, -1]
        assert said == pytest.approx((float(raw) - 0.25) / 2.0, abs=1e-5)
    assert list(part.columns) == [2, 0, 1]


def test_a_score_is_read_at_the_last_token_whatever_the_pad_id(gpt2_folder: Path) -> None:
    parts = scalar_from(read_causal(gpt2_folder), 0.5, seed=1)
    scorer = ModelReward(parts).build("cpu")
    pad = int(parts.config.pad_token_id)

    def score(answer: list[int], beside: list[int]) -> float:
        responses = Responses.write(
            [[5], [5]], [answer, beside], [[0.0] * len(answer), [0.0] * len(beside)], [True] * 2, [0, 1]
        )
        return float(scorer.score(responses, every(responses)).said[0])

    alone = score([20, 21, pad], [6])
    assert alone == pytest.approx(score([20, 21, pad], [6] * 12), abs=1e-6), "padding changes nothing"
    assert abs(alone - score([20, 21], [6])) > 1e-3, "a pad that is part of a text is read"


def test_a_folder_without_a_scale_is_taken_as_it_is_and_a_broken_one_refused(tmp_path: Path) -> None:
    assert read_scale(tmp_path) == ScoreScale(0.0, 1.0, 0)
    for broken in ('{"mean": 0}', "{", '{"mean": 0, "deviation": 0, "num_samples": 1}'):
        (tmp_path / "reward_scale.json").write_text(broken)
        with pytest.raises(BadInput, match="reward_scale.json"):
            read_scale(tmp_path)
    (tmp_path / "reward_scale.json").write_text(json.dumps({"mean": 1, "deviation": 2, "num_samples": 3}))
    assert read_scale(tmp_path) == ScoreScale(1.0, 2.0, 3)


def test_several_rewards_are_summed_by_weight_and_one_without_a_score_masks_the_sum(tokenizer: Any) -> None:
    texts = ["the cat", "good", "nan", "fine", "well"]
    prompts = tuple(prompt_of(tokenizer, "say") for _ in texts)
    responses = answered(tokenizer, prompts, texts)
    letters = FunctionReward(f"{HERE}:letters", prompts, tokenizer)
    obeys = FunctionReward(f"{HERE}:obeys", prompts, tokenizer)
    scorer = Weighted(((0.5, letters), (-2.0, obeys))).build("cpu")
    np.testing.assert_array_equal(
        scorer.score(responses, every(responses)).said, [1.5, 0.0, np.nan, 0.0, 0.0]
    )


@pytest.mark.parametrize(("one", "other", "told"), [(1.0, 1.0, np.inf), (1e300, -1e300, np.nan)])
def test_a_sum_that_overflows_or_is_inf_less_inf_has_no_score_and_says_why(
    one: float, other: float, told: float, tokenizer: Any
) -> None:
    prompts = tuple(prompt_of(tokenizer, "say") for _ in range(3))
    responses = answered(tokenizer, prompts, ["good", "fine", "nan"])
    obeys = FunctionReward(f"{HERE}:obeys", prompts, tokenizer)
    large = FunctionReward(f"{HERE}:very_large", prompts, tokenizer)
    scorer = Weighted(((one, large), (other, large), (0.0, obeys))).build("cpu")
    part = scorer.score(responses, [np.array([2, 1, 0])])
    np.testing.assert_array_equal(part.said, [np.nan, told, told])
    assert part.fault is not None and part.fault[0] == 0
    assert part.fault[1] == "the weighted sum of its rewards is not finite in float32"
    assert scorer.score(responses, [np.array([2])]).fault == (
        2,
        f"reward function {HERE}:obeys: returned nan",
    )


def test_a_models_score_that_float32_does_not_hold_says_why(gpt2_folder: Path) -> None:
    parts = scalar_from(read_causal(gpt2_folder), 0.5, seed=1)
    responses = Responses.write([[5], [7]], [[8], [9]], [[0.0]] * 2, [True] * 2, [0, 1])
    scorer = ModelReward(parts, ScoreScale(0.0, 1e-45, 2)).build("cpu")
    part = scorer.score(responses, [np.array([1, 0])])
    assert np.isinf(part.said).all()
    assert part.fault == (0, "the reward model's score is not finite in float32")


def test_a_moved_functions_file_is_compared_with_the_one_of_its_name() -> None:
    before = {"/a/f.py:score": "1", "/a/g.py:short": "2"}
    assert changed_files(before, before) == []
    assert changed_files(before, {"/b/f.py:score": "1", "/a/g.py:short": "2"}) == []
    assert changed_files(before, {"/b/f.py:score": "2", "/a/g.py:short": "2"}) == ["/a/f.py:score"]
    assert changed_files(before, {"/b/f.py:score": "1"}) == ["/a/g.py:short"]
