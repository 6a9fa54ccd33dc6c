"""The in-process runtime: no Ray, no second process; first class, and the shortest way to read what a run does.

    overlap 0   one thread collects, learns, collects, ... in turns
    overlap k   the caller's thread learns, a thread beside it collects what is submitted, in order:

    caller    submit(1)  update of 0 .............  submit(2)  collected() waits ...
    rollout   --- fragment 0 ---|--- fragment 1 ---|--- fragment 2 ---|

Fused rollouts share a worker's groups among `learner_threads` threads, whichever thread collects.

How much of the two runs at once is decided by who lets go of Python's lock: compiled rollouts, torch's and
NumPy's kernels and an env that waits or steps in subprocesses do; an env written in Python does not.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch

from distrl.learner import Snapshot
from distrl.runtime.workers import (
    CollectReport,
    LearnerWorker,
    RolloutWorker,
    UpdateReport,
    WorkSpec,
    older_snapshots,
    snapshots_tree,
)
from distrl.telemetry import spans
from distrl.telemetry.spans import SpanTotals, span
from distrl.trajectory import Trajectory

THREAD = "rollout thread"


@dataclass(frozen=True)
class _Collected:
    """A whole fragment: of each group its trajectory, its state after it, and what is told of it."""

    trajectories: list[Trajectory]
    states: list[Any]
    reports: list[CollectReport]
    spans: SpanTotals  # of the rollout thread since the fragment before


class LocalRuntime:
    """One rollout worker that hosts every group, and the learner, in the caller's process."""

    def __init__(self, spec: WorkSpec, state: dict[str, Any]) -> None:
        self.spec = spec
        torch.set_num_threads(1)
        self.worker = RolloutWorker(spec)
        self.learner = LearnerWorker(spec, state["learner"])
        self.snapshots = {one.version: one for one in [*older_snapshots(state), self.learner.snapshot()]}
        self.group_states: list[Any] = list(state["groups"])
        self.states_ahead = self.group_states  # after the fragment collected last: whoever collects owns it
        self.in_flight: dict[int, Callable[[], _Collected]] = {}  # fragment -> what waits for it
        self.spans: dict[str, SpanTotals] = {}
        self.thread = ThreadPoolExecutor(1, "rollout", self._begin_thread) if spec.overlap else None

    def submit(self, fragment: int, version: int) -> None:
        collect = partial(self._collect, fragment, self.snapshots[version])
        self.in_flight[fragment] = self.thread.submit(collect).result if self.thread else cache(collect)

    def _collect(self, fragment: int, snapshot: Snapshot) -> _Collected:
        collected = self.worker.collect_all(fragment, snapshot, self.states_ahead)
        trajectories, states, reports = (list(column) for column in zip(*collected, strict=True))
        self.states_ahead = states
        totals = spans.current().take_totals() if self.thread else SpanTotals()
        return _Collected(trajectories, states, reports, totals)

    def collected(self) -> list[CollectReport]:
        with span(f"wait: {THREAD}") if self.thread else nullcontext():
            return self.in_flight[min(self.in_flight)]().reports

    def update(self, progress: float) -> UpdateReport:
        fragment = min(self.in_flight)
        collected = self.in_flight[fragment]()
        # a policy infers with one thread everywhere; the learner's threads are its own and part of the curve
        with span("learn: threads"):
            torch.set_num_threads(self.spec.learner_threads)
            try:
                report, snapshot = self.learner.update(progress, *collected.trajectories)
            finally:
                torch.set_num_threads(1)
        del self.in_flight[fragment]
        self.group_states = collected.states
        self.snapshots[report.version] = snapshot
        self.snapshots.pop(report.version - self.spec.overlap - 1, None)
        if self.thread:
            self.spans[THREAD] = self.spans.get(THREAD, SpanTotals()).merge(collected.spans)
        return report

    def snapshot(self) -> Snapshot:
        return self.snapshots[max(self.snapshots)]

    def state(self) -> dict[str, Any]:
        return {
            "learner": self.learner.state(),
            "groups": self.group_states,
            "snapshots": snapshots_tree(self.snapshots.values()),
        }

    def take_spans(self) -> dict[str, SpanTotals]:
        taken, self.spans = self.spans, {}
        return taken

    def take_warnings(self) -> list[str]:
        return []

    def close_envs(self) -> None:
        if self.thread:
            self.worker.stop()
            self.thread.submit(spans.end_thread)
            self.thread.shutdown()
            self.thread = None
        self.worker.close()

    def close(self) -> None:
        self.close_envs()

    def _begin_thread(self) -> None:
        torch.set_num_threads(1)  # of this thread: each has its own count
        spans.start_thread("wait: learner", self.spec.record_events)
