"""The training loops, side by side, each a screen."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from distrl.runtime.protocol import Runtime
from distrl.runtime.workers import CollectReport, UpdateReport


class Keeper(Protocol):
    """What a loop tells, and asks: distrl/run.py keeps the run directory behind it."""

    @property
    def iteration(self) -> int:
        """Iterations that are whole."""
        ...

    @property
    def progress(self) -> float:
        """Share of the run's env steps done, 0 to 1; 1 ends the loop."""
        ...

    def uninterrupted(self) -> AbstractContextManager[None]:
        """Ctrl-C waits inside: a boundary is whole or not there."""
        ...

    def keep(self, collected: list[CollectReport], updated: UpdateReport) -> None:
        """An iteration is whole: metrics, and what is due of checkpoints and evaluations."""
        ...


def train_synchronous(runtime: Runtime, run: Keeper) -> None:
    """Collect with the newest policy, learn, publish, again: lag 0.

    workers   |--collect i--|              |--collect i+1--|
    learner                 |--update i--|                 |--update i+1--| ...
    """
    while run.progress < 1.0:
        collected = runtime.collect(run.iteration)
        with run.uninterrupted():
            updated = runtime.update(run.progress)
            run.keep(collected, updated)
