"""The critical path: the chain of segments, across processes, that an iteration's wall time consists of.

Walked backwards from the last boundary. Whoever works is on the path. The driver that waits hands over to the
process whose answer it got: the worker that was done last, or the learner. A worker or the learner that had
nothing to do before hands back to what set it going: the driver's call, or the end of the other kind's work
where the call was there before. What lies between an end and the beginning it caused is transfer.

    driver    |log|                            |s|                 |log|
    worker 1        |env |act |env | ...    |send|
    learner                                     |  update  |
    path       driver, transfer, worker 1 ...    transfer, learner, transfer, driver
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from dataclasses import dataclass

from distrl.autopsy.apart import split
from distrl.autopsy.categories import category, is_wait
from distrl.autopsy.timeline import DRIVER, LEARNER, Busy, Timeline
from distrl.telemetry.spans import TRANSIT, Event


@dataclass(frozen=True)
class Segment:
    """A piece of the path: who, doing what, from when to when (ns)."""

    process: str  # "" for transfer between two
    span: str
    begin: int
    end: int


def critical_path(timeline: Timeline) -> list[Segment]:
    """Segments in order of time, from `timeline.begin` to its end without a gap; `timeline` as recorded."""
    return walk_back(Walk(timeline))


def walk_back(walk: Walk) -> list[Segment]:
    """The path of a walk from the end of its timeline, where the driver is, to the beginning."""
    timeline = walk.timeline
    at, process, handed_over = timeline.end, DRIVER, 0
    while at > timeline.begin:
        before = at
        at, process = walk.step(at, process)
        handed_over = handed_over + 1 if at == before else 0
        assert handed_over <= len(timeline.processes), "the walk goes back in time"
    return _joined(walk.path[::-1])


class Walk:
    """Whose turn it was, one step back at a time, in a session of workers and a learner."""

    def __init__(self, timeline: Timeline) -> None:
        self.timeline = timeline
        self.begins = {name: [b for _, b, _ in events] for name, events in timeline.processes.items()}
        self.work = {name: Busy(events) for name, events in timeline.processes.items()}
        self.path: list[Segment] = []

    def _event(self, process: str, instant: int) -> Event:
        """What it did just before `instant`."""
        index = bisect.bisect_left(self.begins[process], instant) - 1
        return self.timeline.processes[process][max(index, 0)]

    def _add(self, process: str, span: str, begin: int, end: int) -> None:
        if end > begin:
            self.path.append(Segment(process, span, begin, end))

    def step(self, at: int, process: str) -> tuple[int, str]:
        """One segment back from `at` in `process`: where the walk goes on, and in whom."""
        name, begin, _ = self._event(process, at)
        if not is_wait(name):
            self._add(process, name, begin, at)
            return begin, process
        return self._waited(at, process, name, begin)

    def _waited(self, at: int, process: str, name: str, begin: int) -> tuple[int, str]:
        """`process` waited from `begin` to `at`: where the walk goes on, and in whom."""
        return self._answered(at, name, begin) if process == DRIVER else self._called(at, process, begin)

    def _answered(self, at: int, name: str, begin: int) -> tuple[int, str]:
        """The driver waited from `begin` to `at`: back to the end of the work that it waited for."""
        of_learner = name == "wait: learner"
        others = [p for p in self.work if p != DRIVER and (p == LEARNER) == of_learner]
        ends = {p: self.work[p].last_end(at) for p in others}
        who = max(ends, key=lambda p: ends[p], default=None)
        if (
            who is None or ends[who] <= begin
        ):  # its answer was there before the wait, or nobody's: a short one
            self._add("", TRANSIT, begin, at)
            return begin, DRIVER
        self._add("", TRANSIT, ends[who], at)
        return ends[who], who

    def _called(self, at: int, process: str, begin: int) -> tuple[int, str]:
        """`process` waited from `begin` to `at`: back to the last of what set it going."""
        causes = {p: self._last_act(p, at) for p in self.work if p != process and self._may_cause(p, process)}
        who = max(causes, key=lambda p: causes[p], default=None)
        if who is None or causes[who] <= begin:  # called while it was busy: the next task of its queue
            self._add("", TRANSIT, begin, at)
            return begin, process
        self._add("", TRANSIT, causes[who], at)
        return causes[who], who

    def _last_act(self, process: str, instant: int) -> int:
        """The end of what it did last before `instant`; its own doing at that instant counts up to there."""
        if self.work[process].at(instant - 1):
            return instant if process == DRIVER else -1
        return self.work[process].last_end(instant)

    @staticmethod
    def _may_cause(cause: str, effect: str) -> bool:
        return cause == DRIVER or (cause == LEARNER) != (effect == LEARNER)


def _joined(path: list[Segment]) -> list[Segment]:
    """Neighbours of one process and span as one."""
    joined: list[Segment] = []
    for segment in path:
        last = joined[-1] if joined else None
        if (
            last
            and (last.process, last.span) == (segment.process, segment.span)
            and last.end == segment.begin
        ):
            joined[-1] = Segment(last.process, last.span, last.begin, segment.end)
        else:
            joined.append(segment)
    return joined


def shares(path: list[Segment], apart: Mapping[str, float] | None = None) -> dict[tuple[str, str], float]:
    """(process, category) -> share of the path, largest first; they sum to 1. `apart` splits the fused loop."""
    total: dict[tuple[str, str], int] = {}
    for segment in path:
        key = (segment.process, category(segment.span))
        total[key] = total.get(key, 0) + segment.end - segment.begin
    whole = sum(total.values()) or 1
    found: dict[tuple[str, str], float] = {}
    for (process, kind), ns in total.items():
        for part, its in split({kind: ns / whole}, apart or {}).items():
            found[process, part] = found.get((process, part), 0.0) + its
    return dict(sorted(found.items(), key=lambda item: -item[1]))
