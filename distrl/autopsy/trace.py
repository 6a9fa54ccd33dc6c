"""The session as a Chrome trace: JSON that Perfetto (ui.perfetto.dev) and chrome://tracing open.

Format: "Trace Event Format" (Google, catapult project): an object with `traceEvents`; complete events have ph "X",
`ts` and `dur` in microseconds; metadata events ("M") name and order the processes; "i" marks where iterations end.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from distrl.autopsy.categories import category, is_wait
from distrl.autopsy.path import Segment
from distrl.autopsy.timeline import DRIVER, LEARNER, Timeline

# names of Chrome's palette
_COLOURS = {
    "env step": "good", "inference": "rail_response", "update": "thread_state_runnable", "GAE": "rail_animation",
    "transfer": "terrible", "serialisation": "bad", "waiting": "grey", "broadcast": "yellow",
}  # fmt: skip
MOST_EVENTS = 300_000


def chrome_trace(
    timeline: Timeline,
    path: list[Segment] | None = None,
    order: Sequence[str] | None = None,
    kind: Callable[[str], str] = category,
    first_iteration: int = 1,
    path_name: str = "critical path",
) -> dict[str, Any]:
    """The trace of a timeline, with the critical path as a row of its own.

    Processes are shown in `order` (default: workers, learner, driver); `kind` is a span's category; the first iteration
    that ends here is called `first_iteration`, the path's row `path_name`.
    """
    if order is None:
        order = [*timeline.workers, *(name for name in (LEARNER, DRIVER) if name in timeline.processes)]
    events: list[dict[str, Any]] = []
    for number, process in enumerate(order, start=1):
        events += _named(number, process, number)
        for name, begin, end in timeline.processes[process]:
            events.append(_complete(number, name, kind(name), begin - timeline.begin, end - begin))
    number = len(order) + 1
    if path:
        events += _named(number, path_name, 0)
        for segment in path:
            name = f"{segment.process}: {segment.span}" if segment.process else segment.span
            begin, length = segment.begin - timeline.begin, segment.end - segment.begin
            events.append(_complete(number, name, kind(segment.span), begin, length))
    for index, boundary in enumerate(timeline.boundaries, start=first_iteration):
        at = (boundary - timeline.begin) / 1e3
        events.append(
            {
                "name": f"end of iteration {index}",
                "ph": "i",
                "s": "g",
                "ts": at,
                "pid": 1,
                "tid": 1,
                "cat": "iteration",
            }
        )
    return {
        "traceEvents": _bounded(events),
        "displayTimeUnit": "ms",
        "otherData": {"clock": "CLOCK_MONOTONIC"},
    }


def _named(number: int, name: str, order: int) -> list[dict[str, Any]]:
    common = {"ph": "M", "pid": number, "tid": 1, "ts": 0}
    return [
        {**common, "name": "process_name", "args": {"name": name}},
        {**common, "name": "thread_name", "args": {"name": name}},
        {**common, "name": "process_sort_index", "args": {"sort_index": order}},
    ]


def _complete(number: int, name: str, kind: str, begin_ns: int, length_ns: int) -> dict[str, Any]:
    event = {
        "name": name, "cat": "waiting" if is_wait(name) else kind, "ph": "X", "ts": begin_ns / 1e3,
        "dur": length_ns / 1e3, "pid": number, "tid": 1,
    }  # fmt: skip
    if kind in _COLOURS:
        event["cname"] = _COLOURS[kind]
    return event


def _bounded(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """At most so many, the shortest left out: a viewer that shows none is worse than one without some."""
    timed = [event for event in events if event["ph"] == "X"]
    if len(timed) <= MOST_EVENTS:
        return events
    least = sorted((event["dur"] for event in timed), reverse=True)[MOST_EVENTS - 1]
    return [event for event in events if event["ph"] != "X" or event["dur"] >= least]


def write_trace(path: Path, timeline: Timeline, segments: list[Segment] | None = None, **shown: Any) -> None:
    """Writes the trace as one JSON file; `shown` as `chrome_trace` has it."""
    trace = chrome_trace(timeline, segments, **shown)
    path.write_text(json.dumps(trace, separators=(",", ":")), encoding="utf-8")
