"""Every process of a session on one clock, and each wait named by whom it was for.

    driver    |log|--wait: workers-------------|s|--wait: learner--|log|
    worker 0      |=work======|......................................|====
    worker 1        |=work==================|........................|====
    learner   ...............................|=====update=====|........

The dots are what a worker or the learner records as waiting. Seen from outside, each of their instants has
one reason, looked for in this order:

    the driver does something of its own                     -> "wait: driver"
    (a worker) the learner learns                            -> "wait: learner"
    another worker still collects: the last to be done       -> "wait: worker k"
    nobody works: a call, an answer or data is on its way    -> "transfer"
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from dataclasses import dataclass

from distrl.autopsy.categories import category, is_wait
from distrl.telemetry.spans import TRANSIT, Event

DRIVER, LEARNER = "driver", "learner"
_BASE_WAIT = {LEARNER: "wait: workers"}


@dataclass(frozen=True)
class Timeline:
    """Events of each process that follow one another without a gap from `begin` to `end`, in ns of one clock."""

    processes: dict[str, list[Event]]
    begin: int
    end: int
    boundaries: tuple[int, ...] = ()  # where iterations end; the last is `end`

    @property
    def wall_ns(self) -> int:
        return self.end - self.begin

    @property
    def workers(self) -> list[str]:
        """Who collects beside the driver: `worker 0`, `worker 1`, ..., or a rollout thread; empty in-process."""
        found = [name for name in self.processes if name not in (DRIVER, LEARNER)]
        return sorted(found, key=lambda name: (len(name), name))

    def totals(self, process: str) -> dict[str, int]:
        """ns by span name; they sum to `wall_ns`."""
        total: dict[str, int] = {}
        for name, begin, end in self.processes[process]:
            total[name] = total.get(name, 0) + end - begin
        return total

    def by_category(self, process: str) -> dict[str, int]:
        """ns by category, a wait by whom it was for; they sum to `wall_ns`."""
        total: dict[str, int] = {}
        for name, ns in self.totals(process).items():
            key = name if is_wait(name) else category(name)
            total[key] = total.get(key, 0) + ns
        return total


def build(events: Mapping[str, list[Event]], boundaries: list[int]) -> Timeline:
    """The timeline of what happened from the first of `boundaries` to the last, an iteration between any two.

    A process that had not yet told of its last moments was waiting. Clocks of other machines are brought to the
    driver's (`clock_offset`).
    """
    begin, end = boundaries[0], boundaries[-1]
    processes = {}
    for name, told in events.items():
        offset = 0 if name == DRIVER else clock_offset(told, events[DRIVER], _awaits(name))
        shifted = [(span, b + offset, e + offset) for span, b, e in told]
        base = "other" if name == DRIVER else _BASE_WAIT.get(name, "wait: learner")
        processes[name] = clip(shifted, begin, end, base)
    return Timeline(processes, begin, end, tuple(boundaries[1:]))


def _awaits(process: str) -> str:
    if process == LEARNER:
        return "wait: learner"
    return "wait: workers" if process.startswith("worker") else f"wait: {process}"


def clip(events: list[Event], begin: int, end: int, base: str) -> list[Event]:
    """Those within [begin, end], cut at its edges, gaps filled with `base`."""
    clipped: list[Event] = []
    at = begin
    for name, b, e in sorted(events, key=lambda event: event[1]):
        b, e = max(b, at), min(e, end)
        if e <= b:
            continue
        if b > at:
            clipped.append((base, at, b))
        clipped.append((name, b, e))
        at = e
    if at < end:
        clipped.append((base, at, end))
    return clipped


def clock_offset(events: list[Event], driver: list[Event], awaited_as: str, slack_ns: int = 1_000_000) -> int:
    """What to add to a process's clock so that it agrees with the driver's: 0 on one machine.

    Its k-th stretch of work lies within the driver's k-th wait for it, so that each pair of them bounds the offset
    from both sides, as in NTP; the middle of what all allow is taken. Where 0 is allowed (within `slack_ns`), the
    clocks are one.
    """
    work = busy(events)
    waits = _merge([event for event in driver if event[0] == awaited_as])
    pairs = list(zip(reversed(work), reversed(waits), strict=False))
    if not pairs:
        return 0
    low = max(wait[0] - done[0] for done, wait in pairs)
    high = min(wait[1] - done[1] for done, wait in pairs)
    if low - slack_ns <= 0 <= high + slack_ns:
        return 0
    overlap = any(b < wait[1] and e > wait[0] for (b, e), wait in pairs)
    return 0 if overlap else (low + high) // 2


def busy(events: list[Event]) -> list[tuple[int, int]]:
    """Stretches without a wait, joined where they touch."""
    return _merge([event for event in events if not is_wait(event[0]) and event[0] != TRANSIT])


def _merge(events: list[Event], gap_ns: int = 0) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for _, begin, end in events:
        if merged and begin - merged[-1][1] <= gap_ns:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((begin, end))
    return merged


class Busy:
    """The stretches of work of one process, to be asked about an instant."""

    def __init__(self, events: list[Event]) -> None:
        self.stretches = busy(events)
        self.begins = [begin for begin, _ in self.stretches]
        self.ends = [end for _, end in self.stretches]

    def at(self, instant: int) -> bool:
        """Whether it works then."""
        index = bisect.bisect_right(self.begins, instant) - 1
        return index >= 0 and instant < self.ends[index]

    def next_begin(self, instant: int, default: int) -> int:
        """When it next begins to work."""
        index = bisect.bisect_left(self.begins, instant)
        return self.begins[index] if index < len(self.begins) else default

    def last_end(self, instant: int) -> int:
        """When it last stopped working, no later than `instant`; -1 for never."""
        index = bisect.bisect_right(self.ends, instant) - 1
        return self.ends[index] if index >= 0 else -1

    def cuts(self, begin: int, end: int) -> list[int]:
        """The edges of its stretches strictly between two instants."""
        found = []
        for edges in (self.begins, self.ends):
            found += edges[bisect.bisect_right(edges, begin) : bisect.bisect_left(edges, end)]
        return found


def attribute_waits(timeline: Timeline) -> Timeline:
    """The same with every wait of workers and learner cut and named by whom it was for."""
    work = {name: Busy(events) for name, events in timeline.processes.items()}
    processes = {}
    for name, events in timeline.processes.items():
        if name == DRIVER:
            processes[name] = events
            continue
        named: list[Event] = []
        for event in events:
            if is_wait(event[0]):
                named += _cut(name, event, work)
            else:
                named.append(event)
        processes[name] = named
    return Timeline(processes, timeline.begin, timeline.end, timeline.boundaries)


def _cut(process: str, event: Event, work: Mapping[str, Busy]) -> list[Event]:
    _, begin, end = event
    edges = {begin, end}
    for name, other in work.items():
        if name != process:
            edges.update(other.cuts(begin, end))
    pieces: list[Event] = []
    ordered = sorted(edges)
    for b, e in zip(ordered, ordered[1:], strict=False):
        reason = _reason(process, b, end, work)
        if pieces and pieces[-1][0] == reason:
            pieces[-1] = (reason, pieces[-1][1], e)
        else:
            pieces.append((reason, b, e))
    return pieces


def _reason(process: str, instant: int, until: int, work: Mapping[str, Busy]) -> str:
    if work[DRIVER].at(instant):
        return "wait: driver" if LEARNER in work else "wait: learner"  # which the driver is, in-process
    if process != LEARNER and LEARNER in work and work[LEARNER].at(instant):
        return "wait: learner"
    horizon = work[LEARNER].next_begin(instant, until) if process != LEARNER and LEARNER in work else until
    last, who = -1, ""
    collecting = False
    for name, other in work.items():
        if name in (DRIVER, LEARNER, process):
            continue
        collecting = collecting or other.at(instant)
        done = other.last_end(horizon)
        if done > instant and done > last:
            last, who = done, name
    return f"wait: {who}" if collecting and who else TRANSIT
