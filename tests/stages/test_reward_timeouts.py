"""A reward function that hangs ends a run in bounded time with one and the same error, wherever roles live."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from distrl.resolve import resolve_as
from distrl.stages.ppo_config import PPO, PPOConfig
from tests.stages.conftest import command, ppo_flags, records, start, summary, write_lines

Undisturbed = Callable[..., Path]
# of the 8 responses 2 may lack a score
FLAGS = ("--reward-function", "hangs:score", "--reward-timeout-sec", "1", "--max-unscored", "0.25")
TOLD = (
    "more than 2 calls of a reward function for 8 responses gave no answer within --reward-timeout-sec 1; raise it where "
    "the function is only slow; the first: reward function hangs:score: no answer within 1 s"
)
HANGS = """
import time
from pathlib import Path

def score(prompt, response):
    with open(Path(__file__).with_name("calls"), "a") as file:
        file.write("called\\n")
    time.sleep(1000)

def at_times(prompt, response):
    if len(response) % 5 == 0:
        time.sleep(1000)
    return 1.0

def held_out(prompt, response):
    if prompt == "the sun":
        time.sleep(1000)
    return 1.0
"""


def calls(place: Path) -> int:
    """Since the last look."""
    found = (place / "calls").read_text().count("called")
    (place / "calls").unlink()
    return found


def test_a_function_that_hangs_is_called_no_more_often_than_the_batch_may_lose_and_ends_the_run(
    workplace: Path, tmp_path: Path
) -> None:
    (workplace / "hangs.py").write_text(HANGS)
    run = tmp_path / "run"
    failed = command(workplace, *ppo_flags(run, *FLAGS), status=1)
    assert TOLD in failed.stderr and TOLD in summary(run)["exit_reason"]
    assert calls(workplace) == 1 + 3, "the trial, and the batch"


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(300)
@pytest.mark.parametrize("workers", [1, 2])
def test_on_ray_it_ends_with_the_same_error_and_no_worker_counts_as_lost(
    workers: int, workplace: Path, tmp_path: Path
) -> None:
    (workplace / "hangs.py").write_text(HANGS)
    run = tmp_path / "run"
    more = ("--placement", "separate", "--roles.reward.workers", str(workers), "--forward-batch", "4")
    with tempfile.TemporaryDirectory(prefix="dr", dir="/tmp", ignore_cleanup_errors=True) as folder:
        process = start(workplace, *ppo_flags(run, *FLAGS, *more), RAY_TMPDIR=folder)
        _, said = process.communicate(timeout=240)
    assert process.returncode == 1, said
    assert TOLD in said and TOLD in summary(run)["exit_reason"]
    assert summary(run)["restarts"] == 0 and "is lost" not in said
    assert 1 + 3 <= calls(workplace) <= 1 + 3 * workers


def test_calls_that_hang_now_and_then_are_left_out_and_counted(workplace: Path, tmp_path: Path) -> None:
    (workplace / "hangs.py").write_text(HANGS)
    run = tmp_path / "run"
    more = ("--reward-function", "hangs:at_times", "--reward-timeout-sec", "1", "--max-unscored", "1")
    command(workplace, *ppo_flags(run, *more, "--iterations", "1"))
    (line,) = records(run)
    assert 0 < line["reward_timeouts"] == line["unscored"] < 8
    assert line["episodes"] == 8 - line["unscored"]


def test_an_evaluation_that_was_not_scored_to_its_end_is_no_best(workplace: Path, tmp_path: Path) -> None:
    (workplace / "hangs.py").write_text(HANGS)
    write_lines(workplace / "held.jsonl", [{"prompt": one} for one in ("a dog", *["the sun"] * 4)])
    write_lines(workplace / "dog.jsonl", [{"prompt": "a dog"}] * 8)
    run = tmp_path / "run"
    more = (
        "--prompts",
        "dog.jsonl",
        "--eval-prompts",
        "held.jsonl",
        "--eval-every",
        "1",
        "--iterations",
        "1",
    )
    command(workplace, *ppo_flags(run, *FLAGS[2:], "--reward-function", "hangs:held_out", *more))
    (line,) = records(run)
    assert line["unscored"] == 0 and line["eval/unscored"] >= 3
    assert not (run / "best").exists() and summary(run)["best_return"] is None
    assert any("best/ stays as it is" in one for one in summary(run)["warnings"])


def config(**fields: object) -> PPOConfig:
    given = {"model": "m", "prompts": "p", "reward_function": "my:score", **fields}
    return resolve_as(PPO, given).config


def test_as_many_calls_may_hang_as_may_lack_a_score_and_as_there_is_patience_for() -> None:
    assert config(num_prompts=8, max_unscored=0.25).max_timeouts == 2
    # 480 s / (60 + 5) s = 7 calls, and the last ends the run
    assert config(num_prompts=64).max_timeouts == 6
    assert config(num_prompts=64, algo="grpo").max_timeouts == 6
    assert config(num_prompts=64, reward_function="my:score,my:other").max_timeouts == 2
    assert config(num_prompts=64, reward_timeout_sec=300.0).max_timeouts == 0


def test_a_call_may_take_longer_than_a_role_since_its_time_is_its_own() -> None:
    assert config(reward_timeout_sec=900.0, role_timeout_sec=60.0).reward_timeout_sec == 900


SLOW = """
import time

def score(prompt, response):
    time.sleep(0.8)
    return float(len(response))
"""


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(300)
@pytest.mark.parametrize("placement", ["separate", "colocate"])
def test_a_slow_function_is_not_a_lost_worker(placement: str, workplace: Path, tmp_path: Path) -> None:
    (workplace / "slow.py").write_text(SLOW)
    run = tmp_path / "run"
    # 48 calls of 0.8 s are 38 s, and a role must answer within 25
    more = (
        "--placement",
        placement,
        "--num-prompts",
        "48",
        "--iterations",
        "1",
        "--role-timeout-sec",
        "25",
        "--placement-timeout-sec",
        "200",
    )
    with tempfile.TemporaryDirectory(prefix="dr", dir="/tmp", ignore_cleanup_errors=True) as folder:
        process = start(
            workplace, *ppo_flags(run, "--reward-function", "slow:score", *more), RAY_TMPDIR=folder
        )
        _, said = process.communicate(timeout=280)
    assert process.returncode == 0, said
    assert summary(run)["restarts"] == 0 and "is lost" not in said
