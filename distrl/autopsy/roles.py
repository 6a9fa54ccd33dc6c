"""RLHF's roles on one clock, and the longest chain of an iteration: which work its wall time consists of.

    driver     |s|--wait: generator--|--wait: reward--|--wait: critic-----------|log|
    generator    |=====generate=====|..................................................
    reference                         |reference|......................................
    reward                            |====reward====|.................................
    critic                            |values|........|==advantage, update==|..........
    chain       s generate            reward           critic: update        log

A process names each of its waits by whom it was for. So the walk back from the end needs no guess: whoever works is on
the chain, whoever waits hands over to the one waited for, where that one stopped working. What lies between an end and the
beginning that it caused is transfer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from distrl.autopsy.categories import KEEPING, OTHER, TRANSFER, WAITING, is_wait
from distrl.autopsy.path import Segment, Walk, walk_back
from distrl.autopsy.timeline import DRIVER, Timeline, clip
from distrl.telemetry.spans import TRANSIT, Event

WEIGHTS = "weight sync"
ADVANTAGE = "advantage, batch"
# span -> what it is in the words of RLHF; updates and the learner's own spans go by `role_kind`
_KINDS = {
    **{name: name for name in ("generate", "reward", "reference")},
    "critic: values": "critic's values",
    "actor: log-probs": "actor's log-probs",
    "advantage": ADVANTAGE,
    "actor: update": "actor update",
    "critic: update": "critic update",
    "actor and critic: update": "actor and critic update",
    **dict.fromkeys(("publish", "snapshot", "load weights", "digest"), WEIGHTS),
    **dict.fromkeys((TRANSIT, "send", "submit"), TRANSFER),
    **dict.fromkeys(("log", "checkpoint", "evaluate"), KEEPING),
}
# in the order of the displays
KINDS = (*dict.fromkeys(_KINDS.values()), WAITING, OTHER)
# what comes before the first iteration, or instead of one
SETUP = ("start", "wait: start", "restart", "save model")
# the order of an iteration, where no moments are known
_SEQUENCE = (
    "generate", "reference", "reward", "critic: values", "actor: log-probs", ADVANTAGE, "critic: update",
    "actor: update", "actor and critic: update", "digest", "publish", "snapshot", "load weights",
)  # fmt: skip


def role_kind(span: str) -> str:
    """`actor: update` -> `actor update`."""
    if is_wait(span):
        return WAITING
    return _KINDS.get(span, ADVANTAGE if span.startswith("learn") else OTHER)


def host_of(process: str) -> str:
    """`reward 1` -> `reward`."""
    host, _, number = process.rpartition(" ")
    return host if number.isdecimal() else process


def build_roles(
    events: Mapping[str, Sequence[Event]], boundaries: Sequence[int], offsets: Mapping[str, int] | None = None
) -> Timeline:
    """The timeline from the first of `boundaries` to the last, an iteration between any two.

    `offsets` (ns) bring clocks of other machines to the driver's. A worker that has not told of its last moments waited.
    """
    begin, end = boundaries[0], boundaries[-1]
    processes = {}
    for name, told in events.items():
        by = (offsets or {}).get(name, 0)
        shifted = [(span, b + by, e + by) for span, b, e in _whole_updates(told)]
        processes[name] = clip(shifted, begin, end, OTHER if name == DRIVER else f"wait: {DRIVER}")
    return Timeline(processes, begin, end, tuple(boundaries[1:]))


def _whole_updates(events: Sequence[Event]) -> list[Event]:
    """Rows picked in the midst of an update are the update's, so that it is in one piece."""
    joined: list[Event] = []
    for name, begin, end in events:
        last = joined[-1] if joined else None
        follows = last is not None and last[2] == begin and last[0].endswith(": update")
        if last is not None and follows and name in ("learn: rows", last[0]):
            joined[-1] = (last[0], last[1], end)
        else:
            joined.append((name, begin, end))
    return joined


class _RoleWalk(Walk):
    def _waited(self, at: int, process: str, name: str, begin: int) -> tuple[int, str]:
        whom = name.removeprefix("wait: ")
        ends = {p: self._end(p, at) for p in self.work if p != process and whom in (p, host_of(p))}
        who = max(ends, key=lambda p: ends[p], default=None)
        if who is None or ends[who] <= begin:  # what it waited for was there before: it was on its way
            self._add("", TRANSIT, begin, at)
            return begin, process
        self._add("", TRANSIT, ends[who], at)
        return ends[who], who

    def _end(self, process: str, instant: int) -> int:
        """Of its last work before `instant`; the driver asks while it goes on working."""
        if process == DRIVER and self.work[process].at(instant - 1):
            return instant
        return self.work[process].last_end(instant)


def role_path(timeline: Timeline) -> list[Segment]:
    """Segments in order of time, from `timeline.begin` to its end without a gap."""
    return walk_back(_RoleWalk(timeline))


@dataclass(frozen=True)
class Link:
    """One part of the chain and its share of the wall time."""

    what: str
    share: float


def chain(timeline: Timeline, path: Sequence[Segment]) -> list[Link]:
    """The longest chain of the timeline's iterations, pooled: shares sum to 1, in the order of an iteration."""
    edges = [timeline.begin, *timeline.boundaries]
    ns: dict[str, int] = {}
    moment: dict[str, float] = {}  # ns after an iteration's begin, weighted by length
    for segment in path:
        what = _link(segment.process, segment.span)
        for begin, end in zip(edges, edges[1:]):
            b, e = max(begin, segment.begin), min(end, segment.end)
            if e > b:
                ns[what] = ns.get(what, 0) + e - b
                moment[what] = moment.get(what, 0.0) + (e - b) * ((b + e) / 2 - begin)
    whole = sum(ns.values()) or 1
    ordered = sorted(ns, key=lambda what: moment[what] / ns[what])
    return [Link(what, ns[what] / whole) for what in ordered]


def _link(process: str, span: str) -> str:
    """`actor: update`, `critic: send`, `transfer`; learners' own spans are one."""
    span = ADVANTAGE if span.startswith("learn") or span == "advantage" else span
    if process in ("", DRIVER) or span in ("generate", "actor and critic: update", TRANSIT):
        return span
    roles = host_of(process).split("+")
    if span.split(": ")[0] in roles:
        return span
    if span == "load weights":
        roles = ["generator"]
    elif span in (ADVANTAGE, "digest", "snapshot"):
        roles = [role for role in ("actor", "critic") if role in roles]
    return f"{' and '.join(roles)}: {span}"


def chain_of_totals(processes: Mapping[str, Mapping[str, float]]) -> list[Link]:
    """As `chain`, from the seconds by span of a run alone (process -> span -> s).

    The driver's own work and its waits make up its wall time, and each wait is for whom all the others wait for at that
    moment. What that one did meanwhile is taken to be what it does in general.
    """
    driver = processes[DRIVER]
    sec: dict[str, float] = {}
    for name, its in driver.items():
        if name in SETUP:
            continue
        host = name.removeprefix("wait: ")
        if is_wait(name) and all(host_of(process) != host for process in processes):
            continue  # for no role: before there were any
        parts = _work_of(host, processes) if is_wait(name) else {_link(DRIVER, name): 1.0}
        for what, share in parts.items():
            sec[what] = sec.get(what, 0.0) + its * share
    whole = sum(sec.values()) or 1.0
    return [Link(what, sec[what] / whole) for what in sorted(sec, key=_rank)]


def _work_of(host: str, processes: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Shares of what a host's workers do, waits aside."""
    sec: dict[str, float] = {}
    for process, spans in processes.items():
        if process != DRIVER and host_of(process) == host:
            for name, its in spans.items():
                if not is_wait(name) and name not in (*SETUP, TRANSIT):
                    what = _link(process, name)
                    sec[what] = sec.get(what, 0.0) + its
    whole = sum(sec.values())
    return {what: its / whole for what, its in sec.items()} if whole > 0 else {host: 1.0}


def _rank(what: str) -> tuple[int, str]:
    for place, name in enumerate(_SEQUENCE):
        if what == name or what.endswith(f": {name}"):
            return place, what
    return len(_SEQUENCE), what
