"""A short session of `distrl train` as it is, watched from inside.

Warm-up iterations come first and count nowhere: imports, compiled kernels, first resets. Then whole iterations until
the measured time is over. The session writes metrics and holds envs as a run does; evaluations and the checkpoints in
between are left out, and one checkpoint is timed at the end.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from distrl.autopsy.timeline import DRIVER, Timeline, attribute_waits, build
from distrl.config import TrainConfig
from distrl.errors import RunFailed
from distrl.resolve import Resolved
from distrl.run import Run
from distrl.runtime.workers import CollectReport, UpdateReport
from distrl.session import run_training
from distrl.telemetry.spans import Event, SpanTotals, span

ENDLESS_STEPS = 10**15  # --total-steps of a session: schedules stand still, the watch ends it
MAX_EVENTS = 400_000  # of all processes; enough for a minute of 8 workers at 5 us a span


@dataclass(frozen=True)
class Effort:
    """How long a session measures: at least `iterations` and `seconds`, but no new iteration after `limit_sec`."""

    seconds: float = 5.0
    iterations: int = 3
    warmup_iterations: int = 2

    @property
    def limit_sec(self) -> float:
        return 4.0 * self.seconds


@dataclass
class Watch:
    """What is seen of a session, iteration by iteration; filled by `MeasuredRun`."""

    effort: Effort
    warmed_up: int = 0
    boundaries: list[int] = field(default_factory=list)  # ns; the first is the end of the warm-up
    env_steps: list[int] = field(default_factory=list)
    num_bytes: list[int] = field(default_factory=list)
    events: dict[str, list[Event]] = field(default_factory=lambda: defaultdict(list))
    cpu_ns: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    counts: dict[str, dict[str, int]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(int)))
    groups: dict[int, dict[str, int]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(int)))
    fragment_ns: dict[int, list[int]] = field(
        default_factory=lambda: defaultdict(list)
    )  # group -> iterations
    num_events: int = 0

    @property
    def is_over(self) -> bool:
        done = len(self.boundaries) - 1
        if done < 1:
            return False
        elapsed_sec = (self.boundaries[-1] - self.boundaries[0]) / 1e9
        enough = done >= self.effort.iterations and elapsed_sec >= self.effort.seconds
        return enough or elapsed_sec >= self.effort.limit_sec or self.num_events > MAX_EVENTS

    def see(self, collected: list[CollectReport], taken: dict[str, SpanTotals]) -> None:
        """The end of an iteration."""
        now = time.perf_counter_ns()
        if self.warmed_up < self.effort.warmup_iterations:
            self.warmed_up += 1
            if self.warmed_up == self.effort.warmup_iterations:
                self.boundaries.append(now)
            return
        self.boundaries.append(now)
        self.env_steps.append(sum(report.env_steps for report in collected))
        self.num_bytes.append(sum(report.num_bytes for report in collected))
        for name, totals in taken.items():
            self.events[name] += totals.events
            self.num_events += len(totals.events)
            self.cpu_ns[name] += totals.cpu_ns
            for entered, count in totals.counts.items():
                self.counts[name][entered] += count
        for report in collected:
            for entered, ns in report.spans.ns.items():
                self.groups[report.group][entered] += ns
            collecting = [ns for entered, ns in report.spans.ns.items() if entered.startswith("rollout")]
            self.fragment_ns[report.group].append(sum(collecting))


class MeasuredRun(Run):
    """A run that ends when its watch says so."""

    def __init__(self, directory: Path, *, watch: Watch, **given: Any) -> None:
        super().__init__(directory, **given)
        self.watch = watch
        self._taken: dict[str, SpanTotals] = {}

    @property
    def progress(self) -> float:
        """1 once enough was seen."""
        return 1.0 if self.watch.is_over else super().progress

    def take_spans(self) -> dict[str, SpanTotals]:
        """As a run's, the events kept apart."""
        taken = super().take_spans()
        self._taken = taken
        for totals in self.state.spans.values():
            totals.events = []
        return taken

    def keep(self, collected: list[CollectReport], updated: UpdateReport) -> None:
        """As a run's, and seen."""
        super().keep(collected, updated)
        with span("watch"):
            self.watch.see(collected, self._taken)


@dataclass(frozen=True)
class Measured:
    """A session in numbers. Everything of an iteration is a mean over those measured."""

    config: TrainConfig
    recorded: Timeline  # waits as the processes name them
    timeline: Timeline  # waits by whom they were for
    iterations: int
    iteration_sec: float
    env_steps: float
    num_bytes: float
    groups: dict[int, dict[str, float]]  # with workers: group -> span -> seconds
    jitter_sec: float  # deviation of a group's fragment between iterations; the groups' mean
    counts: dict[str, dict[str, float]]  # process -> span -> entries
    cpu_sec: float  # processor seconds of all processes, every thread
    checkpoint_sec: float
    spread: float  # between iterations: (longest - shortest) / mean

    @property
    def rate(self) -> float:
        """Env steps a second that training consumed: collection, transfer and update together."""
        return self.env_steps / self.iteration_sec

    def seconds(self, process: str) -> dict[str, float]:
        """Of an iteration, by span, waits by whom they were for."""
        return {name: ns / 1e9 / self.iterations for name, ns in self.timeline.totals(process).items()}


def measure(
    config: TrainConfig, sources: Resolved | None, effort: Effort, run_dir: Path | None = None
) -> Measured:
    """Runs a session with `config` and returns what was seen; its run directory is removed unless named.

    Raises BadInput and RunFailed as `distrl train` does.
    """
    watch = Watch(effort)
    with tempfile.TemporaryDirectory(prefix="distrl-profile-") as temporary:
        directory = run_dir if run_dir is not None else Path(temporary) / "run"
        quiet = config.model_copy(
            update={
                "run_dir": str(directory), "total_steps": ENDLESS_STEPS, "eval_every": 0, "eval_episodes": 0,
                "checkpoint_every": ENDLESS_STEPS,
            }
        )  # fmt: skip
        resolved = Resolved(quiet, sources.sources if sources is not None else {})
        outcome = run_training(
            resolved, quiet=True, run_type=partial(MeasuredRun, watch=watch), record_events=True
        )
    if outcome.exit_status != 0:
        raise KeyboardInterrupt
    if len(watch.boundaries) < 2:
        raise RunFailed("the session ended before an iteration was measured")
    checkpoint_sec = outcome.summary["spans"][DRIVER]["spans"].get("checkpoint", 0.0)
    return summarise(config, watch, checkpoint_sec)


def summarise(config: TrainConfig, watch: Watch, checkpoint_sec: float = 0.0) -> Measured:
    """What a watch has seen, as means over its iterations."""
    recorded = build(watch.events, watch.boundaries)
    n = len(watch.boundaries) - 1
    own_processes = [
        name for name in watch.cpu_ns if "thread" not in name
    ]  # a thread counts with its process
    lengths = [b - a for a, b in zip(watch.boundaries, watch.boundaries[1:], strict=False)]
    return Measured(
        config=config,
        recorded=recorded,
        timeline=attribute_waits(recorded),
        iterations=n,
        iteration_sec=recorded.wall_ns / 1e9 / n,
        env_steps=sum(watch.env_steps) / n,
        num_bytes=sum(watch.num_bytes) / n,
        groups={
            group: {span: ns / 1e9 / n for span, ns in spans.items()} for group, spans in watch.groups.items()
        },
        jitter_sec=_mean([statistics.pstdev(ns) / 1e9 for ns in watch.fragment_ns.values()]),
        counts={
            name: {span: count / n for span, count in spans.items()} for name, spans in watch.counts.items()
        },
        cpu_sec=sum(watch.cpu_ns[name] for name in own_processes) / 1e9 / n,
        checkpoint_sec=checkpoint_sec,
        spread=(max(lengths) - min(lengths)) / (sum(lengths) / n),
    )


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
