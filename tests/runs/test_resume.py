"""What a resume refuses, allows and says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers import assert_same_run, case, checkpoint_bytes, flags, metrics, summary

import distrl

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def finished_run(tmp_path: Path) -> Path:
    run_dir = tmp_path / "run"
    distrl.train(**case("mlp", 4, workers=0, run_dir=str(run_dir), checkpoint_every=2))
    return run_dir


def test_a_changed_env_or_shape_is_refused_with_the_difference_and_all_at_once(
    finished_run: Path, distrl_here: Any
) -> None:
    saved = checkpoint_bytes(finished_run, 4)
    changed = flags({"env": "Acrobot-v1", "hidden_sizes": "32,32", "gamma": 0.5})
    finished = distrl_here("train", "--resume", str(finished_run), *changed)
    assert finished.status == 2
    said = " ".join(finished.output.split())
    for name, old, new in (
        ("env", "CartPole-v1", "Acrobot-v1"),
        ("hidden-sizes", "64,64", "32,32"),
        ("gamma", "0.99", "0.5"),
    ):
        assert f"--{name}: the run has {old}, given {new}" in said
    assert checkpoint_bytes(finished_run, 4) == saved


def test_a_new_end_and_learning_rate_are_allowed_said_and_kept(finished_run: Path, distrl_here: Any) -> None:
    finished = distrl_here(
        "train", "--resume", str(finished_run), "--total-steps", "768", "--learning-rate", "0.0005"
    )
    assert finished.status == 0, finished.output
    said = " ".join(finished.output.split())
    assert "changed on resume: total_steps: 384 -> 768" in said
    assert "changed on resume: learning_rate: 0.001 -> 0.0005" in said
    assert "schedules are rescaled to the new end" in said
    rates = [record["learning_rate"] for record in metrics(finished_run)]
    # linear to 0 at the end: 0.001 x (1, 3/4, 1/2, 1/4), then 0.0005 x (4/8, 3/8, 2/8, 1/8)
    assert rates == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4, 2.5e-4, 1.875e-4, 1.25e-4, 6.25e-5])
    assert distrl_here("train", "--resume", str(finished_run)).output.count("finished") == 1


def test_resuming_a_finished_run_says_so_and_changes_nothing(finished_run: Path, distrl_here: Any) -> None:
    before = {
        path: path.read_bytes() for path in finished_run.rglob("*") if path.is_file() and path.name != ".lock"
    }
    finished = distrl_here("train", "--resume", str(finished_run))
    assert finished.status == 0
    assert "is finished: 384 of 384 env steps; give --total-steps to go on" in " ".join(
        finished.output.split()
    )
    after = {
        path: path.read_bytes() for path in finished_run.rglob("*") if path.is_file() and path.name != ".lock"
    }
    assert after == before


def test_a_run_stopped_exactly_at_a_boundary_goes_on_from_it(
    distrl_here: Any, reference: Any, tmp_path: Path
) -> None:
    constant = case("mlp", checkpoint_every=5, learning_rate_schedule="constant")
    run_dir = tmp_path / "run"
    distrl.train(**{**constant, "total_steps": 10 * 96, "workers": 0, "run_dir": str(run_dir)})
    finished = distrl_here("train", "--resume", str(run_dir), "--total-steps", str(20 * 96))
    assert finished.status == 0 and "from iteration 10, 960 env steps" in " ".join(finished.output.split())
    assert_same_run(run_dir, reference(constant))


def test_a_second_writer_is_refused_while_the_first_runs(
    launcher: Any, distrl_here: Any, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    slow = case("image", 20, env="toys:Toy-v0", env_kwargs={"sleep_sec": 0.02}, workers=0)
    first = launcher.start_train(run_dir, slow)
    first.wait_until("it trains", lambda: (run_dir / "metrics.jsonl").exists() and len(metrics(run_dir)) >= 1)
    second = distrl_here("train", "--resume", str(run_dir))
    assert second.status == 2
    assert "is being written by another process" in second.output
    assert str(first.process.pid) in second.output
    third = distrl_here("train", *flags({**slow, "run_dir": run_dir}))
    assert third.status == 2 and f"continue it with --resume {run_dir}" in " ".join(third.output.split())
    assert first.running
    before = len(metrics(run_dir))
    first.wait_until("it goes on", lambda: len(metrics(run_dir)) > before)
    first.kill_all()
    # the kernel let go of the lock with the process
    resumed = distrl_here("train", "--resume", str(run_dir), "--total-steps", "48")
    assert resumed.status == 0, resumed.output
    assert summary(run_dir)["exit_reason"] == "finished"


@pytest.mark.parametrize("left", [0, 1], ids=["missing", "truncated"])
def test_lost_metrics_are_said_and_cost_nothing_else(finished_run: Path, left: int) -> None:
    whole = finished_run / "metrics.jsonl"
    lines = whole.read_text().splitlines(keepends=True)
    if left:
        whole.write_text("".join(lines[:left]))
    else:
        whole.unlink()
    before = summary(finished_run)["parameters_sha256"]
    (finished_run / "summary.json").unlink()  # as if killed in the last evaluation
    outcome = distrl.resume(finished_run)
    (warning,) = [one for one in outcome.summary["warnings"] if "metrics.jsonl" in one]
    assert f"has {left} of the 4 records before the checkpoint" in warning
    assert summary(finished_run)["warnings"] == outcome.summary["warnings"]
    assert outcome.summary["parameters_sha256"] == before
    assert len(metrics(finished_run)) == left
