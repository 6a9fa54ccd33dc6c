"""Same curve, whoever does the work: equal bits for any number of workers, and after a worker's kill -9.

A run's parameters and metrics are compared with those of the in-process run. Whoever dies is killed by the kernel at a
given env step, so it is amid a rollout for sure; the run's own warnings say that it saw the death.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers import assert_same_run, case, processes_of, summary

import distrl

pytestmark = pytest.mark.timeout(240)

# An env object steps 16, 8 or 4 times an iteration: this is amid one of the 20 iterations.
KILL_AT_STEP = {"mlp": 90, "lstm": 90, "normalised": 200, "image": 45, "atari": 30}


def train(run_dir: Path, fields: dict[str, Any], workers: int) -> None:
    """In this process as the driver."""
    distrl.train(**fields, workers=workers, run_dir=str(run_dir))


def deaths(run_dir: Path) -> list[str]:
    return [warning for warning in summary(run_dir)["warnings"] if "died" in warning]


@pytest.mark.parametrize(
    ("name", "workers"),
    [
        pytest.param(name, workers, marks=[] if (name, workers) == ("normalised", 3) else pytest.mark.slow)
        for name in KILL_AT_STEP
        for workers in (1, 2, 3)
    ],
)
def test_parameters_and_metrics_are_equal_to_the_bit_for_any_number_of_workers(
    reference: Any, tmp_path: Path, name: str, workers: int
) -> None:
    fields = case(name)
    train(tmp_path / "run", fields, workers)
    assert_same_run(tmp_path / "run", reference(fields))
    assert deaths(tmp_path / "run") == []


@pytest.mark.parametrize(
    ("name", "workers"),
    [
        ("mlp", 3),
        *[pytest.param(name, 2, marks=pytest.mark.slow) for name in ("image", "lstm", "normalised", "atari")],
    ],
)
def test_a_worker_killed_amid_its_rollout_changes_no_bit(
    reference: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, workers: int
) -> None:
    fields = case(name)
    marker = tmp_path / "killed"
    monkeypatch.setenv("TOYS_KILL", f"{KILL_AT_STEP[name]}:{marker}")
    train(tmp_path / "run", {**fields, "wrapper": "toys:mortal"}, workers)
    assert marker.exists(), "the step at which a worker was to be killed never came"
    assert len(deaths(tmp_path / "run")) == 1
    monkeypatch.delenv("TOYS_KILL")
    assert_same_run(tmp_path / "run", reference(fields))


@pytest.mark.slow
def test_workers_killed_from_outside_again_and_again_change_no_bit(
    launcher: Any, reference: Any, tmp_path: Path
) -> None:
    fields = case("image", iterations=12, env="toys:Toy-v0", env_kwargs={"sleep_sec": 0.005})
    command = launcher.start_train(tmp_path / "run", {**fields, "workers": 2})
    killed: list[int] = []
    while len(killed) < 3:
        collecting: list[psutil.Process] = []

        def one_collects(collecting: list[psutil.Process] = collecting) -> bool:
            collecting += [
                one for one in processes_of(launcher.marker) if is_collecting(one) and one.pid not in killed
            ]
            return bool(collecting)

        command.wait_until("a worker collects", one_collects)
        collecting[0].kill()
        killed.append(collecting[0].pid)
    assert command.wait(120).status == 0, command.output
    assert len(deaths(tmp_path / "run")) >= 1  # equal messages are kept once
    assert command.output.count("died") >= 3
    assert_same_run(tmp_path / "run", reference(fields), iterations=12)


def is_collecting(process: psutil.Process) -> bool:
    try:
        return "RolloutWorker.collect" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False


def test_the_number_of_workers_may_change_amid_a_run(reference: Any, tmp_path: Path) -> None:
    fields = case("lstm")
    run_dir = tmp_path / "run"
    train(run_dir, {**fields, "total_steps": 7 * 96, "learning_rate_schedule": "constant"}, workers=0)
    distrl.api.resume(run_dir, workers=2, total_steps=13 * 96)
    distrl.api.resume(run_dir, workers=0, total_steps=20 * 96)
    assert_same_run(run_dir, reference({**fields, "learning_rate_schedule": "constant"}))
