"""The training loops, side by side, each a screen."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

from distrl.rlhf.roles import LearnReport
from distrl.runtime.protocol import Runtime
from distrl.runtime.roles import Roles
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


class ResponseKeeper(Protocol):
    """What a loop over responses tells, and asks: distrl/stages/ppo.py keeps the run behind it."""

    @property
    def iteration(self) -> int:
        """Iterations that are whole."""
        ...

    @property
    def progress(self) -> float:
        """Share of the run's iterations done, 0 to 1; 1 ends the loop."""
        ...

    @property
    def beta(self) -> float:
        """Weight of the KL to the reference."""
        ...

    def uninterrupted(self) -> AbstractContextManager[None]:
        """Ctrl-C waits inside: a boundary is whole or not there."""
        ...

    def keep(self, report: LearnReport) -> None:
        """An iteration is whole: metrics, the next beta, and what is due of checkpoints and evaluations."""
        ...


class ResponsesAhead(ResponseKeeper, Protocol):
    """Also knows the responses that were written before the last update: a checkpoint holds them."""

    ahead: list[Any] | None


def train_responses(roles: Roles, run: ResponseKeeper) -> None:
    """Write, ask for opinions, learn, publish, again: lag 0.

    generator  |write i|                                |write i+1|
    others             |opinions of i|
    actor, critic                    |learn from i| -> v
    """
    roles.publish()
    while run.progress < 1.0:
        written = roles.write(run.iteration)
        said = roles.opinions(written)
        with run.uninterrupted():
            report = roles.learn(run.progress, run.beta, written, said)
            roles.publish()
            run.keep(report)


def train_responses_overlapped(roles: Roles, run: ResponsesAhead) -> None:
    """Write responses i + 1 while learning from i: responses i are always by version max(i - 1, 0).

    generator  |write 0, v0|write 1, v0     |        |write 2, v1     |        |write 3, v2 ...
    others                 |opinions of 0|           |opinions of 1|
    actor, critic                        |learn 0| v1              |learn 1| v2

    What is written ahead is the run's to keep: a resumed one goes on with the very same. What is ahead at the end is
    thrown away.
    """
    roles.publish()
    if run.ahead is None:
        run.ahead = roles.write(run.iteration)
    while run.progress < 1.0:
        written, ahead = run.ahead, roles.write(run.iteration + 1)
        said = roles.opinions(written)
        with run.uninterrupted():
            report = roles.learn(run.progress, run.beta, written, said)
            run.ahead = ahead
            roles.publish()
            run.keep(report)
