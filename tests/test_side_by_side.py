"""Groups that threads share end as groups that take turns: with the same fragments, and the same failure."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from threading import Event, Thread, get_ident
from typing import Any

import numpy as np
import pytest

import tests.parts  # noqa: F401  # puts native_envs on the path
from distrl.build import work_spec
from distrl.errors import RunFailed
from distrl.resolve import resolve
from distrl.rollout import Stopped
from distrl.runtime.side_by_side import SideBySide
from distrl.runtime.workers import RolloutWorker
from distrl.trees import tree_leaves

FIELDS = {
    "num_envs": 14,
    "groups": 4,
    "num_steps": 150,
    "minibatches": 4,
    "max_episode_steps": 60,
    "workers": 0,
}


def worker_of(threads: int, env: str = "CartPole-v1", **fields: Any) -> tuple[RolloutWorker, Any]:
    spec = work_spec(resolve({**FIELDS, "env": env, "learner_threads": threads, **fields}).config)
    return RolloutWorker(spec), spec.make_learner("cpu").snapshot()


def collected(threads: int, algo: str) -> list[Any]:
    more = {} if algo == "ppo" else {"epochs": 1, "minibatches": 1}
    worker, _ = worker_of(threads, algo=algo, normalize_observation=True, **more)
    assert worker.spec.rollout_threads == threads
    learner = worker.spec.make_learner("cpu")
    states: list[Any] = [None] * 4
    found = []
    for iteration in range(3):
        parts = worker.collect_all(iteration, learner.snapshot(), states)
        for parameter in learner.policy.parameters():  # each thread must see the next policy
            parameter.data.mul_(1.1)
        states = [after for _, after, _ in parts]
        found.append(parts)
    worker.close()
    return found


@pytest.mark.parametrize("algo", ["ppo", "reinforce"])
def test_the_number_of_threads_changes_no_bit(algo: str) -> None:
    alone = collected(1, algo)
    for threads in (2, 3):
        for one, other in zip(collected(threads, algo), alone, strict=True):
            for (trajectory, after, report), (expected, expected_after, expected_report) in zip(
                one, other, strict=True
            ):
                for column in dataclasses.fields(expected):
                    left, right = (getattr(part, column.name) for part in (trajectory, expected))
                    for leaf, expected_leaf in zip(tree_leaves(left), tree_leaves(right), strict=True):
                        np.testing.assert_array_equal(leaf, expected_leaf, err_msg=column.name)
                assert repr(after) == repr(expected_after)
                assert report.group == expected_report.group
                assert report.episodes == expected_report.episodes


def test_groups_that_python_steps_take_turns() -> None:
    worker, _ = worker_of(3, rollout="stepwise")
    assert worker.spec.rollout_threads == 1
    worker, _ = worker_of(3, groups=1)
    assert worker.spec.rollout_threads == 1


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_first_group_that_fails_is_named(threads: int) -> None:
    worker, snapshot = worker_of(threads, "native_envs:SPOILS")
    with pytest.raises(
        RunFailed, match=r"env 0 \(native_envs:SPOILS\): observation is NaN or Inf at step 11"
    ):
        worker.collect_all(0, snapshot, [None] * 4)
    worker.close()


class Looked(Event):
    """Tells when it was looked at often."""

    def __init__(self) -> None:
        super().__init__()
        self.looks, self.often = 0, Event()

    def is_set(self) -> bool:
        self.looks += 1
        if self.looks > 50:
            self.often.set()
        return super().is_set()


@pytest.mark.parametrize("threads", [1, 3])
def test_a_worker_that_is_stopped_ends_all_its_groups(threads: int) -> None:
    worker, snapshot = worker_of(threads, num_steps=5_000_000)
    worker.stopped = Looked()
    found: list[Any] = []

    def collect() -> None:
        with pytest.raises(Stopped):
            worker.collect_all(0, snapshot, [None] * 4)
        found.append("stopped")

    thread = Thread(target=collect)
    thread.start()
    assert worker.stopped.often.wait(60), "groups look whether they are wanted"
    worker.stop()
    thread.join(60)
    assert found == ["stopped"]
    assert worker.collectors == {}
    worker.close()


@pytest.mark.parametrize("threads", [1, 2])
def test_a_group_that_hangs_is_named_and_ends_the_process(threads: int) -> None:
    code = (
        "import sys\n"
        f"sys.path[:0] = [{str(Path(__file__).parents[1])!r}]\n"
        "from tests.test_side_by_side import worker_of\n"
        # with this seed the walk of env 1 alone comes to where it hangs
        f"worker, snapshot = worker_of({threads}, 'native_envs:HANGS', num_envs=2, groups=2, num_steps=40,\n"
        "    minibatches=1, seed=29, step_timeout_sec=1.0)\n"
        "print('ready', flush=True)\n"
        "worker.collect_all(0, snapshot, [None] * 2)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout) == (1, "ready\n"), ended.stderr[-2000:]
    assert "env group 1 (native_envs:HANGS, envs 1..1): a step or reset has not returned" in ended.stderr


# the threads themselves


def test_results_come_in_order_and_threads_share_the_tasks() -> None:
    both_here = [Event(), Event()]

    def task(number: int) -> tuple[int, int]:
        if number < 2:
            both_here[number].set()
            assert both_here[1 - number].wait(30), "two threads work at once"
        return number, get_ident()

    shared = SideBySide(2, "test")
    results = shared.run(task, 5, "rollout: fused")
    assert [number for number, _ in results] == [0, 1, 2, 3, 4]
    assert len({thread for _, thread in results}) == 2
    shared.close()


def test_of_two_failures_the_first_tasks_is_raised() -> None:
    second_failed = Event()

    def task(number: int) -> None:
        if number == 0:
            assert second_failed.wait(30)
        else:
            second_failed.set()
        raise ValueError(f"task {number}")

    shared = SideBySide(2, "test")
    with pytest.raises(ValueError, match="task 0"):
        shared.run(task, 4, "rollout: fused")
    shared.close()


def test_an_interrupt_of_the_caller_gives_up_what_the_others_do() -> None:
    shared = SideBySide(2, "test")
    begun, ended, caller = Event(), [], get_ident()

    def task(number: int) -> None:
        if get_ident() == caller:
            assert begun.wait(30)
            raise KeyboardInterrupt
        begun.set()
        ended.append(shared.given_up.wait(30))

    with pytest.raises(KeyboardInterrupt):
        shared.run(task, 6, "rollout: fused")
    assert ended == [True]
    assert shared.run(lambda number: number, 3, "rollout: fused") == [0, 1, 2]
    shared.close()
