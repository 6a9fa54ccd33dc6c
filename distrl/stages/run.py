"""StageRun: keeps the run directory of a stage. Metrics, checkpoints, and the summary at the end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distrl.checkpoint import CheckpointWriter
from distrl.interrupts import Interrupted, Interrupts
from distrl.run_directory import write_json_atomic
from distrl.runtime.workers import rss_bytes
from distrl.stages.config import StageConfig
from distrl.telemetry import spans
from distrl.telemetry.console import ConsoleSink
from distrl.telemetry.sinks import Sinks
from distrl.telemetry.spans import SpanTotals, span, time_record

SUMMARY_SCHEMA = 1


@dataclass
class StageState:
    """What a run has counted so far; goes into every checkpoint, as the tree `run`, and comes back on resume."""

    iteration: int = 0
    env_steps: int = 0  # tokens that were learned from
    wall_sec: float = 0.0
    resumes: int = 0
    beta: float = 0.0  # of the KL, where it adapts
    warnings: list[str] = field(default_factory=list)
    spans: dict[str, SpanTotals] = field(default_factory=dict)

    def tree(self) -> dict[str, Any]:
        """State tree for the checkpoint."""
        totals = {
            name: {"ns": dict(total.ns), "counts": dict(total.counts)} for name, total in self.spans.items()
        }
        return {**vars(self), "warnings": list(self.warnings), "spans": totals}

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> StageState:
        """The state that `tree` was made from."""
        totals = {
            name: SpanTotals(dict(total["ns"]), dict(total["counts"]))
            for name, total in tree["spans"].items()
        }
        return cls(**{**tree, "warnings": list(tree["warnings"]), "spans": totals})


class StageRun:
    """What a stage tells of its iterations. `trees` gives what a checkpoint holds beside the counts."""

    def __init__(
        self,
        directory: Path,
        config: StageConfig,
        total: int,
        open_sinks: Callable[[int | None], Sinks],
        console: ConsoleSink,
        interrupts: Interrupts,
        state: StageState,
        meta: dict[str, Any],
        trees: Callable[[], dict[str, Any]],
        resumed: bool,
        started: float,
    ) -> None:
        self.directory, self.config, self.total = directory, config, total
        self.console, self.interrupts, self.meta, self.trees = console, interrupts, meta, trees
        self.state = state
        self.open_sinks = open_sinks
        self.sinks = open_sinks(state.iteration if resumed else None)
        self.record: dict[str, Any] = {}
        self.told: set[str] = set()
        self.saved_at = state.iteration
        self.torn = False  # left in the middle of an iteration's record: the last checkpoint stands
        self.restarts = 0
        self.seen: Callable[[int, dict[str, SpanTotals]], None] = lambda iteration, taken: None
        self.writer = CheckpointWriter(
            directory / "checkpoints",
            config.keep_checkpoints,
            config.keep_every,
            config.max_save_failures,
            self.warn,
        )
        self._started, self._iteration_started = started, time.monotonic()
        self._wall_before = state.wall_sec

    @property
    def iteration(self) -> int:
        """Iterations that are whole."""
        return self.state.iteration

    @property
    def progress(self) -> float:
        """Share of the run's iterations done."""
        return self.state.iteration / self.total

    def uninterrupted(self) -> AbstractContextManager[None]:
        """From an update to its record: no interrupt in between."""
        return self.interrupts.deferred()

    def warn(self, message: str) -> None:
        """Say it once, now and in the summary."""
        if message not in self.state.warnings:
            self.state.warnings.append(message)
        if message not in self.told:
            self.told.add(message)
            self.console.message(f"warning: {message}", "yellow")

    def keep(
        self,
        metrics: Mapping[str, Any],
        steps: int,
        taken: Mapping[str, SpanTotals],
        evaluate: Callable[[int], dict[str, Any]] = lambda iteration: {},
    ) -> None:
        """An iteration is whole: `steps` tokens, and the `taken` spans of other processes; then evaluation and checkpoint."""
        state = self.state
        state.iteration += 1
        state.env_steps += steps
        record = {"iteration": state.iteration, "env_steps": state.env_steps, **metrics}
        try:
            with span("evaluate"):
                record |= evaluate(state.iteration)
        except Interrupted:
            self.torn = True
            raise
        with span("log"):
            self.record = record | self._times(steps, taken)
            self.sinks.write(self.record)
        if state.iteration % self.config.checkpoint_every == 0:
            self.checkpoint()

    def _times(self, steps: int, taken: Mapping[str, SpanTotals]) -> dict[str, Any]:
        now = time.monotonic()
        self.state.wall_sec = self._wall_before + now - self._started
        elapsed, self._iteration_started = now - self._iteration_started, now
        every = self.count_spans(taken)
        self.seen(self.state.iteration, every)
        return {
            "wall_sec": self.state.wall_sec,
            "steps_per_sec": steps / elapsed,
            **time_record({name: totals.seconds() for name, totals in every.items()}),
            "system/driver_rss_bytes": rss_bytes(),
        }

    def count_spans(self, taken: Mapping[str, SpanTotals]) -> dict[str, SpanTotals]:
        """Other processes' time and this one's since the last take, counted into the run's."""
        every = {**taken, "driver": spans.current().take_totals()}
        for name, totals in every.items():
            sums = SpanTotals(totals.ns, totals.counts)  # without moments, which a trace alone keeps
            self.state.spans[name] = self.state.spans.get(name, SpanTotals()).merge(sums)
        return every

    def checkpoint(self) -> None:
        """Save the last boundary, if that is not done already."""
        if self.saved_at == self.state.iteration or self.torn:
            return
        with span("checkpoint"):
            self.sinks.primary.sync()
            trees = {**self.trees(), "run": self.state.tree()}
            self.writer.save(self.state.iteration, trees, self.meta)
            if self.writer.num_failures == 0:
                self.saved_at = self.state.iteration

    def rewind(self, state: StageState) -> None:
        """Goes back to a checkpoint's state: the records since are cut off, the time that they took stays counted."""
        state.warnings = [*dict.fromkeys([*state.warnings, *self.state.warnings])]
        state.spans = self.state.spans
        self.sinks.close()
        self.state = state
        self.saved_at = state.iteration
        self.sinks = self.open_sinks(state.iteration)

    def finish(self, exit_reason: str, described: Mapping[str, Any]) -> dict[str, Any]:
        """Write summary.json, whole or not at all; returns it."""
        state = self.state
        self.count_spans({})
        state.wall_sec = self._wall_before + time.monotonic() - self._started
        summary = {
            "schema": SUMMARY_SCHEMA,
            "exit_reason": exit_reason,
            "iterations": state.iteration,
            "env_steps": state.env_steps,
            "wall_sec": state.wall_sec,
            "resumes": state.resumes,
            "restarts": self.restarts,
            "reproducibility": "exact",
            "last_metrics": {
                name: None if isinstance(value, float) and not math.isfinite(value) else value
                for name, value in self.record.items()
            },
            "warnings": state.warnings,
            "spans": {name: totals.as_json() for name, totals in sorted(state.spans.items())},
            **described,
        }
        write_json_atomic(self.directory / "summary.json", summary)
        return summary
