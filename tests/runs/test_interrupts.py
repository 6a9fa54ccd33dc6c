"""Ctrl-C and SIGTERM: the last boundary's checkpoint, status 130 and how to resume; the second leaves at once."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest
from helpers import assert_same_run, case, checkpoint_bytes, checkpoint_numbers, metrics, summary

pytestmark = pytest.mark.timeout(180)

# 8 steps of 6 envs at 12 ms: an iteration takes half a second in-process, so a signal lands in a rollout
SLOW_ENV = case(
    "image", iterations=5, env="toys:Toy-v0", env_kwargs={"sleep_sec": 0.012}, checkpoint_every=1000
)
# 2,400 minibatches of the torch learner: an update of a second or more, a rollout of a tenth
SLOW_UPDATE = case(
    "mlp",
    iterations=40,
    env="toys:Toy-v0",
    learner="torch",
    epochs=150,
    minibatches=16,
    checkpoint_every=1000,
)


def at_least(run_dir: Path, iterations: int) -> Any:
    return lambda: len(metrics(run_dir)) >= iterations if (run_dir / "metrics.jsonl").exists() else False


@pytest.mark.parametrize(("workers", "number"), [(0, signal.SIGINT), (2, signal.SIGTERM)])
def test_a_signal_amid_a_slow_env_step_saves_the_last_boundary_and_the_resumed_run_is_the_same(
    launcher: Any, distrl_here: Any, reference: Any, tmp_path: Path, workers: int, number: int
) -> None:
    run_dir = tmp_path / "run"
    command = launcher.start_train(run_dir, {**SLOW_ENV, "workers": workers})
    command.wait_until("in iteration 3", at_least(run_dir, 2))
    time.sleep(0.1)
    asked = time.monotonic()
    command.signal(number)
    finished = command.wait(30)
    assert finished.status == 130, finished.output
    assert time.monotonic() - asked < 12.0
    launcher.assert_nothing_left()
    done = len(metrics(run_dir))
    assert 2 <= done < 5
    assert checkpoint_numbers(run_dir) == [0, done]
    assert summary(run_dir)["exit_reason"] == f"interrupted by {signal.Signals(number).name}"
    assert f"continue with: distrl train --resume {run_dir}" in finished.output

    resumed = distrl_here("train", "--resume", str(run_dir), "--workers", "0")
    assert resumed.status == 0, resumed.output
    assert_same_run(run_dir, reference(SLOW_ENV), iterations=5)


def test_a_signal_does_not_wait_for_the_fragment_that_a_thread_collects(
    launcher: Any, tmp_path: Path
) -> None:
    run_dir, marker = tmp_path / "run", tmp_path / "stepping"
    fields = case("image", env="toys:Toy-v0", num_steps=100_000, total_steps=600_000, overlap=1)
    slowly = {"sleep_sec": 0.01, "fault": "nothing", "at": 30, "once": str(marker)}  # hours to a fragment
    command = launcher.start_train(run_dir, {**fields, "env_kwargs": slowly, "workers": 0})
    command.wait_until("it collects", marker.exists)
    command.signal(signal.SIGINT)
    finished = command.wait(60)
    assert finished.status == 130, finished.output
    assert "Traceback" not in finished.output
    assert checkpoint_numbers(run_dir) == [0]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_reaches_ray_too_and_the_run_still_saves(
    launcher: Any, tmp_path: Path, number: int
) -> None:
    run_dir = tmp_path / "run"
    command = launcher.start_train(run_dir, {**SLOW_ENV, "workers": 2})
    command.wait_until("in iteration 2", at_least(run_dir, 1))
    command.signal_all(number)  # as a terminal does with Ctrl-C, and `timeout` or a batch system with SIGTERM
    finished = command.wait(30)
    assert finished.status == 130, finished.output
    assert checkpoint_numbers(run_dir) == [0, len(metrics(run_dir))]
    launcher.assert_nothing_left()


def test_sigint_amid_an_update_waits_for_its_end_and_a_second_one_leaves_at_once(
    launcher: Any, distrl_here: Any, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    command = launcher.start_train(run_dir, {**SLOW_UPDATE, "workers": 0})
    command.wait_until("in iteration 2", at_least(run_dir, 1))
    time.sleep(0.3)
    before = checkpoint_bytes(run_dir, 0)
    command.signal(signal.SIGINT)
    command.wait_until("it answers", lambda: "stopping as soon as this step is done" in command.output, 10)
    second = time.monotonic()
    command.signal(signal.SIGINT)
    finished = command.wait(10)
    assert time.monotonic() - second < 3.0
    assert finished.status == 130, finished.output
    assert "the last checkpoint stands" in finished.output
    assert checkpoint_bytes(run_dir, 0) == before and checkpoint_numbers(run_dir) == [0]
    assert not (run_dir / "summary.json").exists()
    assert distrl_here("train", "--resume", str(run_dir), "--total-steps", "96").status == 0


def test_sigint_while_ray_starts_ends_the_run_with_130(launcher: Any, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    command = launcher.start_train(run_dir, {**SLOW_ENV, "workers": 2})
    command.wait_until("the run directory is there", (run_dir / ".lock").exists)
    time.sleep(1.0)
    command.signal(signal.SIGINT)
    finished = command.wait(30)
    assert finished.status == 130, finished.output
    assert "Traceback" not in finished.output
    assert checkpoint_numbers(run_dir) == [0]
    launcher.assert_nothing_left()


def test_two_ctrl_c_under_ray_leave_within_three_seconds_with_the_state_intact(
    launcher: Any, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    command = launcher.start_train(run_dir, {**SLOW_ENV, "workers": 1, "env_kwargs": {"sleep_sec": 0.5}})
    command.wait_until(
        "a worker collects", lambda: any("collect" in line for line in titles(launcher.marker))
    )
    before = checkpoint_bytes(run_dir, 0)
    asked = time.monotonic()
    command.signal(signal.SIGINT)
    time.sleep(0.2)
    if command.running:
        command.signal(signal.SIGINT)
    finished = command.wait(10)
    assert time.monotonic() - asked < 3.0
    assert finished.status == 130, finished.output
    assert checkpoint_bytes(run_dir, 0) == before
    launcher.assert_nothing_left()


def titles(marker: str) -> list[str]:
    from helpers import processes_of

    return [" ".join(process.cmdline()) for process in processes_of(marker)]
