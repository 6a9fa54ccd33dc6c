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
        runtime.submit(run.iteration, version=run.iteration)
        collected = runtime.collected()
        with run.uninterrupted():
            updated = runtime.update(run.progress)
            run.keep(collected, updated)


def train_overlapped(runtime: Runtime, run: Keeper, lag: int) -> None:
    """Collect fragment i + lag while learning from fragment i: fragment i always uses version max(i - lag, 0).

    Version i is the policy after i updates. Here lag is 1; v0 collects fragments 0 and 1:

    workers   |-collect 0, v0-|-collect 1, v0-|-collect 2, v1-|-collect 3, v2-| ...
    learner                   |--update 0--|  |--update 1--|  |--update 2--|
                                           v1              v2              v3

    A resumed run collects anew what was in flight, from the groups' states and the versions that the
    checkpoint holds. What is in flight at the end is thrown away.
    """
    for fragment in range(run.iteration, run.iteration + lag):
        runtime.submit(fragment, version=max(fragment - lag, 0))
    while run.progress < 1.0:
        runtime.submit(run.iteration + lag, version=run.iteration)
        collected = runtime.collected()
        with run.uninterrupted():
            updated = runtime.update(run.progress)
            run.keep(collected, updated)
