"""The in-process runtime: no Ray, no second process; first class, and the shortest way to read what a run does."""

from __future__ import annotations

from typing import Any

import torch

from distrl.learner import Snapshot
from distrl.runtime.workers import CollectReport, LearnerWorker, RolloutWorker, UpdateReport, WorkSpec
from distrl.telemetry.spans import SpanTotals
from distrl.trajectory import Trajectory


class LocalRuntime:
    """One rollout worker that hosts every group, and the learner, in the caller's process."""

    def __init__(self, spec: WorkSpec, state: dict[str, Any]) -> None:
        self.spec = spec
        torch.set_num_threads(1)
        self.worker = RolloutWorker(spec)
        self.learner = LearnerWorker(spec, state["learner"])
        self.group_states: list[Any] = list(state["groups"])
        self.published = self.learner.snapshot()
        self.collected: tuple[list[Trajectory], list[Any]] = (
            [],
            [],
        )  # not yet learned from, and the states after

    def collect(self, iteration: int) -> list[CollectReport]:
        trajectories, states, reports = [], [], []
        for group, state in enumerate(self.group_states):
            trajectory, after, report = self.worker.collect(group, iteration, self.published, state)
            trajectories.append(trajectory)
            states.append(after)
            reports.append(report)
        self.collected = trajectories, states
        return reports

    def update(self, progress: float) -> UpdateReport:
        trajectories, states = self.collected
        # a policy infers with one thread everywhere; the learner's threads are its own and part of the curve
        torch.set_num_threads(self.spec.learner_threads)
        try:
            report, self.published = self.learner.update(progress, *trajectories)
        finally:
            torch.set_num_threads(1)
        self.group_states = states
        return report

    def snapshot(self) -> Snapshot:
        return self.published

    def state(self) -> dict[str, Any]:
        return {"learner": self.learner.state(), "groups": self.group_states}

    def take_spans(self) -> dict[str, SpanTotals]:
        return {}

    def take_warnings(self) -> list[str]:
        return []

    def close(self) -> None:
        self.worker.close()
