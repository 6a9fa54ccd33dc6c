"""What a loop asks of a runtime. Two keep it, under one contract test: `LocalRuntime` and `RayRuntime`.

        submit(i, version) ... collected()               update(progress)
driver ----------------------------------> rollout workers ------------> learner
  |    <- reports                             |                   <- report |
  |                                           '-- trajectories, by reference'
  '-- holds references, group states, snapshots and reports; never a batch

Fragments are submitted, awaited and learned from in one order: 0, 1, 2, ... A boundary is the moment after
an update; fragments in flight then are no part of its state, because they can be collected again from it.
"""

from __future__ import annotations

from typing import Any, Protocol

from distrl.learner import Snapshot
from distrl.runtime.workers import CollectReport, UpdateReport
from distrl.telemetry.spans import SpanTotals


class Runtime(Protocol):
    """Runs collection and learning somewhere. All results are in group order."""

    def submit(self, fragment: int, version: int) -> None:
        """Have every group's `fragment` collected with that version of the policy; does not wait for it.

        Versions at hand are the one published last and the `overlap` before it.
        """
        ...

    def collected(self) -> list[CollectReport]:
        """Wait until the oldest fragment in flight is whole."""
        ...

    def update(self, progress: float) -> UpdateReport:
        """Learn from the oldest fragment, which is whole, and publish the next version of the policy."""
        ...

    def snapshot(self) -> Snapshot:
        """The policy as published last."""
        ...

    def state(self) -> dict[str, Any]:
        """State tree at the last boundary: {"learner": ..., "groups": [...], "snapshots": {version: arrays}}.

        Groups stand after the fragment learned from last; snapshots are the older ones that fragments in
        flight, collected again, will ask for: at most `overlap`.
        """
        ...

    def take_spans(self) -> dict[str, SpanTotals]:
        """Seconds by name of the processes apart from the driver, since the last take."""
        ...

    def take_warnings(self) -> list[str]:
        """What happened since the last take: a person was told of it at once, the summary keeps it."""
        ...

    def close_envs(self) -> None:
        """Close the envs: nothing is collected any more. Snapshots and the state at the last boundary stay."""
        ...

    def close(self) -> None:
        """Stop every process and env of the run."""
        ...
