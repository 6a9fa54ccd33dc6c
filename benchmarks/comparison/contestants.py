"""What a comparison is made of: contestants, targets, and the sections of the table."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from comparison.limit import Work

PEERS = Path(__file__).parents[1] / "peers"


@dataclass(frozen=True)
class Contestant:
    """A runner of benchmarks/peers with its arguments. `of` is the environment that runs it; None is ours.

    Contestants of one section that share a `name` are candidates: settings of one contestant, of which the
    scouting takes the fastest.
    """

    name: str
    of: str | None
    arguments: tuple[str, ...]
    runner: str = "distrl"

    @property
    def python(self) -> Path:
        return Path(sys.executable) if self.of is None else PEERS / ".envs" / self.of / "bin" / "python"

    @property
    def command(self) -> list[str]:
        return [str(self.python), str(PEERS / f"{self.runner}_speed.py"), *self.arguments]

    @property
    def overhead_sec(self) -> float:
        """About what starting and ending it takes, for the plan of a run with a budget."""
        return {"samplefactory": 30.0, "rllib": 20.0}.get(self.runner, 8.0)


@dataclass(frozen=True)
class Target:
    """The best of `ours` must be at least `times` as fast as the best of `theirs`."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    times: float


@dataclass(frozen=True)
class LimitTarget:
    """`ours` must reach this share of what the machine's matrix rate would allow."""

    ours: str
    share: float


@dataclass(frozen=True)
class Section:
    """One row of the table: contestants with the same work, and what is to be shown.

    `metric` is `steps_per_sec`, where more is better, or `seconds`, where less is (a race).
    """

    name: str
    title: str
    work: Work
    contestants: tuple[Contestant, ...]
    targets: tuple[Target, ...]
    limits: tuple[LimitTarget, ...] = ()
    metric: str = "steps_per_sec"
    repeats: int | None = None  # where not what --repeats says
    note: str = ""
    names: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(dict.fromkeys(one.name for one in self.contestants)))

    def candidates(self, name: str) -> list[Contestant]:
        """The settings that a contestant may be measured with."""
        return [one for one in self.contestants if one.name == name]
