"""The Chrome trace opens in Perfetto: it is what the Trace Event Format asks for."""

import json
from pathlib import Path

from distrl.autopsy.path import critical_path
from distrl.autopsy.timeline import attribute_waits, build
from distrl.autopsy.trace import chrome_trace, write_trace
from tests.autopsy.synthetic import Iterations

MADE = Iterations([{"rollout: env step": 20.0}, {"rollout: env step": 50.0}], {"learn: update": 30.0})
RECORDED = build(MADE.events, MADE.boundaries)


def test_every_event_keeps_the_format(tmp_path: Path) -> None:
    write_trace(tmp_path / "trace.json", attribute_waits(RECORDED), critical_path(RECORDED))
    trace = json.loads((tmp_path / "trace.json").read_text())
    assert isinstance(trace["traceEvents"], list) and trace["displayTimeUnit"] in ("ms", "ns")
    for event in trace["traceEvents"]:
        assert isinstance(event["name"], str) and event["ph"] in ("X", "M", "i")
        assert isinstance(event["pid"], int) and isinstance(event["tid"], int)
        assert isinstance(event["ts"], int | float) and event["ts"] >= 0
        if event["ph"] == "X":
            assert event["dur"] > 0 and event["cat"]
        if event["ph"] == "M":
            assert event["name"] in ("process_name", "thread_name", "process_sort_index") and event["args"]
        if event["ph"] == "i":
            assert event["s"] in ("g", "p", "t")


def test_workers_learner_and_driver_share_one_axis_and_each_fills_it() -> None:
    events = chrome_trace(attribute_waits(RECORDED), critical_path(RECORDED))["traceEvents"]
    names = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert set(names.values()) == {"worker 0", "worker 1", "learner", "driver", "critical path"}
    for pid in names:
        own = sorted((e["ts"], e["dur"]) for e in events if e["ph"] == "X" and e["pid"] == pid)
        assert own[0][0] == 0
        assert abs(sum(dur for _, dur in own) - RECORDED.wall_ns / 1e3) < 1e-3
    assert sum(event["ph"] == "i" for event in events) == MADE.count
