"""A run's last iterations with the moments of every span: what `--trace N` keeps, and writes as a Chrome trace."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from distrl.autopsy.path import Segment
from distrl.autopsy.roles import SETUP, Link, build_roles, chain, role_kind, role_path
from distrl.autopsy.timeline import DRIVER, Timeline
from distrl.autopsy.trace import write_trace
from distrl.telemetry.spans import Event, SpanTotals, process_order

TRACE_FILE = "trace.json"
CHAIN = "longest chain"
CLOCK_SLACK_NS = 1_000_000  # clocks that may agree within this are one


@dataclass
class Iteration:
    """Events of one iteration, from one take of the driver's spans to the next."""

    number: int
    events: dict[str, list[Event]]
    asked: int  # ns of the driver's clock, when workers were asked for their spans
    answered: int
    taken: dict[str, int]  # ns of each worker's own clock, when it took them


@dataclass(frozen=True)
class Traced:
    """What was recorded, on one clock."""

    timeline: Timeline
    path: list[Segment]
    first: int  # iteration
    last: int

    @property
    def order(self) -> list[str]:
        """Processes as they are shown."""
        return sorted(self.timeline.processes, key=process_order)

    def chain(self) -> list[Link]:
        """The longest chain, all its iterations pooled."""
        return chain(self.timeline, self.path)

    def last_iteration(self) -> tuple[int, int]:
        """Begin and end of it, ns."""
        edges = [self.timeline.begin, *self.timeline.boundaries]
        return edges[-2], edges[-1]


@dataclass
class Recording:
    """Keeps the last `limit` iterations."""

    limit: int
    iterations: deque[Iteration] = field(init=False)

    def __post_init__(self) -> None:
        self.iterations = deque(maxlen=self.limit)

    def see(self, number: int, taken: Mapping[str, SpanTotals], asked: int, answered: int) -> None:
        """The end of iteration `number`: every process's spans since the one before, the driver's taken last."""
        if self.iterations and number != self.iterations[-1].number + 1:
            self.iterations.clear()  # a worker was lost, and iterations are done again
        events = {name: list(totals.events) for name, totals in taken.items()}
        at = {name: its[-1][2] for name, its in events.items() if its}
        self.iterations.append(Iteration(number, events, asked, answered, at))

    def end(self, taken: Mapping[str, SpanTotals]) -> None:
        """What workers did after they were last asked."""
        for name, totals in taken.items():
            if self.iterations and name in self.iterations[-1].events and name != DRIVER:
                self.iterations[-1].events[name] += totals.events

    def traced(self) -> Traced | None:
        """All that is kept as one timeline; None where nothing is."""
        if not self.iterations:
            return None
        driver = [one.events[DRIVER] for one in self.iterations]
        first = driver[0]
        # an iteration does not begin before what it runs on is there
        begin = max([first[0][1], *(end for name, _, end in first if name in SETUP)])
        boundaries = [begin, *(events[-1][2] for events in driver)]
        events: dict[str, list[Event]] = {}
        for one in self.iterations:
            for name, its in one.events.items():
                events.setdefault(name, []).extend(its)
        offsets = {name: self._offset(name) for name in events if name != DRIVER}
        timeline = build_roles(events, boundaries, offsets)
        return Traced(timeline, role_path(timeline), self.iterations[0].number, self.iterations[-1].number)

    def _offset(self, process: str) -> int:
        """What to add to a worker's clock, ns: it took its spans after it was asked and before it had answered.

        Each iteration bounds it from both sides, as in NTP; the middle of what all allow, 0 where that is allowed.
        """
        pairs = [
            (one.asked, one.answered, one.taken[process]) for one in self.iterations if process in one.taken
        ]
        if not pairs:
            return 0
        low = max(asked - taken for asked, _, taken in pairs)
        high = min(answered - taken for _, answered, taken in pairs)
        return 0 if low - CLOCK_SLACK_NS <= 0 <= high + CLOCK_SLACK_NS else (low + high) // 2


def write_role_trace(directory: Path, traced: Traced) -> Path:
    """`trace.json` in the run directory. OSError from the disk."""
    path = directory / TRACE_FILE
    write_trace(
        path,
        traced.timeline,
        traced.path,
        order=traced.order,
        kind=role_kind,
        first_iteration=traced.first,
        path_name=CHAIN,
    )
    return path
