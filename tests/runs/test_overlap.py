"""Overlap: fragment i always uses version i - k, so the same bits for any number of workers, after a death and a resume."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from helpers import assert_same_run, case, checkpoint_numbers, metrics, summary

import distrl
from distrl.checkpoint import read_checkpoint

pytestmark = pytest.mark.timeout(300)

ITERATIONS = 12


def overlapped(lag: int, name: str = "normalised", **more: Any) -> dict[str, Any]:
    return case(name, ITERATIONS, overlap=lag, **more)


def train(run_dir: Path, fields: dict[str, Any], workers: int) -> None:
    distrl.train(**fields, workers=workers, run_dir=str(run_dir))


def schedule(run_dir: Path) -> list[tuple[int, int]]:
    """(fragment, version that collected it) of each iteration."""
    return [(record["iteration"] - 1, record["behaviour_version"]) for record in metrics(run_dir)]


@pytest.mark.parametrize("lag", [0, 1, 2, 3])
def test_fragment_i_uses_version_i_minus_k_and_the_metrics_say_so(reference: Any, lag: int) -> None:
    run_dir = reference(overlapped(lag))
    assert schedule(run_dir) == [(i, max(i - lag, 0)) for i in range(ITERATIONS)]
    assert [record["policy_lag"] for record in metrics(run_dir)] == [min(i, lag) for i in range(ITERATIONS)]
    assert [record["policy_version"] for record in metrics(run_dir)] == list(range(1, ITERATIONS + 1))


def test_a_lag_changes_what_is_learned_from_the_second_fragment_on(reference: Any) -> None:
    none, one, two = (
        [record["value_mean"] for record in metrics(reference(overlapped(lag, credit="vtrace")))]
        for lag in (0, 1, 2)
    )
    assert none[0] == one[0] == two[0]
    assert none[1] != one[1] and one[1] == two[1], "version 0 collects the second, with lag 1 and 2"
    assert one[2] != two[2]


@pytest.mark.parametrize(
    ("lag", "workers"),
    [(2, 2), *(pytest.param(*one, marks=pytest.mark.slow) for one in ((1, 1), (1, 2), (2, 1)))],
)
def test_parameters_and_metrics_are_equal_to_the_bit_for_any_number_of_workers(
    reference: Any, tmp_path: Path, lag: int, workers: int
) -> None:
    train(tmp_path / "run", overlapped(lag), workers)
    assert_same_run(tmp_path / "run", reference(overlapped(lag)), ITERATIONS)


@pytest.mark.parametrize("lag", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_worker_killed_amid_a_fragment_changes_no_bit(
    reference: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lag: int
) -> None:
    marker = tmp_path / "killed"
    monkeypatch.setenv("TOYS_KILL", f"90:{marker}")
    train(tmp_path / "run", {**overlapped(lag), "wrapper": "toys:mortal"}, workers=2)
    assert marker.exists(), "the step at which a worker was to be killed never came"
    assert len([one for one in summary(tmp_path / "run")["warnings"] if "died" in one]) == 1
    monkeypatch.delenv("TOYS_KILL")
    assert_same_run(tmp_path / "run", reference(overlapped(lag)), ITERATIONS)


@pytest.mark.parametrize(
    ("name", "lag", "workers"),
    [
        ("normalised", 1, 0),
        pytest.param("lstm", 2, 2, marks=pytest.mark.slow),
        pytest.param("mlp", 1, 2, marks=pytest.mark.slow),
        pytest.param("image", 3, 0, marks=pytest.mark.slow),
    ],
)
def test_a_run_killed_with_fragments_in_flight_ends_as_if_it_had_not_been(
    launcher: Any, reference: Any, tmp_path: Path, name: str, lag: int, workers: int
) -> None:
    fields = overlapped(lag, name)
    run_dir = tmp_path / "run"
    slowly = {**fields, "checkpoint_every": 2, "wrapper": "toys:mortal", "workers": workers}
    command = launcher.start_train(run_dir, slowly, TOYS_SLEEP="0.004")
    # at a checkpoint with the first version still in use, and at a later one
    for goal, workers_then in ((2, workers), (6, 0)):
        command.wait_until(f"checkpoint {goal}", lambda goal=goal: goal in checkpoint_numbers(run_dir))
        time.sleep(0.1)
        assert command.running, command.output
        command.kill_all()
        launcher.assert_nothing_left(5.0)
        again = ["train", "--resume", str(run_dir), "--workers", str(workers_then)]
        command = launcher.start(*again, TOYS_SLEEP="0.004")
    assert command.wait(120).status == 0, command.output
    assert summary(run_dir)["resumes"] == 2
    assert schedule(run_dir) == [(i, max(i - lag, 0)) for i in range(ITERATIONS)]
    assert_same_run(run_dir, reference(fields), ITERATIONS)


def test_a_checkpoint_holds_the_older_versions_that_fragments_in_flight_ask_for(
    reference: Any, tmp_path: Path
) -> None:
    train(tmp_path / "run", overlapped(2, checkpoint_every=1, keep_checkpoints=100), workers=0)
    for number in checkpoint_numbers(tmp_path / "run"):
        trees = read_checkpoint(tmp_path / "run" / "checkpoints" / f"{number:08d}").trees
        assert list(trees.get("snapshots", {})) == [str(v) for v in range(max(number - 2, 0), number)]
    plain = reference(overlapped(0)) / "checkpoints"
    newest = read_checkpoint(max(plain.glob("[0-9]*")))
    assert set(newest.trees) == {"learner", "groups", "run"}, "without overlap, as ever"


@pytest.mark.slow
def test_the_number_of_workers_and_the_end_may_change_amid_a_run(reference: Any, tmp_path: Path) -> None:
    fields = overlapped(2, "lstm", learning_rate_schedule="constant")
    run_dir = tmp_path / "run"
    train(run_dir, {**fields, "total_steps": 5 * 96}, workers=0)
    distrl.api.resume(run_dir, workers=2, total_steps=9 * 96)
    distrl.api.resume(run_dir, workers=0, total_steps=ITERATIONS * 96)
    assert_same_run(run_dir, reference(fields), ITERATIONS)


@pytest.mark.parametrize("algo", ["a2c", pytest.param("reinforce-baseline", marks=pytest.mark.slow)])
def test_other_rungs_overlap_with_v_trace(reference: Any, tmp_path: Path, algo: str) -> None:
    """Whole episodes too: an iteration is as long as they are, and so is the run."""
    episodes = {"credit": "vtrace"} if algo == "reinforce-baseline" else {}
    fields = {"env": "CartPole-v1", "algo": algo, "num_envs": 6, "groups": 3, "num_steps": 16, "overlap": 1}
    fields |= {"total_steps": 1200, "eval_episodes": 0, "tensorboard": False, **episodes}
    train(tmp_path / "run", fields, workers=2)
    run_dir = reference(fields)
    count = len(metrics(run_dir))
    assert count > 3 and schedule(run_dir) == [(i, max(i - 1, 0)) for i in range(count)]
    assert_same_run(tmp_path / "run", run_dir, count)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("lag", "algo"), [(1, "ppo"), (2, "ppo"), (4, "ppo")])
def test_cartpole_is_solved_with_a_lag(tmp_path: Path, lag: int, algo: str) -> None:
    fields = {
        "env": "CartPole-v1",
        "algo": algo,
        "overlap": lag,
        "total_steps": 250_000,
        "tensorboard": False,
    }
    train(tmp_path / "run", fields, workers=0)
    assert summary(tmp_path / "run")["evaluation"]["return_mean"] >= 475


def test_the_lag_cannot_change_on_resume(reference: Any, distrl_here: Any) -> None:
    finished = distrl_here("train", "--resume", str(reference(overlapped(1))), "--overlap", "2")
    assert finished.status == 2
    assert "--overlap: the run has 1, given 2" in " ".join(finished.output.split())
