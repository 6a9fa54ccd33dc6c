"""Every second of a process has a name.

One `Spans` recorder per process keeps a stack of names; the clock always runs for exactly one of them,
the top one. Entering a span charges the time since the last change to the enclosing name, leaving charges
it to the span itself:

    base "other"   |--------|                     |-----|        |--       what runs outside any span
    "learn"                 |----|           |----|     |        |
    "learn: gae"                 |-----------|          |        |
    "wait: workers"                                     |--------|
                   ^ start       ^ enter     ^ leave             ^ each ^ is one reading of perf_counter_ns

So times are exclusive, and because each interval of integer nanoseconds is charged once, the named times and
the base name sum to the wall time since the start *exactly*: nothing is lost and nothing counted twice.

    with span("learn"):                 # module level: the recorder of this process
        with span("learn: gae"):
            ...
    mark("wait: learner")               # a Ray actor between two calls: what the base name means from now on
    seconds = current().take()          # since the last take; sums to the wall time in between

Names: what is done ("rollout", "learn", "publish", "checkpoint"), a detail after a colon ("rollout: env"), and
"wait: <whom>" for waiting, attributed to whom the process waits for. `phase` sorts them for the displays.

A recorder belongs to the thread that made it: seconds of two threads do not sum to a wall. A thread that works
beside the process's own has a recorder of its own, by `start_thread`; in any other a span records nothing. Maths
never imports this module.

A profile also wants to see when: `start(base, record_events=True)` keeps each interval between two readings of the
clock as an event (name, begin, end), and how much processor time the process had. Normal runs keep sums alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from threading import get_ident
from time import perf_counter_ns, process_time_ns
from types import TracebackType
from typing import Any, Literal

NS_PER_SEC = 1_000_000_000

Event = tuple[
    str, int, int
]  # name, begin and end in ns of the monotonic clock, which one machine's processes share

TRANSIT = "transfer"  # calls, answers and data on their way between processes

Phase = Literal["rollout", "learner", "waiting", "other"]
PHASES: tuple[Phase, ...] = ("rollout", "learner", "waiting", "other")

_PHASE_OF_WORD: dict[str, Phase] = {
    **dict.fromkeys(("rollout", "collect", "env", "act", "policy", "reset", "sample"), "rollout"),
    **dict.fromkeys(("generate", "reward", "reference", "values", "log-probs"), "rollout"),
    **dict.fromkeys(("learn", "learner", "update", "gae", "advantage", "loss", "optimizer", "minibatch"), "learner"),
    **dict.fromkeys(("wait", "waiting", "idle"), "waiting"),
}  # fmt: skip


def phase(name: str) -> Phase:
    """The phase that a span belongs to, by the first known word of its name: "learn: gae", "critic: update" -> "learner"."""
    words = name.replace(":", " ").replace("_", " ").lower().split()
    return next((_PHASE_OF_WORD[word] for word in words if word in _PHASE_OF_WORD), "other")


@dataclass
class SpanTotals:
    """Exclusive nanoseconds and entry counts by name; `sum(ns.values()) == wall_ns` always. Merges exactly."""

    ns: dict[str, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    # where events are recorded
    events: list[Event] = field(default_factory=list, compare=False)
    cpu_ns: int = field(default=0, compare=False)  # processor time of the whole process, every thread

    @property
    def wall_ns(self) -> int:
        return sum(self.ns.values())

    def merge(self, other: SpanTotals) -> SpanTotals:
        """The totals of both together (of two windows of one process, or of several processes)."""
        merged = SpanTotals(
            dict(self.ns), dict(self.counts), [*self.events, *other.events], self.cpu_ns + other.cpu_ns
        )
        for name, ns in other.ns.items():
            merged.ns[name] = merged.ns.get(name, 0) + ns
        for name, count in other.counts.items():
            merged.counts[name] = merged.counts.get(name, 0) + count
        return merged

    def seconds(self) -> dict[str, float]:
        return {name: ns / NS_PER_SEC for name, ns in self.ns.items()}

    def as_json(self) -> dict[str, Any]:
        """One process's entry in summary.json: `{"wall_sec", "spans": {name: sec}, "counts": {name: n}}`."""
        return {"wall_sec": self.wall_ns / NS_PER_SEC, "spans": self.seconds(), "counts": dict(self.counts)}


class Spans:
    """The recorder of one process (of the thread that makes it). `base` names the time outside any span."""

    __slots__ = ("_before", "_counts", "_cpu_last", "_events", "_last", "_ns", "_owner", "_stack")

    def __init__(self, base: str = "other", record_events: bool = False) -> None:
        self._owner = get_ident()
        self._stack = [base]
        self._ns: defaultdict[str, int] = defaultdict(int)
        self._counts: defaultdict[str, int] = defaultdict(int)
        self._before = SpanTotals()  # what earlier takes returned, but for events
        self._events: list[Event] | None = [] if record_events else None
        self._cpu_last = process_time_ns() if record_events else 0
        self._last = perf_counter_ns()

    def span(self, name: str) -> Span:
        """A context manager that charges the time inside it, less that of nested spans, to `name`."""
        return Span(self, name)

    def mark(self, name: str) -> None:
        """From now on, time outside any span is called `name`. Inside a span it takes effect when that ends."""
        if get_ident() != self._owner:
            return
        if len(self._stack) == 1:
            self._charge()
        self._stack[0] = name

    def waited_for(self, name: str, then: str | None = None) -> None:
        """Time outside any span since the last one was `name`: whom one waited for shows when the wait is over.

        From now on it is called `then`, where that is given.
        """
        if get_ident() != self._owner or len(self._stack) > 1:
            return
        base, self._stack[0] = self._stack[0], name
        self._charge()
        self._stack[0] = base if then is None else then

    def take(self) -> dict[str, float]:
        """Seconds by name since the last take (or the start), then starts anew; they sum to the wall between."""
        return self.take_totals().seconds()

    def take_totals(self) -> SpanTotals:
        """As `take`, in exact nanoseconds and with counts. May be called inside a span: it is cut at this moment."""
        self._charge()
        taken = SpanTotals(dict(self._ns), dict(self._counts))
        self._ns.clear()
        self._counts.clear()
        self._before = self._before.merge(taken)
        if self._events is not None:
            taken.events, self._events = self._events, []
            now = process_time_ns()
            taken.cpu_ns, self._cpu_last = now - self._cpu_last, now
        return taken

    def totals(self) -> SpanTotals:
        """Everything since the start, takes included; resets nothing."""
        self._charge()
        return self._before.merge(SpanTotals(self._ns, self._counts))

    def _charge(self) -> None:
        now = perf_counter_ns()
        self._ns[self._stack[-1]] += now - self._last
        if self._events is not None:
            self._events.append((self._stack[-1], self._last, now))
        self._last = now


class Span:
    """One entry of a span. Remembers its depth, so that an interrupt between two lines cannot unbalance the stack."""

    __slots__ = ("_depth", "_name", "_spans")

    def __init__(self, spans: Spans, name: str) -> None:
        self._spans = spans
        self._name = name
        self._depth = 0

    def __enter__(self) -> None:
        spans = self._spans
        if get_ident() != spans._owner:
            return
        now = perf_counter_ns()
        stack, name = spans._stack, self._name
        spans._ns[stack[-1]] += now - spans._last
        if spans._events is not None:
            spans._events.append((stack[-1], spans._last, now))
        spans._last = now
        spans._counts[name] += 1
        self._depth = len(stack)
        stack.append(name)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        depth = self._depth
        if depth == 0:  # never entered: another thread's
            return
        spans = self._spans
        now = perf_counter_ns()
        stack = spans._stack
        spans._ns[stack[-1]] += now - spans._last
        if spans._events is not None:
            spans._events.append((stack[-1], spans._last, now))
        spans._last = now
        del stack[depth:]
        self._depth = 0


_current = Spans()
_of_threads: dict[int, Spans] = {}  # recorders of threads that work beside, by the thread's number


def current() -> Spans:
    """The recorder of the calling thread, where it has one of its own, else of this process."""
    return _of_threads.get(get_ident(), _current) if _of_threads else _current


def start(base: str = "other", record_events: bool = False) -> Spans:
    """Starts a new recorder for this process, owned by the calling thread, its clock at zero; returns it."""
    global _current
    _current = Spans(base, record_events)
    return _current


def start_thread(base: str, record_events: bool = False) -> Spans:
    """Starts a recorder for the calling thread alone; returns it. `end_thread` must follow, in the same thread."""
    recorder = _of_threads[get_ident()] = Spans(base, record_events)
    return recorder


def end_thread() -> None:
    """Forgets the calling thread's own recorder."""
    _of_threads.pop(get_ident(), None)


def span(name: str) -> Span:
    """`with span("learn"):` on the recorder of this thread or process."""
    return Span(current(), name)


def mark(name: str) -> None:
    """Names what this thread or process does outside any span from now on; see `Spans.mark`."""
    current().mark(name)


class TakenWhenSent:
    """Stands in a result for the totals up to the moment when it is pickled; arrives as those `SpanTotals`.

    A worker's results are serialised one after another once its method has returned. The last of them carries this, so
    that the time of the others, up to the object store, is counted with the task that made them. From then on, what the
    process does outside any span is called `base`.
    """

    def __init__(self, base: str) -> None:
        self.base = base

    def __reduce__(self) -> tuple[Any, ...]:
        mark(self.base)
        taken = _current.take_totals()
        return SpanTotals, (taken.ns, taken.counts, taken.events, taken.cpu_ns)


def cost_of_one_ns(repeats: int = 5, count: int = 2_000) -> float:
    """What entering and leaving one span costs here, in ns: the least of several loops, as a normal run records."""
    spans = Spans()
    least = float("inf")
    for _ in range(repeats):
        begun = perf_counter_ns()
        for _ in range(count):
            with Span(spans, "cost"):
                pass
        least = min(least, (perf_counter_ns() - begun) / count)
    return least


def time_record(processes: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The `time/...` keys of one iteration's record, in seconds: `time/<process>/<span>`.

    `processes` maps "driver", "learner", "worker 0", ... to what their `take()` returned. All workers are pooled
    under `time/worker/<span>` as a mean over the workers, so that the record does not grow with them.
    """
    workers = [name for name in processes if name.startswith("worker")]
    record: dict[str, float] = {}
    for process, seconds in processes.items():
        kind, weight = ("worker", 1 / len(workers)) if process in workers else (process, 1.0)
        for name, sec in seconds.items():
            key = f"time/{kind}/{name}"
            record[key] = record.get(key, 0.0) + sec * weight
    return record


def phase_shares(record: Mapping[str, Any]) -> dict[Phase, float]:
    """Shares of the phases (summing to 1, or all 0 without data) over a record's `time/...` keys.

    Where workers and the learner are processes of their own, the driver only watches them and is left out.
    """
    keys = [
        key for key, value in record.items() if key.startswith("time/") and isinstance(value, float | int)
    ]
    split = {key: key.removeprefix("time/").rpartition("/") for key in keys}
    if any(process == "learner" for process, _, _ in split.values()):
        split = {key: parts for key, parts in split.items() if parts[0] not in ("", "driver")}
    seconds = dict.fromkeys(PHASES, 0.0)
    for key, (_, _, name) in split.items():
        seconds[phase(name)] += float(record[key])
    whole = sum(seconds.values())
    return {name: sec / whole if whole > 0 else 0.0 for name, sec in seconds.items()}


@dataclass(frozen=True)
class SpanTable:
    """The span table as data: `columns` are processes, each row a span, `total` the wall time of each column."""

    columns: list[str]
    rows: list[tuple[str, list[float | None]]]  # span name -> seconds per column; None where it never ran
    total: list[float]

    def percent(self, column: int, seconds: float | None) -> float | None:
        """Share of that process's wall time, in percent."""
        wall = self.total[column]
        return None if seconds is None or wall <= 0 else 100.0 * seconds / wall


def span_table_rows(spans: Mapping[str, Mapping[str, Any]]) -> SpanTable:
    """The table behind the console, summary.json and the report.

    `spans` is summary.json's `spans`: `{"driver": {"wall_sec": ..., "spans": {name: sec}}, "learner": ..., ...}`.
    Columns: as `process_order` has them. Rows: by phase, then by seconds.
    """
    columns = sorted(spans, key=process_order)
    names: dict[str, float] = {}
    for process in spans.values():
        for name, sec in process["spans"].items():
            names[name] = names.get(name, 0.0) + sec
    ordered = sorted(names, key=lambda name: (name == "other", PHASES.index(phase(name)), -names[name], name))
    rows: list[tuple[str, list[float | None]]] = [
        (name, [spans[column]["spans"].get(name) for column in columns]) for name in ordered
    ]
    return SpanTable(columns, rows, [float(spans[column]["wall_sec"]) for column in columns])


# roles as an iteration needs them
_RANKS = {
    name: rank
    for rank, names in enumerate(
        (("worker", "rollout"), ("generator",), ("actor",), ("reference",), ("reward",), ("critic",), ("learner",), ("driver",))
    )
    for name in names
}  # fmt: skip


def process_order(process: str) -> tuple[int, int, str]:
    """Sorts `worker 2` before `worker 10`, then roles (several in one go by the first), learner, driver, any other."""
    kind, _, number = process.partition(" ")
    rank = _RANKS.get(kind.partition("+")[0], len(_RANKS))
    return rank, int(number) if number.isdecimal() else -1, process
