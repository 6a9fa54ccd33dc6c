"""Faults of processes: workers that die again and again, a learner or a driver killed, envs that raise or hang."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import (
    HERE,
    ROOT,
    Finished,
    assert_same_run,
    case,
    checkpoint_bytes,
    checkpoint_numbers,
    flags,
    metrics,
    processes_of,
    summary,
)

pytestmark = pytest.mark.timeout(180)

TOY = case("image", iterations=6, env="toys:Toy-v0")
Train = Callable[[Path, dict[str, Any]], Finished]


@pytest.fixture
def train(launcher: Any, distrl_here: Any) -> Train:
    """A whole run: of a process of its own where it starts Ray, else in this one."""

    def run(run_dir: Path, fields: dict[str, Any]) -> Finished:
        if fields["workers"]:
            return launcher.train(run_dir, fields)
        return distrl_here("train", *flags({**fields, "run_dir": run_dir}))

    return run


def toy(**env_kwargs: Any) -> dict[str, Any]:
    return {**TOY, "env_kwargs": env_kwargs}


def test_workers_that_die_whenever_they_start_fail_the_run_after_the_cap(
    launcher: Any, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    finished = launcher.train(run_dir, {**toy(fault="die", at=12), "workers": 2, "max_worker_restarts": 2})
    assert finished.status == 1, finished.output
    assert "rollout workers died 3 times (--max-worker-restarts 2)" in finished.output
    assert f"continue with: distrl train --resume {run_dir}" in finished.output
    assert "Traceback" not in finished.output
    assert finished.seconds < 60
    assert checkpoint_numbers(run_dir) == [0]
    assert summary(run_dir)["exit_reason"].startswith("failed: rollout workers died")
    assert [one for one in summary(run_dir)["warnings"] if "its groups move, a replacement starts" in one]
    launcher.assert_nothing_left()


def test_a_worker_that_cannot_start_fails_the_run_at_once_with_the_cause(
    launcher: Any, tmp_path: Path
) -> None:
    finished = launcher.train(tmp_path / "run", {**TOY, "workers": 1, "policy": "toys:unfit_for_workers"})
    assert finished.status == 1, finished.output
    assert "could not start: OSError: the toy policy's weights are not on this machine" in finished.output
    assert finished.seconds < 60
    assert checkpoint_numbers(tmp_path / "run") == [0]


def test_a_learner_killed_amid_an_update_ends_the_run_and_the_resumed_one_is_the_same(
    launcher: Any, distrl_here: Any, reference: Any, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    fields = case("mlp", iterations=4, learner="torch", epochs=40, minibatches=16, checkpoint_every=2)
    command = launcher.start_train(run_dir, {**fields, "workers": 1})
    command.wait_until("iteration 3 begins", lambda: checkpoint_numbers(run_dir) == [0, 2])
    saved = checkpoint_bytes(run_dir, 2)

    def updating() -> list[Any]:
        return [
            one for one in processes_of(launcher.marker) if "LearnerWorker.update" in " ".join(one.cmdline())
        ]

    command.wait_until("the learner learns", lambda: bool(updating()))
    for process in updating():
        process.kill()
    finished = command.wait(30)
    assert finished.status == 1, finished.output
    assert "the learner died" in finished.output and "--resume" in finished.output
    assert "Traceback" not in finished.output
    launcher.assert_nothing_left()
    assert checkpoint_bytes(run_dir, 2) == saved and checkpoint_numbers(run_dir) == [0, 2]
    assert distrl_here("train", "--resume", str(run_dir), "--workers", "0").status == 0
    assert_same_run(run_dir, reference(fields), iterations=4)


def test_a_driver_killed_alone_leaves_no_process_behind(launcher: Any, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    command = launcher.start_train(run_dir, {**toy(sleep_sec=0.05), "workers": 2, "vectorization": "async"})
    command.wait_until(
        "iteration 1 is whole", lambda: (run_dir / "metrics.jsonl").exists() and len(metrics(run_dir)) >= 1
    )
    assert len(processes_of(launcher.marker)) > 8  # driver, Ray's, workers, learner, envs
    command.signal(signal.SIGKILL)
    command.process.wait()
    launcher.assert_nothing_left()


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_an_env_that_raises_once_is_made_anew_and_changes_no_bit(
    train: Train, reference: Any, tmp_path: Path, workers: int
) -> None:
    once = tmp_path / "raised"
    finished = train(tmp_path / "run", {**toy(fault="raise", at=20, once=str(once)), "workers": workers})
    assert finished.status == 0, finished.output
    assert "raised RuntimeError: the toy broke in step and was recreated" in " ".join(finished.output.split())
    assert_same_run(tmp_path / "run", reference(TOY), iterations=6)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_an_env_that_raises_always_fails_the_run_with_a_command_that_reproduces_it(
    train: Train, tmp_path: Path, workers: int
) -> None:
    finished = train(tmp_path / "run", {**toy(fault="raise", episode_step=7), "workers": workers})
    assert finished.status == 1, finished.output
    said = " ".join(finished.output.split())
    assert "raised RuntimeError: the toy broke in step in step 6 of its episode" in said
    assert checkpoint_numbers(tmp_path / "run") == [0]
    path = re.search(r"python -m distrl\.envs\.repro (\S+)", said)
    assert path is not None, said
    repro = subprocess.run(
        [sys.executable, "-m", "distrl.envs.repro", path[1]],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PYTHONPATH": f"{HERE}:{ROOT}", "PATH": "/usr/bin:/bin"},
        cwd=tmp_path,
    )
    assert repro.returncode == 1 and "RuntimeError: the toy broke in step" in repro.stderr


def test_an_env_that_hangs_in_a_worker_is_killed_and_replaced_and_changes_no_bit(
    launcher: Any, reference: Any, tmp_path: Path
) -> None:
    fields = toy(fault="hang", at=20, once=str(tmp_path / "hung"))
    finished = launcher.train(tmp_path / "run", {**fields, "workers": 2, "step_timeout_sec": 2})
    assert finished.status == 0, finished.output
    (warning,) = [one for one in summary(tmp_path / "run")["warnings"] if "died" in one]
    assert "(toys:Toy-v0, envs" in warning and "has not returned for 2 s; stacks in " in warning
    assert " ".join(finished.output.split()).count("rollout worker") == 1, "it is told once"
    assert " ".join(warning.split()[:4]) in finished.output
    (stacks,) = (tmp_path / "run" / "faults").glob("hang-*.txt")
    assert "toys.py" in stacks.read_text(), "the stack shows where it hangs"
    assert_same_run(tmp_path / "run", reference(TOY), iterations=6)


@pytest.mark.slow
def test_an_env_that_hangs_always_fails_the_run_in_bounded_time(launcher: Any, tmp_path: Path) -> None:
    fields = {
        **toy(fault="hang", episode_step=7),
        "step_timeout_sec": 1,
        "workers": 1,
        "max_worker_restarts": 1,
    }
    finished = launcher.train(tmp_path / "run", fields)
    assert finished.status == 1, finished.output
    assert "rollout workers died 2 times" in finished.output
    assert "has not returned for 1 s; stacks in" in finished.output
    assert finished.seconds < 60


def test_an_env_that_hangs_in_process_ends_it_with_its_stack(launcher: Any, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    fields = {**toy(fault="hang", at=20), "step_timeout_sec": 1, "workers": 0, "checkpoint_every": 1}
    started = time.monotonic()
    finished = launcher.train(run_dir, fields)
    assert finished.status == 1, finished.output
    assert time.monotonic() - started < 40
    assert "env group 0 (toys:Toy-v0, envs 0..1)" in finished.output
    assert "toys.py" in finished.output and "in step" in finished.output
    assert checkpoint_numbers(run_dir) == [0, 1, 2]
    assert len(metrics(run_dir)) == 2
