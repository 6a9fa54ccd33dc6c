"""The Ray runtime: thin shells around `RolloutWorker` and `LearnerWorker`, and what to do when one dies.

    driver                      worker w (Ray actor)                learner (Ray actor)
    ------                      --------------------                -------------------
    submit(i): collect.remote(g, i, ref of snapshot, ref of g's state) ->
                                plays group g, in order of submission
    collected() <- report       returns trajectory, state, report
                                (task results: they outlive the worker)
    update.remote(progress, refs of the trajectories in group order) ------>  learns
    <- report                                                       returns report, snapshot

With overlap, fragments i + 1 ... i + lag are on the workers' queues while the learner learns from i. A
group's state travels as a reference too, so its next fragment can be sent before this one is there.

A worker that dies loses nothing: the fragments that it had not finished are sent again, from their groups'
states before them, to the workers that live; a replacement starts beside, and its groups come home.
The driver waits in short steps and asks in between whether to stop: Ray's compiled code cannot be left by an
exception that a signal handler raises.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from distrl.errors import BadInput, RunFailed
from distrl.learner import Snapshot
from distrl.runtime.cluster import connect, failed_to_start, first_line, root_cause
from distrl.runtime.pool import WAIT_STEP_SEC, Slot, WorkerPool
from distrl.runtime.workers import (
    CollectReport,
    LearnerWorker,
    RolloutWorker,
    UpdateReport,
    WorkSpec,
    older_snapshots,
    snapshots_tree,
)
from distrl.telemetry.spans import SpanTotals, span


@dataclass
class _Task:
    """A group's fragment, sent to the Ray actor that was in a slot then: references to what comes back."""

    group: int
    slot: Slot
    handle: Any
    trajectory: Any
    state_after: Any
    report_ref: Any
    report: CollectReport | None = None

    def is_lost(self) -> bool:
        """Whether it will never come; what was finished before its worker died stays good."""
        if self.report is not None:
            return False
        if not ray.wait([self.report_ref], timeout=0)[0]:
            return True
        try:
            ray.get(self.report_ref)
        except RayActorError:
            return True
        except RayError:  # told when its fragment is due
            return False
        return False


def _require_room(num_workers: int, num_gpus: int) -> None:
    """BadInput where the cluster can never hold the run: needed against available."""
    total = ray.cluster_resources()
    for kind, needed in (("CPU", num_workers + 1), ("GPU", num_gpus)):
        if needed > total.get(kind, 0):
            raise BadInput(
                f"the run needs {needed} {kind}s (one per rollout worker and the learner's), the Ray cluster has "
                f"{total.get(kind, 0):g}: lower --workers, or add nodes"
            )


class RayRuntime:
    """Rollout workers and the learner as Ray actors."""

    def __init__(
        self,
        spec: WorkSpec,
        state: dict[str, Any],
        num_workers: int,
        address: str | None = None,
        max_worker_restarts: int = 5,
        on_event: Callable[[str], None] = lambda message: None,
        check_interrupt: Callable[[], None] = lambda: None,
    ) -> None:
        self.spec = spec
        self.max_worker_restarts = max_worker_restarts
        num_gpus = int(spec.device == "cuda")
        connect(address, num_workers + 1)
        self.on_event = on_event
        self.check_interrupt = check_interrupt
        self.pool: WorkerPool | None = None
        self.learner: Any = None
        try:
            _require_room(num_workers, num_gpus)
            self.workers = self._start(spec, state, num_workers, num_gpus)
        except BaseException:
            self.close()
            raise

    def _start(self, spec: WorkSpec, state: dict[str, Any], num_workers: int, num_gpus: int) -> WorkerPool:
        self.check_interrupt()
        spec_ref = ray.put(spec)
        rollout_class: Any = ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0)(RolloutWorker)
        learner_class: Any = ray.remote(num_cpus=1, num_gpus=num_gpus, max_restarts=0, max_task_retries=0)(
            LearnerWorker
        )
        self.learner = learner_class.remote(spec_ref, state["learner"], True)
        self.group_states: list[Any] = [group and ray.put(group) for group in state["groups"]]
        self.hosts: dict[
            int, Any
        ] = {}  # group -> the Ray actor that it stands in after its last fragment sent
        self.in_flight: dict[int, tuple[int, list[_Task]]] = {}  # fragment -> version, a task for each group
        self.spans: dict[str, SpanTotals] = {}
        self.warnings: list[str] = []
        self.pool = WorkerPool(
            lambda: rollout_class.remote(spec_ref, True),
            num_workers,
            self.max_worker_restarts,
            spec.env.repro_dir,
            self._tell_death,
            self.check_interrupt,
        )
        # what is there now as a reference too: a snapshot travels to every worker
        first: Snapshot = self._from_learner(self.learner.snapshot.remote(), "wait: start")
        self.snapshots = {one.version: ray.put(one) for one in [*older_snapshots(state), first]}
        self.pool.await_all()
        return self.pool

    def _tell_death(self, message: str) -> None:
        self.warnings.append(message)
        self.on_event(message)

    # collection

    def submit(self, fragment: int, version: int) -> None:
        self.workers.notice_started()
        self.in_flight[fragment] = version, []
        with span("submit"):
            for group in range(len(self.group_states)):
                self.in_flight[fragment][1].append(self._send(fragment, group))

    def _send(self, fragment: int, group: int) -> _Task:
        slot = self.workers.slot_of(group)
        before = self.in_flight.get(fragment - 1)
        state = before[1][group].state_after if before else self.group_states[group]
        previous = self.hosts.get(group)
        if previous is not None and previous is not slot.handle:
            previous.drop.remote(group)
        trajectory, after, report = slot.handle.collect.options(num_returns=3).remote(
            group,
            fragment,
            self.snapshots[self.in_flight[fragment][0]],
            None if previous is slot.handle else state,
        )
        self.hosts[group] = slot.handle
        return _Task(group, slot, slot.handle, trajectory, after, report)

    def collected(self) -> list[CollectReport]:
        fragment = min(self.in_flight)
        with span("wait: workers"):
            while waiting := [task for task in self.in_flight[fragment][1] if task.report is None]:
                done, _ = ray.wait(
                    [task.report_ref for task in waiting], num_returns=1, timeout=WAIT_STEP_SEC
                )
                self.check_interrupt()
                for task in waiting:
                    if task.report_ref in done:
                        self._receive(task)
        return [task.report for task in self.in_flight[fragment][1] if task.report is not None]

    def _receive(self, task: _Task) -> None:
        try:
            task.report = ray.get(task.report_ref)
        except RayActorError as error:
            self._send_again(task, error)
            return
        except RayTaskError as error:
            failure = root_cause(error)
            raise failure from failure.__cause__
        except RayError as error:  # an object lost, memory or disk full
            raise RunFailed(f"env group {task.group}'s fragment is lost: {first_line(error)}") from error
        assert task.report is not None
        name = f"worker {task.slot.number}"
        self.spans[name] = self.spans.get(name, SpanTotals()).merge(task.report.spans)
        self.workers.pids[task.slot.number] = task.report.pid

    def _send_again(self, failed: _Task, error: RayActorError) -> None:
        """What a dead worker had not finished, and what these groups were to do after it, wherever."""
        lost: dict[int, int] = {}  # group -> its first fragment that is lost
        for fragment, (_, tasks) in sorted(self.in_flight.items()):
            for task in tasks:
                if task.handle is failed.handle and task.is_lost():
                    lost.setdefault(task.group, fragment)
        self.workers.died(failed.slot, error)
        for group, handle in list(self.hosts.items()):
            if handle is failed.handle:
                del self.hosts[group]
            elif group in lost:  # it waits there for what will not come
                self.hosts.pop(group).drop.remote(group)
        for fragment, (_, tasks) in sorted(self.in_flight.items()):
            for group in sorted(lost):
                if fragment >= lost[group]:
                    tasks[group] = self._send(fragment, group)

    # learning

    def update(self, progress: float) -> UpdateReport:
        fragment = min(self.in_flight)
        tasks = self.in_flight[fragment][1]
        report_ref, snapshot_ref = self.learner.update.options(num_returns=2).remote(
            progress, *(task.trajectory for task in tasks)
        )
        report: UpdateReport = self._from_learner(report_ref, "wait: learner")
        self.group_states = [task.state_after for task in tasks]
        del self.in_flight[fragment]
        self.snapshots[report.version] = snapshot_ref
        self.snapshots.pop(report.version - self.spec.overlap - 1, None)
        self.spans["learner"] = self.spans.get("learner", SpanTotals()).merge(report.spans)
        return report

    def _from_learner(self, ref: Any, waiting: str) -> Any:
        with span(waiting):
            while not ray.wait([ref], timeout=WAIT_STEP_SEC)[0]:
                self.check_interrupt()
            try:
                return ray.get(ref)
            except RayActorError as error:
                if error.actor_init_failed:
                    raise failed_to_start("the learner", error) from error
                raise RunFailed(f"the learner died: {first_line(error)}") from error
            except RayTaskError as error:
                failure = root_cause(error)
                raise failure from failure.__cause__
            except RayError as error:
                raise RunFailed(f"the learner's answer is lost: {first_line(error)}") from error

    def snapshot(self) -> Snapshot:
        newest: Snapshot = ray.get(self.snapshots[max(self.snapshots)])
        return newest

    def state(self) -> dict[str, Any]:
        learner = self._from_learner(self.learner.state.remote(), "wait: learner")
        try:
            groups = [ref and ray.get(ref) for ref in self.group_states]
            snapshots = [ray.get(ref) for ref in self.snapshots.values()]
        except RayError as error:
            raise RunFailed(f"an env group's state is lost: {first_line(error)}") from error
        return {"learner": learner, "groups": groups, "snapshots": snapshots_tree(snapshots)}

    def take_spans(self) -> dict[str, SpanTotals]:
        taken, self.spans = self.spans, {}
        return taken

    def take_warnings(self) -> list[str]:
        taken, self.warnings = self.warnings, []
        return taken

    def close_envs(self) -> None:
        self.workers.close_envs()

    def close(self) -> None:
        if ray.is_initialized():
            if self.pool is not None:
                self.pool.close()
            if self.learner is not None:
                ray.kill(self.learner)
            ray.shutdown()
