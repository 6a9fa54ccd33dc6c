"""Roles' workers that die or hang: named at once, and the iteration done again ends as if nothing had been."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from small import SMALL_PPO, OddTokens, Unfit, Untrue, assert_same, iterate, models, spec

from distrl.errors import RunFailed
from distrl.rlhf.roles import LearnReport
from distrl.runtime.placement import hosts_for
from distrl.runtime.roles import RoleLost, Roles, start_roles

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


@contextmanager
def on_ray(table: Any, **changed: Any) -> Iterator[Roles]:
    roles = start_roles(spec(**changed), models(), None, hosts_for(table, SMALL_PPO))
    pids = all_pids(roles)
    try:
        yield roles
        pids |= all_pids(roles)
    finally:
        roles.close()
    assert gone(pids)


def all_pids(roles: Roles) -> set[int]:
    return {pid for workers in roles.hosts for pid in workers.pids}  # type: ignore[attr-defined]


def pid_of(roles: Roles, role: str, worker: int = 0) -> int:
    return roles.of[role].pids[worker]  # type: ignore[attr-defined]


def gone(pids: set[int]) -> bool:
    deadline = time.monotonic() + 20.0
    while time.monotonic() < deadline:
        if not any(psutil.pid_exists(pid) for pid in pids):
            return True
        time.sleep(0.1)
    return False


def undisturbed(num_iterations: int) -> list[LearnReport]:
    roles = start_roles(spec(), models(), None, hosts_for("in-process", SMALL_PPO))
    return [iterate(roles, i) for i in range(num_iterations)]


def with_recovery(
    roles: Roles, num_iterations: int, disturb: Callable[[Roles, int], None]
) -> tuple[list[LearnReport], list[RoleLost]]:
    """Iterations, each done again from the state before it where a worker was lost."""
    told: list[LearnReport] = []
    lost: list[RoleLost] = []
    state = roles.state()
    while len(told) < num_iterations:
        try:
            written = roles.write(len(told))
            disturb(roles, len(told))
            said = roles.opinions(written)
            report = roles.learn(len(told) / 10, 0.1, written, said)
            roles.publish()
            state = roles.state()
        except RoleLost as error:
            lost.append(error)
            roles.restart(state)
            continue
        told.append(report)
    return told, lost


def test_a_learner_killed_amid_an_update_is_named_and_the_iteration_done_again_is_the_same(
    tmp_path: Path,
) -> None:
    pause = tmp_path / "pause"
    table = {role: {"together_with": "actor"} for role in ("critic",)} | {
        "actor": {"workers": 2},
        "reward": {"together_with": "reference"},
    }
    killed: list[int] = []

    def kill_later(roles: Roles, iteration: int) -> None:
        if iteration != 1 or killed:
            return
        pause.touch()  # the update is submitted and waits for the scores
        killed.append(pid_of(roles, "actor", 1))

        def kill() -> None:
            time.sleep(1.0)
            os.kill(killed[0], signal.SIGKILL)
            pause.unlink()

        threading.Thread(target=kill).start()

    with on_ray(table, reward=OddTokens(str(pause))) as roles:
        told, lost = with_recovery(roles, 2, kill_later)
    (error,) = lost
    assert (error.role, error.worker) == ("generator+actor+critic", 1)
    assert str(error).startswith("generator+actor+critic worker 1 is lost (")
    assert f"process {killed[0]}" in str(error) and "no answer" not in str(error)
    assert_same(told, undisturbed(2))


@pytest.mark.slow
def test_any_role_killed_with_minus_nine_is_named_and_the_run_ends_as_an_undisturbed_one() -> None:
    targets = ["reward", "reference", "critic", "actor", "generator"]

    def kill(roles: Roles, iteration: int) -> None:
        if iteration and len(targets) == 6 - iteration:
            os.kill(pid_of(roles, targets.pop(0)), signal.SIGKILL)

    with on_ray({"generator": {"workers": 1}}) as roles:
        told, lost = with_recovery(roles, 6, kill)
    assert [error.role for error in lost] == ["reward", "reference", "critic", "actor", "generator"]
    assert not [error for error in lost if "no answer" in str(error)]
    assert_same(told, undisturbed(6))


@pytest.mark.slow
@pytest.mark.parametrize("role", ["reference", "actor"])
def test_a_worker_that_is_stopped_is_named_within_the_timeout(role: str) -> None:
    with on_ray("separate") as roles:
        iterate(roles, 0)
        roles.hosts[0].calls.timeout_sec = 10.0  # type: ignore[attr-defined]
        state = roles.state()
        os.kill(pid_of(roles, role), signal.SIGSTOP)
        with pytest.raises(
            RoleLost, match=r"no answer within 10 s \(--role-timeout-sec\); process \d+"
        ) as lost:
            iterate(roles, 1)
        assert role in lost.value.role
        roles.restart(state)
        assert_same([iterate(roles, 1)], undisturbed(2)[1:])


@pytest.mark.slow
def test_a_reward_that_hangs_is_named_and_not_the_learner_that_waits_for_it(tmp_path: Path) -> None:
    pause = tmp_path / "pause"
    with on_ray({"critic": {"together_with": "actor"}}, reward=OddTokens(str(pause))) as roles:
        iterate(roles, 0)
        roles.hosts[0].calls.timeout_sec = 5.0  # type: ignore[attr-defined]
        pause.touch()
        with pytest.raises(RoleLost, match="reward worker 0 is lost .scores.: no answer within 5 s"):
            iterate(roles, 1)


@pytest.mark.slow
def test_an_error_in_a_worker_is_told_with_its_cause_by_the_name_of_who_made_it() -> None:
    with on_ray({"critic": {"together_with": "actor"}}, reward=Untrue()) as roles:
        with pytest.raises(RunFailed) as failed:
            iterate(roles, 0)
        assert not isinstance(failed.value, RoleLost)
        first = str(failed.value).splitlines()[0]
        assert first == "reward worker 0 failed (scores): ZeroDivisionError: nothing is true"


@pytest.mark.slow
def test_a_worker_that_cannot_start_fails_with_the_cause_and_leaves_nothing() -> None:
    import ray

    with pytest.raises(RunFailed, match="reward worker 0 could not start: .*no judge here"):
        start_roles(spec(reward=Unfit()), models(), None, hosts_for("separate", SMALL_PPO))
    assert not ray.is_initialized()
