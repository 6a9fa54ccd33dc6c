"""Run: keeps the run directory while a loop trains. Metrics, checkpoints, evaluations, and the summary at the end."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distrl.checkpoint import CheckpointError, CheckpointWriter, write_checkpoint
from distrl.config import TrainConfig
from distrl.errors import RunFailed
from distrl.evaluation import evaluate_policy
from distrl.inference import make_inference
from distrl.interrupts import Interrupted, Interrupts
from distrl.maths.random import derive_seed
from distrl.policies import load_parameters, make_policy
from distrl.run_directory import write_json_atomic
from distrl.runtime.protocol import Runtime
from distrl.runtime.workers import CollectReport, UpdateReport, WorkSpec, rss_bytes
from distrl.telemetry import spans
from distrl.telemetry.console import ConsoleSink
from distrl.telemetry.metrics import EpisodeWindow, Metrics
from distrl.telemetry.sinks import Sinks
from distrl.telemetry.spans import SpanTotals, span, time_record

SUMMARY_SCHEMA = 1
# what the contract promises in every record; null where an algorithm has no such number
LEARNER_KEYS = (
    "policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction", "explained_variance", "value_mean",
)  # fmt: skip


@dataclass
class RunState:
    """What a run has counted so far; goes into every checkpoint and comes back on resume."""

    iteration: int = 0
    env_steps: int = 0
    episodes: int = 0
    wall_sec: float = 0.0
    window: EpisodeWindow = field(default_factory=EpisodeWindow)
    best_return: float = -math.inf
    reproducibility: str = "exact"
    dropped: int = 0
    resumes: int = 0
    warnings: list[str] = field(default_factory=list)
    spans: dict[str, SpanTotals] = field(default_factory=dict)

    def tree(self) -> dict[str, Any]:
        """State tree for the checkpoint."""
        plain = {name: value for name, value in vars(self).items() if name not in ("window", "spans")}
        plain["warnings"] = list(self.warnings)
        totals = {
            name: {"ns": dict(total.ns), "counts": dict(total.counts)} for name, total in self.spans.items()
        }
        return plain | {"window": self.window.state(), "spans": totals}

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> RunState:
        """The state that `tree` was made from."""
        totals = {
            name: SpanTotals(dict(total["ns"]), dict(total["counts"]))
            for name, total in tree["spans"].items()
        }
        return cls(**{**tree, "window": EpisodeWindow.from_state(tree["window"]), "spans": totals})


class Run:
    """The keeper that a loop talks to (`loops.Keeper`)."""

    def __init__(
        self,
        directory: Path,
        config: TrainConfig,
        spec: WorkSpec,
        runtime: Runtime,
        sinks: Sinks,
        console: ConsoleSink,
        interrupts: Interrupts,
        state: RunState,
        meta: dict[str, Any],
        started: float,
    ) -> None:
        self.directory = directory
        self.config = config
        self.spec = spec
        self.runtime = runtime
        self.sinks = sinks
        self.console = console
        self.interrupts = interrupts
        self.state = state
        self.meta = meta
        self.record: dict[str, Any] = {}
        self.told: set[str] = set()
        self.saved_at = state.iteration
        self.torn = False  # left in the middle of an iteration's record: the last checkpoint stands
        self.writer = CheckpointWriter(
            directory / "checkpoints",
            config.keep_checkpoints,
            config.keep_every,
            config.max_save_failures,
            self.warn,
        )
        self._eval_policy: Any = None
        self._eval_inference: Any = None
        self._started, self._iteration_started = started, time.monotonic()
        self._wall_before = state.wall_sec

    @property
    def iteration(self) -> int:
        """Iterations that are whole."""
        return self.state.iteration

    @property
    def progress(self) -> float:
        """Share of the run's env steps done."""
        return self.state.env_steps / self.config.total_steps

    def uninterrupted(self) -> AbstractContextManager[None]:
        """From an update to its record: no interrupt in between."""
        return self.interrupts.deferred()

    def warn(self, message: str) -> None:
        """Say it once, now and in the summary."""
        self._note(message)
        if message not in self.told:
            self.told.add(message)
            self.console.message(f"warning: {message}", "yellow")

    def _note(self, message: str) -> None:
        if message not in self.state.warnings:
            self.state.warnings.append(message)

    def keep(self, collected: list[CollectReport], updated: UpdateReport) -> None:
        """An iteration is whole."""
        state = self.state
        state.iteration += 1
        with span("log"):
            record = self._count(collected, updated)
        if (
            self.config.eval_every
            and state.iteration % self.config.eval_every == 0
            and self.config.eval_episodes
        ):
            try:
                record |= self._evaluate_and_keep_best()
            except Interrupted:
                self.torn = True
                raise
        with span("log"):
            record |= self._times(collected, updated)
            self.record = record
            self.sinks.write(record)
        if state.iteration % self.config.checkpoint_every == 0:
            self.checkpoint()

    def _count(self, collected: list[CollectReport], updated: UpdateReport) -> dict[str, Any]:
        """The deterministic part of the record: in group order, never in order of arrival."""
        state = self.state
        ended = sorted(
            (episode for report in collected for episode in report.episodes), key=lambda e: (e.step, e.env)
        )
        info = Metrics()
        for episode in ended:
            state.window.add(episode.return_, episode.length)
            for name, value in episode.info.items():
                info.add(f"info/{name}", value)
        steps = sum(report.env_steps for report in collected)
        if steps == 0:
            raise RunFailed(
                "an iteration had no valid row: every observation or reward was NaN or Inf; fix the env"
            )
        state.env_steps += steps
        state.episodes += len(ended)
        state.dropped = sum(report.dropped for report in collected)
        for report in collected:
            if report.reproducibility != "exact":
                state.reproducibility = report.reproducibility
            for message in report.warnings:
                self.warn(message)
        for message in self.runtime.take_warnings():
            self._note(message)
        learner = {name: updated.metrics.get(name) for name in LEARNER_KEYS}
        others = {name: value for name, value in updated.metrics.items() if name not in LEARNER_KEYS}
        if state.dropped:
            others["dropped_rows"] = state.dropped
        return {
            "iteration": state.iteration,
            "env_steps": state.env_steps,
            "episodes": len(ended),
            "episode_return_mean": state.window.return_mean,
            "episode_length_mean": state.window.length_mean,
            "policy_version": updated.version,
            "behaviour_version": min(report.version for report in collected),
            **learner,
            **others,
            **info.values(),
        }

    def _times(self, collected: list[CollectReport], updated: UpdateReport) -> dict[str, Any]:
        now = time.monotonic()
        self.state.wall_sec = self._wall_before + now - self._started
        elapsed, self._iteration_started = now - self._iteration_started, now
        taken = self.take_spans()
        steps = sum(report.env_steps for report in collected)
        return {
            "wall_sec": self.state.wall_sec,
            "steps_per_sec": steps / elapsed,
            **time_record({name: totals.seconds() for name, totals in taken.items()}),
            "system/driver_rss_bytes": rss_bytes(),
            "system/learner_rss_bytes": updated.rss_bytes,
            "system/worker_rss_bytes": max(report.rss_bytes for report in collected),
            "system/trajectory_bytes": sum(report.num_bytes for report in collected),
        }

    def take_spans(self) -> dict[str, SpanTotals]:
        """Each process's time since the last take, counted into the run's."""
        taken = self.runtime.take_spans() | {"driver": spans.current().take_totals()}
        for name, totals in taken.items():
            self.state.spans[name] = self.state.spans.get(name, SpanTotals()).merge(totals)
        return taken

    # checkpoints

    def checkpoint(self) -> None:
        """Save the last boundary, if that is not done already."""
        if self.saved_at == self.state.iteration or self.torn:
            return
        with span("checkpoint"):
            self.sinks.primary.sync()
            self.writer.save(self.state.iteration, self._trees(), self.meta)
            if self.writer.num_failures == 0:
                self.saved_at = self.state.iteration

    def _trees(self) -> dict[str, Any]:
        whole = self.runtime.state()
        trees = {"learner": whole["learner"], "groups": whole["groups"], "run": self.state.tree()}
        if whole["snapshots"]:  # with overlap alone
            trees["snapshots"] = whole["snapshots"]
        return trees

    # evaluation

    def evaluate(self) -> dict[str, Any]:
        """Greedy episodes with the policy as it stands, from seeds of their own; the training stream is not touched."""
        with span("evaluate"):
            if self._eval_policy is None:
                spec = self.spec
                self._eval_policy = make_policy(
                    spec.policy, spec.observation_space, spec.action_space, spec.seed
                )
                self._eval_inference = make_inference(self._eval_policy, spec.path("inference"))
            load_parameters(self._eval_policy, self.runtime.snapshot().arrays)
            self._eval_inference.load()
            seed = derive_seed(self.config.seed, "evaluation")
            with self.interrupts.at_once():
                result = evaluate_policy(
                    self._eval_policy,
                    self.spec.env,
                    self.config.eval_episodes,
                    seed,
                    inference=self._eval_inference,
                )
            return result.summary() | {"seed": seed}

    def _evaluate_and_keep_best(self) -> dict[str, Any]:
        result = self.evaluate()
        if result["return_mean"] > self.state.best_return:
            before, self.state.best_return = self.state.best_return, result["return_mean"]
            with span("checkpoint"):
                meta = self.meta | {"evaluation": result}
                try:
                    write_checkpoint(self.directory, self.state.iteration, self._trees(), meta, name="best")
                except CheckpointError as error:
                    self.state.best_return = before
                    self.warn(f"{error} (the best checkpoint so far stays)")
        return {f"eval/{name}": value for name, value in result.items() if name != "seed"}

    # the end

    def finish(
        self, exit_reason: str, evaluation: dict[str, Any] | None, described: dict[str, Any]
    ) -> dict[str, Any]:
        """Write summary.json, whole or not at all; returns it."""
        state = self.state
        for message in self.runtime.take_warnings():
            self._note(message)
        self.take_spans()
        state.wall_sec = self._wall_before + time.monotonic() - self._started
        summary = {
            "schema": SUMMARY_SCHEMA,
            "exit_reason": exit_reason,
            "iterations": state.iteration,
            "env_steps": state.env_steps,
            "episodes": state.episodes,
            "wall_sec": state.wall_sec,
            "resumes": state.resumes,
            "reproducibility": state.reproducibility,
            "last_metrics": _finite(self.record),
            "evaluation": evaluation,
            "best_return": state.best_return if math.isfinite(state.best_return) else None,
            "warnings": state.warnings,
            "spans": {name: totals.as_json() for name, totals in sorted(state.spans.items())},
            **described,
        }
        write_json_atomic(self.directory / "summary.json", summary)
        return summary


def _finite(record: dict[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in record.items()
    }
