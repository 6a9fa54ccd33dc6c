"""Who keeps a run's directory, of train and of RLHF's stages alike: counts, warnings, times, checkpoints."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar

from distrl.checkpoint import CheckpointError, CheckpointWriter, write_checkpoint
from distrl.interrupts import Interrupts
from distrl.run_directory import write_json_atomic
from distrl.telemetry.console import ConsoleSink
from distrl.telemetry.metrics import EpisodeWindow
from distrl.telemetry.sinks import Sinks
from distrl.telemetry.sinks.jsonl import as_json
from distrl.telemetry.spans import SpanTotals, span

SUMMARY_SCHEMA = 1


@dataclass
class CommonState:
    """What every run knows of itself so far; goes into every checkpoint, as `run`, and comes back on resume."""

    iteration: int = 0
    env_steps: int = 0
    wall_sec: float = 0.0
    resumes: int = 0
    warnings: list[str] = field(default_factory=list)
    spans: dict[str, SpanTotals] = field(default_factory=dict)
    window: EpisodeWindow = field(default_factory=EpisodeWindow)
    best_return: float = -math.inf  # of evaluations

    def tree(self) -> dict[str, Any]:
        """State tree for the checkpoint."""
        totals = {
            name: {"ns": dict(total.ns), "counts": dict(total.counts)} for name, total in self.spans.items()
        }
        kept = {"warnings": list(self.warnings), "spans": totals, "window": self.window.state()}
        return {**vars(self), **kept}

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> Self:
        """The state that `tree` was made from."""
        totals = {
            name: SpanTotals(dict(total["ns"]), dict(total["counts"]))
            for name, total in tree["spans"].items()
        }
        window = EpisodeWindow.from_state(tree["window"]) if "window" in tree else EpisodeWindow()
        return cls(**{**tree, "warnings": list(tree["warnings"]), "spans": totals, "window": window})


class CheckpointRules(Protocol):
    """Which checkpoints stay, and how many may fail: fields of every configuration."""

    @property
    def keep_checkpoints(self) -> int: ...
    @property
    def keep_every(self) -> int: ...
    @property
    def max_save_failures(self) -> int: ...


S = TypeVar("S", bound=CommonState)


class RunKeeper(ABC, Generic[S]):
    """Keeps a run directory; what a record says is for its kinds to say."""

    def __init__(
        self,
        directory: Path,
        *,
        rules: CheckpointRules,
        sinks: Sinks,
        console: ConsoleSink,
        interrupts: Interrupts,
        state: S,
        meta: dict[str, Any],
        started: float,
    ) -> None:
        self.directory, self.sinks, self.console, self.interrupts = directory, sinks, console, interrupts
        self.state, self.meta = state, meta
        self.record: dict[str, Any] = {}
        self.told: set[str] = set()
        self.saved_at = state.iteration
        self.torn = False  # left in the middle of an iteration's record: the last checkpoint stands
        self.writer = CheckpointWriter(
            directory / "checkpoints",
            rules.keep_checkpoints,
            rules.keep_every,
            rules.max_save_failures,
            self.warn,
        )
        self._started, self._iteration_started = started, time.monotonic()
        self._wall_before = state.wall_sec

    @property
    def iteration(self) -> int:
        """Iterations that are whole."""
        return self.state.iteration

    def uninterrupted(self) -> AbstractContextManager[None]:
        """From an update to its record: no interrupt in between."""
        return self.interrupts.deferred()

    def warn(self, message: str) -> None:
        """Say it once, now and in the summary."""
        self.note(message)
        if message not in self.told:
            self.told.add(message)
            self.console.message(f"warning: {message}", "yellow")

    def note(self, message: str) -> None:
        """Say it in the summary."""
        if message not in self.state.warnings:
            self.state.warnings.append(message)

    def checkpoint(self) -> None:
        """Save the last boundary, if that is not done already."""
        if self.saved_at == self.state.iteration or self.torn:
            return
        with span("checkpoint"):
            self.sinks.primary.sync()
            self.writer.save(self.state.iteration, self.trees(), self.meta)
            if self.writer.num_failures == 0:
                self.saved_at = self.state.iteration

    def keep_best(self, found: float | None, evaluation: Mapping[str, Any]) -> None:
        """Save the last boundary as `best/` where an evaluation found a higher return than all before."""
        if found is None or not found > self.state.best_return:
            return
        before, self.state.best_return = self.state.best_return, found
        with span("checkpoint"):
            meta = self.meta | {"evaluation": dict(evaluation)}
            try:
                write_checkpoint(self.directory, self.state.iteration, self.trees(), meta, name="best")
            except CheckpointError as error:
                self.state.best_return = before
                self.warn(f"{error} (the best checkpoint so far stays)")

    @abstractmethod
    def trees(self) -> dict[str, Any]:
        """What a checkpoint holds."""

    def time_iteration(self, steps: int) -> dict[str, Any]:
        """The clock's part of the record of an iteration that has just ended."""
        now = time.monotonic()
        self.state.wall_sec = self._wall_before + now - self._started
        elapsed, self._iteration_started = now - self._iteration_started, now
        return {"wall_sec": self.state.wall_sec, "steps_per_sec": steps / elapsed}

    def write_summary(self, exit_reason: str, told: Mapping[str, Any]) -> dict[str, Any]:
        """Write summary.json, whole or not at all; returns it."""
        state = self.state
        state.wall_sec = self._wall_before + time.monotonic() - self._started
        summary = {
            "schema": SUMMARY_SCHEMA,
            "exit_reason": exit_reason,
            "iterations": state.iteration,
            "env_steps": state.env_steps,
            "wall_sec": state.wall_sec,
            "resumes": state.resumes,
            "last_metrics": as_json(self.record),
            "best_return": state.best_return if math.isfinite(state.best_return) else None,
            "warnings": state.warnings,
            "spans": {name: totals.as_json() for name, totals in sorted(state.spans.items())},
            **told,
        }
        write_json_atomic(self.directory / "summary.json", summary)
        return summary
