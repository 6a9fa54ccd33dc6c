"""RLHF's roles as Ray actors: thin shells around `RoleWorker`.

driver                               worker (Ray actor)                     another
------                               ------------------                     -------
do.remote("write", i)            ->  does what comes in its queue, in order
do.remote("scores", ref) ---------------------------------------------->    waits for the answer of the first
token <---------------------------   answer to the object store -------->   (worker to worker)
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any, cast

import ray
from ray.exceptions import RayActorError, RayError
from ray.util.placement_group import remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from distrl.errors import RunFailed
from distrl.rlhf.models import ModelParts
from distrl.rlhf.role_spec import RoleSpec
from distrl.rlhf.roles import WAITING, RoleWorker
from distrl.runtime.calls import Answer, Calls, RayWorkers, Worker
from distrl.runtime.cluster import connect, failed_to_start, first_line, nodes
from distrl.runtime.placement import needed, require_room, reserve
from distrl.runtime.pool import WAIT_STEP_SEC
from distrl.runtime.pulse import tell_pulse
from distrl.runtime.roles import Host
from distrl.telemetry import spans
from distrl.telemetry.spans import TRANSIT, span


class Token:
    """Says that a call is over; goes last, so that sending the answer is counted with the call, and waiting begins after."""

    def __init__(self, actor: RoleActor) -> None:
        self.actor = actor

    def __reduce__(self) -> tuple[Any, ...]:
        spans.mark(WAITING)
        self.actor.idle_since = time.time()
        return bool, (True,)


class RoleActor:
    """A `RoleWorker` in a process of its own."""

    def __init__(
        self,
        spec: RoleSpec,
        host: Host,
        number: int,
        models: tuple[str, ...],
        states: tuple[str, ...],
        *arrays: Any,
    ) -> None:
        self.name = host.name, number
        given = iter(arrays)
        parts = {name: next(given) for name in models}
        trees = {name: next(given) for name in states} or None
        self.worker = RoleWorker(
            spec, host.roles, parts, trees, number, host.workers, remote=True, offload=host.offload
        )
        if "reward" in host.roles:
            tell_pulse()
        self.idle_since = time.time()

    def ready(self) -> tuple[int, str]:
        """Process id and node."""
        return os.getpid(), ray.get_runtime_context().get_node_id()

    def do(self, method: str, asked_at: float, *args: Any) -> tuple[Answer, Token]:
        """A method of the worker's; `asked_at` is when, in seconds since the epoch."""
        last = max((one for one in args if isinstance(one, Answer)), key=lambda one: one.at, default=None)
        if last is not None and last.worker != self.name and last.at > self.idle_since:
            since = f"wait: {last.worker[0]}"
        else:  # the driver asked, or had asked before: the call was on its way
            since = WAITING if asked_at > self.idle_since else TRANSIT
        spans.current().waited_for(since, then="send")
        value = getattr(self.worker, method)(*[one.value if isinstance(one, Answer) else one for one in args])
        return Answer(value, self.name, time.time()), Token(self)


class RayStage:
    """Roles on a cluster. Models travel there once, however often roles are started anew."""

    def __init__(
        self,
        spec: RoleSpec,
        models: dict[str, ModelParts],
        hosts: Sequence[Host],
        address: str | None,
        answer_timeout_sec: float,
        start_timeout_sec: float,
        check_interrupt: Callable[[], None],
    ) -> None:
        self.hosts = list(hosts)
        self.answer_timeout_sec = answer_timeout_sec
        self.start_timeout_sec = start_timeout_sec
        self.check_interrupt = check_interrupt
        self.group: Any = None
        self.workers: list[Worker] = []
        # each failed call is told by whoever waits for it, by the name of its role
        os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
        here = connect(address, ceil(needed(hosts)["CPU"]))
        try:
            require_room(self.hosts, nodes(), here)
            scoring, others = ray.put(spec), ray.put(_without_reward(spec))
            self.specs = {
                True: scoring,
                False: others,
            }  # whether it scores -> what a worker is told of the run
            known = {
                id(parts): ray.put(parts) for parts in {id(one): one for one in models.values()}.values()
            }
            self.models = {role: known[id(parts)] for role, parts in models.items()}
        except BaseException:
            self.close()
            raise

    def start(self, states: dict[str, Any] | None) -> list[RayWorkers]:
        """Ends what ran before, then places every worker and waits, bounded, until all are up."""
        self._end_workers()
        self.check_interrupt()
        self.group = reserve(self.hosts, self.start_timeout_sec, self.check_interrupt)
        trees = {role: ray.put(tree) for role, tree in (states or {}).items()}
        actor_class: Any = ray.remote(max_restarts=0, max_task_retries=0)(RoleActor)
        for host in self.hosts:
            for number in range(host.workers):
                where = PlacementGroupSchedulingStrategy(
                    self.group, placement_group_bundle_index=len(self.workers)
                )
                actor = actor_class.options(
                    num_cpus=host.cpus, num_gpus=host.gpus, scheduling_strategy=where
                ).remote(*self._given(host, number, trees))
                self.workers.append(Worker(host, number, actor))
        self._await_ready()
        calls = Calls(self.workers, self.answer_timeout_sec, self.check_interrupt)
        return [
            RayWorkers(host, [worker for worker in self.workers if worker.host is host], calls)
            for host in self.hosts
        ]

    def _given(self, host: Host, number: int, trees: dict[str, Any]) -> list[Any]:
        """What a worker's `RoleActor` is made of: of models and states those that its roles use."""
        uses = {"actor" if role == "generator" else role for role in host.roles}
        models = tuple(role for role in self.models if role in uses)
        states = tuple(role for role in trees if role in uses)
        arrays = [*(self.models[role] for role in models), *(trees[role] for role in states)]
        return [self.specs["reward" in host.roles], host, number, models, states, *arrays]

    def _await_ready(self) -> None:
        deadline = time.monotonic() + self.start_timeout_sec
        waiting = [(worker, worker.actor.ready.remote()) for worker in self.workers]
        with span("wait: start"):
            for worker, ready in waiting:
                while not ray.wait([ready], timeout=WAIT_STEP_SEC)[0]:
                    self.check_interrupt()
                    if time.monotonic() > deadline:
                        raise RunFailed(
                            f"{worker.name} did not start within {self.start_timeout_sec:g} s (--placement-timeout-sec)"
                        )
                try:
                    worker.pid, worker.node = ray.get(ready)
                except RayActorError as error:
                    raise failed_to_start(worker.name, error) from error
                except RayError as error:
                    raise RunFailed(f"{worker.name} did not start: {first_line(error)}") from error

    def _end_workers(self) -> None:
        for worker in self.workers:
            ray.kill(worker.actor)
        here = ray.get_runtime_context().get_node_id() if self.workers else ""
        for worker in self.workers:
            if worker.node == here:
                _end_process(worker.pid)
        self.workers = []
        if self.group is not None:
            remove_placement_group(self.group)
            self.group = None

    def close(self) -> None:
        """Ends every worker, lets go of what was reserved, and leaves the cluster."""
        if ray.is_initialized():
            self._end_workers()
            ray.shutdown()


def _without_reward(spec: RoleSpec) -> RoleSpec:
    """For workers that do not score: a reward model is no burden to them."""
    return replace(spec, reward=cast(Any, None))


def _end_process(pid: int) -> None:
    """At once, also one that was stopped, for which Ray would wait seconds."""
    try:
        if b"ray::" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)
    except OSError:  # gone already
        return
