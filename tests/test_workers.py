"""What runs in a worker, in this process: it leaves no env behind."""

from __future__ import annotations

import multiprocessing
import warnings
from typing import Any

import pytest

import tests.parts  # noqa: F401  # puts toy_envs on the path
from distrl.build import work_spec
from distrl.errors import RunFailed
from distrl.resolve import resolve
from distrl.runtime.workers import RolloutWorker

ASYNC = {"num_envs": 2, "groups": 1, "num_steps": 8, "minibatches": 2, "vectorization": "async"}


def worker_of(env: str, **fields: Any) -> tuple[RolloutWorker, Any]:
    spec = work_spec(resolve({**ASYNC, "env": env, **fields}).config)
    return RolloutWorker(spec), spec.make_learner("cpu").snapshot()


def test_a_fragment_that_fails_leaves_no_env_process() -> None:
    worker, snapshot = worker_of("toy_envs:Toy/Raises-v0", env_kwargs={"at": 3})
    with pytest.raises(RunFailed, match="restarts of its group are used up"):
        worker.collect(0, 0, snapshot, None)
    assert worker.collectors == {}
    assert multiprocessing.active_children() == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        worker.close()


def test_envs_that_cannot_be_put_back_or_started_leave_no_process() -> None:
    worker, snapshot = worker_of("toy_envs:Toy/Raises-v0", env_kwargs={"at": 0})
    with pytest.raises(RunFailed, match="in its reset"):
        worker.collect(0, 0, snapshot, None)
    assert multiprocessing.active_children() == []


def test_a_group_that_another_worker_hosts_now_is_closed() -> None:
    worker, snapshot = worker_of("CartPole-v1")
    worker.collect(0, 0, snapshot, None)
    assert len(multiprocessing.active_children()) == 2
    worker.drop(0)
    assert multiprocessing.active_children() == []
