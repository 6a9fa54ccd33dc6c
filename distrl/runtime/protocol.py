"""What a loop asks of a runtime. Two keep it, under one contract test: `LocalRuntime` and `RayRuntime`.

         collect(i)                         update(progress)
driver ---------------> rollout workers --------------------> learner
  |    <- reports            |                  <- report        |
  |                          '-- trajectories, by reference -----'
  '-- holds references, group states and reports; never a batch
"""

from __future__ import annotations

from typing import Any, Protocol

from distrl.learner import Snapshot
from distrl.runtime.workers import CollectReport, UpdateReport
from distrl.telemetry.spans import SpanTotals


class Runtime(Protocol):
    """Runs collection and learning somewhere. All results are in group order."""

    def collect(self, iteration: int) -> list[CollectReport]:
        """Every group's fragment of `iteration`, with the policy as published last; waits until all are whole."""
        ...

    def update(self, progress: float) -> UpdateReport:
        """Learn from the fragments collected last, and publish the new policy."""
        ...

    def snapshot(self) -> Snapshot:
        """The policy as published last."""
        ...

    def state(self) -> dict[str, Any]:
        """State tree at the last boundary: {"learner": ..., "groups": [...]}."""
        ...

    def take_spans(self) -> dict[str, SpanTotals]:
        """Seconds by name of the processes apart from the driver, since the last take."""
        ...

    def take_warnings(self) -> list[str]:
        """What a person should hear, since the last take."""
        ...

    def close(self) -> None:
        """Stop every process and env of the run."""
        ...
