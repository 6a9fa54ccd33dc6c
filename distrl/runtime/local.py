"""The in-process runtime: no Ray, no second process; first class, and the shortest way to read what a run does."""

from __future__ import annotations

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
from distrl.telemetry.spans import SpanTotals
from distrl.trajectory import Trajectory

# of each group: the trajectory, the state after it, what is told of it
Results = list[tuple[Trajectory, dict[str, Any], CollectReport]]


class LocalRuntime:
    """One rollout worker that hosts every group, and the learner, in the caller's process."""

    def __init__(self, spec: WorkSpec, state: dict[str, Any]) -> None:
        self.spec = spec
        torch.set_num_threads(1)
        self.worker = RolloutWorker(spec)
        self.learner = LearnerWorker(spec, state["learner"])
        self.group_states: list[Any] = list(state["groups"])
        self.snapshots = {one.version: one for one in [*older_snapshots(state), self.learner.snapshot()]}
        self.in_flight: dict[int, tuple[Snapshot, Results]] = {}  # by fragment; no results: not collected yet

    def submit(self, fragment: int, version: int) -> None:
        self.in_flight[fragment] = self.snapshots[version], []

    def collected(self) -> list[CollectReport]:
        fragment = min(self.in_flight)
        snapshot, results = self.in_flight[fragment]
        if not results:
            results = [
                self.worker.collect(group, fragment, snapshot, state)
                for group, state in enumerate(self.group_states)
            ]
            self.in_flight[fragment] = snapshot, results
        return [report for _, _, report in results]

    def update(self, progress: float) -> UpdateReport:
        fragment = min(self.in_flight)
        trajectories, states, _ = zip(*self.in_flight[fragment][1], strict=True)
        # a policy infers with one thread everywhere; the learner's threads are its own and part of the curve
        torch.set_num_threads(self.spec.learner_threads)
        try:
            report, snapshot = self.learner.update(progress, *trajectories)
        finally:
            torch.set_num_threads(1)
        del self.in_flight[fragment]
        self.group_states = list(states)
        self.snapshots[report.version] = snapshot
        self.snapshots.pop(report.version - self.spec.overlap - 1, None)
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
        return {}

    def take_warnings(self) -> list[str]:
        return []

    def close(self) -> None:
        self.worker.close()
