"""The whole process group killed with -9 at bad moments, then resumed: the run ends as if nothing had been.

Moments: at random, before the first checkpoint after 0, inside a checkpoint write, in the last evaluation. Two kills of an
in-process run and one of a Ray run are part of every test run; ten in one run, for all kinds of runs, are slow.
"""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import pytest
from helpers import Command, assert_same_run, case, checkpoint_numbers, digest, metrics, summary

pytestmark = pytest.mark.timeout(300)

# seconds that each env step is made to last, so that an iteration takes a third of a second or so
PACE = {"mlp": "0.003", "lstm": "0.003", "normalised": "0.003", "image": "0.006", "atari": "0.006"}


def count_records(run_dir: Path) -> int:
    path = run_dir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def is_writing(run_dir: Path) -> bool:
    return any((run_dir / "checkpoints").glob(".tmp-*"))


def wait_for(moment: str, command: Command, run_dir: Path, rng: random.Random) -> None:
    """Return at the moment of the kill."""
    if moment == "before the first checkpoint":
        command.wait_until("the first record", lambda: count_records(run_dir) >= 1)
    elif moment == "in a checkpoint":
        command.wait_until("a checkpoint is written", lambda: is_writing(run_dir), poll_sec=0.0005)
    elif moment == "while it starts":
        command.wait_until("config.json is there", (run_dir / "config.json").exists)
        time.sleep(rng.uniform(0.0, 4.0))
    else:
        before = count_records(run_dir)
        command.wait_until("a record more", lambda: count_records(run_dir) != before)
        time.sleep(rng.uniform(0.0, 1.0))
    assert command.running, f"it ended before it was killed:\n{command.output}"


def train_through_kills(
    launcher: Any,
    run_dir: Path,
    fields: dict[str, Any],
    moments: list[str],
    pace: str,
    resume_workers: int | None = None,
) -> int:
    """Start, kill at each of the moments and resume, to the end. Returns how many kills left a torn checkpoint."""
    rng = random.Random(sum(map(ord, repr(fields))))
    torn = 0
    command = launcher.start_train(run_dir, {**fields, "wrapper": "toys:mortal"}, TOYS_SLEEP=pace)
    changed = [] if resume_workers is None else ["--workers", str(resume_workers)]
    for number, moment in enumerate(moments, start=1):
        wait_for(moment, command, run_dir, rng)
        command.kill_all()
        torn += is_writing(run_dir)
        if moment == "before the first checkpoint":
            assert checkpoint_numbers(run_dir) == [0]
        assert not (run_dir / "summary.json").exists()
        launcher.assert_nothing_left(5.0)
        pace = pace if number < len(moments) else "0"  # nobody waits for a moment any more
        command = launcher.start("train", "--resume", str(run_dir), *changed, TOYS_SLEEP=pace)
    assert command.wait(120).status == 0, command.output
    assert not is_writing(run_dir)
    assert summary(run_dir)["resumes"] >= 1
    return torn


def test_a_run_killed_twice_ends_as_if_it_had_not_been(launcher: Any, reference: Any, tmp_path: Path) -> None:
    fields = case("mlp", checkpoint_every=4)
    moments = ["before the first checkpoint", "in a checkpoint"]
    torn = train_through_kills(launcher, tmp_path / "run", {**fields, "workers": 0}, moments, PACE["mlp"])
    assert torn == 1, "the kill inside the checkpoint came too late"
    assert_same_run(tmp_path / "run", reference(case("mlp")))


def test_a_ray_run_killed_in_a_checkpoint_ends_on_ray_with_another_worker_as_if_it_had_not_been(
    launcher: Any, reference: Any, tmp_path: Path
) -> None:
    fields = case("normalised", 8, checkpoint_every=4)
    moments = ["in a checkpoint"]
    torn = train_through_kills(
        launcher, tmp_path / "run", {**fields, "workers": 2}, moments, PACE["normalised"], resume_workers=3
    )
    assert torn == 1, "the kill inside the checkpoint came too late"
    assert_same_run(tmp_path / "run", reference(case("normalised", 8)), iterations=8)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", ["mlp", "lstm", "normalised", "image", "atari"])
def test_a_run_killed_ten_times_ends_as_if_it_had_not_been(
    launcher: Any, reference: Any, tmp_path: Path, name: str, workers: int
) -> None:
    fields = case(name, checkpoint_every=2)
    moments = ["before the first checkpoint", "in a checkpoint", "while it starts", "at random", "at random"]
    moments += ["in a checkpoint", "at random", "in a checkpoint", "at random", "while it starts"]
    torn = train_through_kills(
        launcher, tmp_path / "run", {**fields, "workers": workers}, moments, PACE[name]
    )
    assert torn >= 2, "the kills inside a checkpoint came too late"
    assert_same_run(tmp_path / "run", reference(case(name)))


def test_a_run_killed_in_its_last_evaluation_still_gets_its_summary(
    launcher: Any, distrl_here: Any, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    fields = case("mlp", 2, env="toys:Toy-v0", workers=0, env_kwargs={"sleep_sec": 0.02}, eval_episodes=6)
    command = launcher.start_train(run_dir, fields)
    command.wait_until("the last checkpoint is there", lambda: checkpoint_numbers(run_dir) == [0, 2])
    command.kill_all()
    assert not (run_dir / "summary.json").exists()
    finished = distrl_here("train", "--resume", str(run_dir))
    assert finished.status == 0, finished.output
    assert summary(run_dir)["exit_reason"] == "finished"
    assert summary(run_dir)["evaluation"]["episodes"] == 6
    assert summary(run_dir)["last_metrics"]["iteration"] == len(metrics(run_dir)) == 2
    assert len(digest(run_dir)) == 64
