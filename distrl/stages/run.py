"""StageRun: keeps the run directory of a stage. Metrics, checkpoints, and the summary at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distrl.errors import RunFailed, cause
from distrl.interrupts import Interrupted, Interrupts
from distrl.rlhf.devices import Reproducibility
from distrl.run_keeper import CommonState, RunKeeper
from distrl.runtime.roles import RoleLost
from distrl.runtime.workers import rss_bytes
from distrl.stages.config import StageConfig
from distrl.telemetry import spans
from distrl.telemetry.console import ConsoleSink
from distrl.telemetry.sinks import Sinks
from distrl.telemetry.spans import SpanTotals, span, time_record


@dataclass
class StageState(CommonState):
    """What a run has counted so far; `env_steps` are tokens that were learned from."""

    beta: float = 0.0  # of the KL, where it adapts
    reproducibility: Reproducibility = "exact"  # the worst of all sessions so far


class StageRun(RunKeeper[StageState]):
    """What a stage tells of its iterations. `trees_of` gives what a checkpoint holds beside the counts."""

    def __init__(
        self,
        directory: Path,
        *,
        config: StageConfig,
        total: int,
        open_sinks: Callable[[int | None], Sinks],
        console: ConsoleSink,
        interrupts: Interrupts,
        state: StageState,
        meta: dict[str, Any],
        trees_of: Callable[[], dict[str, Any]],
        resumed: bool,
        started: float,
    ) -> None:
        sinks = open_sinks(state.iteration if resumed else None)
        super().__init__(
            directory,
            rules=config,
            sinks=sinks,
            console=console,
            interrupts=interrupts,
            state=state,
            meta=meta,
            started=started,
        )
        self.config, self.total = config, total
        self.open_sinks, self.trees_of = open_sinks, trees_of
        self.restarts = 0
        self.unevaluated: RunFailed | None = (
            None  # why the last evaluation failed: told once the model is saved
        )
        self.seen: Callable[[int, dict[str, SpanTotals]], None] = lambda iteration, taken: None

    @property
    def progress(self) -> float:
        """Share of the run's iterations done."""
        return self.state.iteration / self.total

    def trees(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {**self.trees_of(), "run": self.state.tree()}

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
        except RoleLost:  # all of it is done again
            raise
        except Exception as error:  # the iteration is whole without it: kept, then told
            self.unevaluated = RunFailed(
                f"the evaluation of iteration {state.iteration} failed: {cause(error)}"
            )
            self.unevaluated.__cause__ = error
        with span("log"):
            self.record = record | self._times(steps, taken)
            self.sinks.write(self.record)
        if state.iteration % self.config.checkpoint_every == 0 or self.unevaluated is not None:
            self.checkpoint()
        if self.unevaluated is not None and state.iteration < self.total:
            raise self.unevaluated

    def _times(self, steps: int, taken: Mapping[str, SpanTotals]) -> dict[str, Any]:
        clock = self.time_iteration(steps)
        every = self.count_spans(taken)
        self.seen(self.state.iteration, every)
        return {
            **clock,
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

    def rewind(self, state: StageState) -> None:
        """Goes back to a checkpoint's state: the records since are cut off, the time that they took stays counted."""
        state.warnings = [*dict.fromkeys([*state.warnings, *self.state.warnings])]
        state.spans = self.state.spans
        state.reproducibility = self.state.reproducibility
        self.sinks.close()
        self.state = state
        self.saved_at = state.iteration
        self.sinks = self.open_sinks(state.iteration)

    def finish(self, exit_reason: str, described: Mapping[str, Any]) -> dict[str, Any]:
        """Write summary.json, whole or not at all; returns it."""
        self.count_spans({})
        told = {"restarts": self.restarts, "reproducibility": self.state.reproducibility}
        return self.write_summary(exit_reason, told | {**described})
