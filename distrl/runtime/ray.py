"""The Ray runtime: thin shells around `RolloutWorker` and `LearnerWorker`, and what to do when one dies.

    driver                      worker w (Ray actor)                learner (Ray actor)
    ------                      --------------------                -------------------
    collect.remote(g, i, ref of snapshot, ref of g's state) ->
                                plays group g
    <- report                   returns trajectory, state, report
                                (task results: they outlive the worker)
    update.remote(progress, refs of the trajectories in group order) ------>  learns
    <- report                                                       returns report, snapshot

A worker that dies loses nothing: its unfinished groups are sent, with their states at the last boundary,
to the workers that live; a replacement starts beside, and its groups come home at the next boundary.
The driver waits in short steps and asks in between whether to stop: Ray's compiled code cannot be left by an
exception that a signal handler raises.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import AuthenticationError, RayActorError, RayError, RayTaskError

from distrl.envs.watchdog import hang_report
from distrl.errors import BadInput, RunFailed
from distrl.learner import Snapshot
from distrl.runtime.workers import CollectReport, LearnerWorker, RolloutWorker, UpdateReport, WorkSpec
from distrl.telemetry.spans import SpanTotals, span

START_TIMEOUT_SEC = 120.0
WAIT_STEP_SEC = 0.2


def connect(address: str | None, num_cpus: int, num_gpus: int) -> bool:
    """Join the cluster at `address`, or start one on this machine. Returns whether it was started here.

    BadInput where the cluster cannot be reached, or cannot ever hold the run: needed against available.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    address = address or os.environ.get("RAY_ADDRESS") or None
    quiet: dict[str, Any] = {
        "logging_level": logging.ERROR,
        "log_to_driver": True,
        "ignore_reinit_error": False,
    }
    if ray.is_initialized():
        raise BadInput(
            "Ray already runs in this process: call ray.shutdown() first, or train in-process with --workers 0"
        )
    if address is None:
        cpus = max(num_cpus, os.cpu_count() or 1)
        with _own_signal_handlers():
            # "local": without it, Ray joins any cluster that `ray start` left on this machine
            ray.init(address="local", num_cpus=cpus, include_dashboard=False, **quiet)
    else:
        _require_listener(address)
        try:
            with _own_signal_handlers():
                ray.init(address=address, **quiet)
        except (ConnectionError, RayError, RuntimeError, ValueError) as error:
            raise BadInput(f"--address {address}: {_why_not_joined(error)}") from error
    total = ray.cluster_resources()
    for kind, needed in (("CPU", num_cpus), ("GPU", num_gpus)):
        if needed > total.get(kind, 0):
            ray.shutdown()
            raise BadInput(
                f"the run needs {needed} {kind}s (one per rollout worker and the learner's), the Ray cluster has "
                f"{total.get(kind, 0):g}: lower --workers, or add nodes"
            )
    return address is None


def _require_listener(address: str) -> None:
    """BadInput where nothing listens at host:port: Ray itself would wait for minutes."""
    host, _, port = address.rpartition(":")
    if "://" in address or not port.isdecimal():
        return  # `auto`, or a client's address: Ray knows how to find them
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5.0).close()
    except OSError as error:
        raise BadInput(
            f"--address {address}: no Ray cluster answers there: {error.strerror or error}; is the head up?"
        ) from error


def _why_not_joined(error: BaseException) -> str:
    cause: BaseException | None = error
    # Ray keeps a refused token as a traceback's text inside a RuntimeError, the cause of a ConnectionError
    while cause is not None and AuthenticationError.__name__ not in f"{type(cause).__name__} {cause}":
        cause = cause.__cause__
    if cause is None:
        return f"no Ray cluster answers there: {_first_line(error)}"
    mode = os.environ.get("RAY_AUTH_MODE", "not set")
    if os.environ.get("RAY_AUTH_TOKEN"):
        token = "the value of RAY_AUTH_TOKEN"
    else:
        path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
        found = "" if path.is_file() and path.stat().st_size else ", which is empty or not there"
        token = f"the file {path}{found} (RAY_AUTH_TOKEN_PATH names another)"
    return (
        f"the Ray cluster refuses this process's token: RAY_AUTH_MODE is {mode} and the token would be {token}; "
        "export RAY_AUTH_MODE=token and give the cluster's own token"
    )


@contextmanager
def _own_signal_handlers() -> Iterator[None]:
    """Ray puts handlers of its own on SIGTERM, in Python and in C++, which would end the driver without a checkpoint."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass
class _Slot:
    """A rollout worker's place: the Ray actor in it now, and how often one died there."""

    handle: Any
    ready: Any  # reference that resolves once the worker is up; None from then on
    deaths: int = 0


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
        self.num_groups = len(spec.group_sizes)
        self.max_worker_restarts = max_worker_restarts
        num_gpus = int(spec.device == "cuda")
        connect(address, num_workers + 1, num_gpus)
        self.on_event = on_event
        self.check_interrupt = check_interrupt
        self.slots: list[_Slot] = []
        self.learner: Any = None
        try:
            self._start(spec, state, num_workers, num_gpus)
        except BaseException:
            self.close()
            raise

    def _start(self, spec: WorkSpec, state: dict[str, Any], num_workers: int, num_gpus: int) -> None:
        self.check_interrupt()
        self.spec_ref = ray.put(spec)
        rollout_class: Any = ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0)(RolloutWorker)
        learner_class: Any = ray.remote(num_cpus=1, num_gpus=num_gpus, max_restarts=0, max_task_retries=0)(
            LearnerWorker
        )
        self._start_worker = lambda: rollout_class.remote(self.spec_ref, True)
        self.learner = learner_class.remote(self.spec_ref, state["learner"], True)
        self.slots = [self._new_slot() for _ in range(num_workers)]
        self.group_states: list[Any] = [group and ray.put(group) for group in state["groups"]]
        self.hosts: dict[int, Any] = {}  # group -> the Ray actor it stands in, at the last boundary
        self.collected: tuple[list[Any], list[Any]] = ([], [])
        self.spans: dict[str, SpanTotals] = {}
        self.pids: dict[int, int] = {}
        self.warnings: list[str] = []
        self.published = self._from_learner(self.learner.snapshot.remote(), "wait: start")
        for slot in self.slots:
            self._await_ready(slot)

    # collection

    def collect(self, iteration: int) -> list[CollectReport]:
        self._bring_home()
        submitted: dict[Any, tuple[int, _Slot, Any]] = {}  # report -> group, slot, the Ray actor in it then
        results: dict[int, tuple[Any, Any, CollectReport]] = {}
        refs: dict[Any, tuple[Any, Any]] = {}

        def submit(group: int) -> None:
            slot = self._slot_of(group)
            state = None if self.hosts.get(group) is slot.handle else self.group_states[group]
            previous = self.hosts.pop(group, None)
            if previous is not None and previous is not slot.handle:
                previous.drop.remote(group)
            trajectory, after, report = slot.handle.collect.options(num_returns=3).remote(
                group, iteration, self.published, state
            )
            submitted[report] = (group, slot, slot.handle)
            refs[report] = (trajectory, after)

        for group in range(self.num_groups):
            submit(group)
        with span("wait: workers"):
            while submitted:
                done, _ = ray.wait(list(submitted), num_returns=1, timeout=WAIT_STEP_SEC)
                self.check_interrupt()
                for report_ref in done:
                    if report_ref not in submitted:
                        continue
                    group, slot, handle = submitted.pop(report_ref)
                    try:
                        report = ray.get(report_ref)
                    except RayActorError as error:
                        lost = [group, *(g for g, _, other in submitted.values() if other is handle)]
                        for ref in [ref for ref, (_, _, other) in submitted.items() if other is handle]:
                            # what it had finished before it died stays good
                            if not ray.wait([ref], timeout=0)[0] or _failed(ref):
                                del submitted[ref]
                            else:
                                lost.remove(submitted[ref][0])
                        self._worker_died(slot, error)
                        for lost_group in sorted(lost):
                            submit(lost_group)
                        continue
                    except RayTaskError as error:
                        raise _root_cause(error) from error
                    except RayError as error:  # an object lost, memory or disk full
                        raise RunFailed(
                            f"env group {group}'s fragment is lost: {_first_line(error)}"
                        ) from error
                    results[group] = (*refs[report_ref], report)
                    self.hosts[group] = handle  # which may be dead by now, and another in its slot
                    self._count_spans(self.slots.index(slot), report)
        ordered = [results[group] for group in range(self.num_groups)]
        self.collected = [trajectory for trajectory, _, _ in ordered], [after for _, after, _ in ordered]
        return [report for _, _, report in ordered]

    def _count_spans(self, slot_number: int, report: CollectReport) -> None:
        name = f"worker {slot_number}"
        self.spans[name] = self.spans.get(name, SpanTotals()).merge(report.spans)
        self.pids[slot_number] = report.pid

    # who hosts what

    def _slot_of(self, group: int) -> _Slot:
        home = self.slots[group % len(self.slots)]
        if home.ready is None:
            return home
        alive = [slot for slot in self.slots if slot.ready is None]
        return alive[group % len(alive)] if alive else self._await_ready(home)

    def _bring_home(self) -> None:
        for slot in self.slots:
            if slot.ready is not None and ray.wait([slot.ready], timeout=0)[0]:
                self._await_ready(slot)

    def _new_slot(self) -> _Slot:
        handle = self._start_worker()
        return _Slot(handle, handle.ready.remote())

    def _await_ready(self, slot: _Slot) -> _Slot:
        """Wait, bounded, until the slot's worker is up; replace it where it dies on the way."""
        deadline = time.monotonic() + START_TIMEOUT_SEC
        with span("wait: start"):
            while slot.ready is not None:
                if time.monotonic() > deadline:
                    raise RunFailed(
                        f"rollout worker {self.slots.index(slot)} did not start within {START_TIMEOUT_SEC:.0f} s: "
                        f"the cluster has {ray.available_resources().get('CPU', 0):g} of "
                        f"{ray.cluster_resources().get('CPU', 0):g} CPUs free; each worker needs 1"
                    )
                self.check_interrupt()
                if not ray.wait([slot.ready], timeout=WAIT_STEP_SEC)[0]:
                    continue
                try:
                    self.pids[self.slots.index(slot)] = ray.get(slot.ready)
                    slot.ready = None
                except RayActorError as error:
                    self._worker_died(slot, error)
        return slot

    def _worker_died(self, slot: _Slot, error: RayActorError) -> None:
        """Put a new worker in the slot, after a delay that doubles; RunFailed once that happened too often."""
        number = self.slots.index(slot)
        if error.actor_init_failed:
            raise _failed_to_start(f"rollout worker {number}", error) from error  # it would again
        why = self._last_words(number) or _first_line(error)
        slot.deaths += 1
        self.hosts = {group: handle for group, handle in self.hosts.items() if handle is not slot.handle}
        deaths = sum(other.deaths for other in self.slots)
        if deaths > self.max_worker_restarts:
            raise RunFailed(
                f"rollout workers died {deaths} times (--max-worker-restarts {self.max_worker_restarts}); "
                f"the last was worker {number}: {why}"
            )
        ray.kill(slot.handle)
        message = f"rollout worker {number} died ({why}); its groups move, a replacement starts"
        self.warnings.append(message)
        self.on_event(message)
        delay_until = time.monotonic() + (min(0.25 * 2**slot.deaths, 10.0) if slot.deaths > 1 else 0.0)
        while time.monotonic() < delay_until:
            self.check_interrupt()
            time.sleep(WAIT_STEP_SEC)
        fresh = self._new_slot()
        slot.handle, slot.ready = fresh.handle, fresh.ready

    def _last_words(self, number: int) -> str | None:
        """What the watchdog of the slot's last process left to be read, where this machine can read it."""
        pid, folder = self.pids.pop(number, None), self.spec.env.repro_dir
        path = hang_report(folder, pid) if folder is not None and pid is not None else None
        if path is None or not path.exists():
            return None
        return f"{path.read_text(errors='replace').splitlines()[0]}; stacks in {path}"

    # learning

    def update(self, progress: float) -> UpdateReport:
        trajectories, states = self.collected
        report_ref, snapshot_ref = self.learner.update.options(num_returns=2).remote(progress, *trajectories)
        report: UpdateReport = self._from_learner(report_ref, "wait: learner")
        self.published, self.group_states = snapshot_ref, states
        self.collected = ([], [])
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
                    raise _failed_to_start("the learner", error) from error
                raise RunFailed(f"the learner died: {_first_line(error)}") from error
            except RayTaskError as error:
                raise _root_cause(error) from error
            except RayError as error:
                raise RunFailed(f"the learner's answer is lost: {_first_line(error)}") from error

    def snapshot(self) -> Snapshot:
        return self.published if isinstance(self.published, Snapshot) else ray.get(self.published)

    def state(self) -> dict[str, Any]:
        learner = self._from_learner(self.learner.state.remote(), "wait: learner")
        try:
            groups = [ref and ray.get(ref) for ref in self.group_states]
        except RayError as error:
            raise RunFailed(f"an env group's state is lost: {_first_line(error)}") from error
        return {"learner": learner, "groups": groups}

    def take_spans(self) -> dict[str, SpanTotals]:
        taken, self.spans = self.spans, {}
        return taken

    def take_warnings(self) -> list[str]:
        taken, self.warnings = self.warnings, []
        return taken

    def close(self) -> None:
        if ray.is_initialized():
            for slot in self.slots:
                ray.kill(slot.handle)
            if self.learner is not None:
                ray.kill(self.learner)
            ray.shutdown()


def _failed(ref: Any) -> bool:
    try:
        ray.get(ref)
    except RayActorError:
        return True
    return False


def _failed_to_start(who: str, error: RayActorError) -> RunFailed:
    """What the constructor in the worker raised, in a line, then its traceback."""
    trace = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
    return RunFailed(f"{who} could not start: {trace.splitlines()[-1].strip()}\n{trace}")


def _root_cause(error: RayTaskError) -> Exception:
    """Our own errors as they were raised; any other as RunFailed with its last line."""
    cause = error.cause
    if isinstance(cause, RunFailed | BadInput):
        return type(cause)(str(cause))
    return RunFailed(f"{type(cause).__name__} in {error.function_name}: {cause}\n{error.traceback_str}")


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
