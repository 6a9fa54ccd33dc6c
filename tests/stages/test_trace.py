"""`distrl rlhf ppo --trace N`: who did what when, on one clock, and the longest chain of an iteration."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from distrl.autopsy.path import Segment
from distrl.autopsy.roles import build_roles, chain, chain_of_totals, role_path
from distrl.stages.trace import Recording
from distrl.telemetry.spans import Event, SpanTotals, process_order
from tests.stages.conftest import command, ppo_flags, summary

MS = 1_000_000
Rows = dict[str, list[tuple[float, float, str]]]  # of the trace: process -> begin, end (us), name

# one iteration of 100 ms: name, then where each span ends
MADE = {
    "driver": [
        ("submit", 2), ("wait: generator", 43), ("wait: reward", 62), ("wait: critic", 91), ("submit", 92),
        ("publish", 93), ("wait: generator", 97), ("log", 100),
    ],
    "generator": [("wait: driver", 3), ("generate", 40), ("send", 42), ("wait: critic", 94), ("load weights", 96)],
    "reference": [("wait: generator", 43), ("reference", 55)],
    "reward 0": [("wait: generator", 43), ("reward", 50)],
    "reward 1": [("wait: generator", 44), ("reward", 60)],
    "critic": [
        ("wait: generator", 43), ("critic: values", 50), ("wait: reward", 62), ("advantage", 64),
        ("critic: update", 80), ("learn: rows", 81), ("critic: update", 90),
    ],
}  # fmt: skip
CHAIN = [
    ("driver", "submit", 2), ("", "transfer", 3), ("generator", "generate", 40), ("generator", "send", 42),
    ("", "transfer", 44), ("reward 1", "reward", 60), ("", "transfer", 62), ("critic", "advantage", 64),
    ("critic", "critic: update", 90), ("", "transfer", 94), ("generator", "load weights", 96), ("", "transfer", 97),
    ("driver", "log", 100),
]  # fmt: skip


def events(named: list[tuple[str, int]], begin: int = 0) -> list[Event]:
    found, at = [], begin
    for name, end in named:
        found.append((name, at, begin + end * MS))
        at = begin + end * MS
    return found


def made_up(iterations: int = 1) -> dict[str, list[Event]]:
    every: dict[str, list[Event]] = defaultdict(list)
    for i in range(iterations):
        for process, named in MADE.items():
            every[process] += events(named, 100 * i * MS)
    return every


def test_the_longest_chain_is_walked_back_over_the_roles_that_were_waited_for() -> None:
    path = role_path(build_roles(made_up(), [0, 100 * MS]))
    begin, wanted = 0, []
    for process, span, end in CHAIN:
        wanted.append(Segment(process, span, begin, end * MS))
        begin = end * MS
    assert path == wanted


def test_a_chain_s_shares_are_of_all_iterations_in_the_order_of_one() -> None:
    timeline = build_roles(made_up(3), [0, 100 * MS, 200 * MS, 300 * MS])
    links = chain(timeline, role_path(timeline))
    assert sum(link.share for link in links) == pytest.approx(1)
    big = [(link.what, round(link.share, 6)) for link in links if link.share > 0.1]
    assert big == [
        ("generate", 0.37),
        ("reward", 0.16),
        ("critic: update", 0.26),
    ]
    assert ("critic: advantage, batch", 0.02) in [(link.what, round(link.share, 6)) for link in links]


def test_every_process_fills_the_timeline_whatever_it_has_told() -> None:
    timeline = build_roles(made_up(), [1 * MS, 100 * MS])
    for process in timeline.processes:
        assert sum(timeline.totals(process).values()) == timeline.wall_ns == 99 * MS
    assert timeline.processes["reference"][-1] == ("wait: driver", 55 * MS, 100 * MS)
    assert timeline.totals("critic")["critic: update"] == 26 * MS, "rows picked within an update are its own"


def test_without_moments_the_driver_s_waits_tell_whose_turn_it_was() -> None:
    totals: dict[str, dict[str, float]] = {
        "driver": {"start": 9.0, "wait: start": 9.0, "wait: generator": 4.0, "wait: critic": 5.0, "log": 1.0},
        "generator": {"start": 5.0, "generate": 3.0, "load weights": 1.0, "wait: critic": 6.0},
        "critic": {"critic: update": 4.0, "critic: values": 1.0, "wait: generator": 3.0},
    }
    links = [(link.what, pytest.approx(link.share)) for link in chain_of_totals(totals)]
    assert links == [
        ("generate", 0.3), ("critic: values", 0.1), ("critic: update", 0.4), ("generator: load weights", 0.1),
        ("log", 0.1),
    ]  # fmt: skip
    alone: dict[str, dict[str, float]] = {"driver": {"start": 2.0, "reward": 1.0, "generate": 3.0}}
    assert [(link.what, link.share) for link in chain_of_totals(alone)] == [
        ("generate", 0.75),
        ("reward", 0.25),
    ]


def test_processes_are_shown_as_an_iteration_needs_them() -> None:
    assert sorted(["driver", "reward 10", "critic", "reward 2", "generator+actor", "reference"], key=process_order) == [
        "generator+actor", "reference", "reward 2", "reward 10", "critic", "driver",
    ]  # fmt: skip


def told(process: str, iteration: int, ahead_ms: int = 0) -> SpanTotals:
    return SpanTotals(events=events(MADE[process], (100 * iteration + ahead_ms) * MS))


def record(recording: Recording, iteration: int, ahead_ms: int = 0) -> None:
    """An iteration whose workers, on a clock that is ahead, took their spans while they were asked."""
    taken = {name: told(name, iteration, ahead_ms if name != "driver" else 0) for name in MADE}
    recording.see(iteration + 1, taken, (100 * iteration + 54) * MS, (100 * iteration + 97) * MS)


def test_the_last_iterations_are_kept() -> None:
    recording = Recording(2)
    for iteration in range(5):
        record(recording, iteration)
    traced = recording.traced()
    assert traced is not None
    assert (traced.first, traced.last) == (4, 5)
    assert (traced.timeline.begin, traced.timeline.boundaries) == (300 * MS, (400 * MS, 500 * MS))
    assert traced.last_iteration() == (400 * MS, 500 * MS)
    assert Recording(2).traced() is None


def test_iterations_that_are_done_again_are_not_mixed_with_the_first_try() -> None:
    recording = Recording(4)
    for iteration in (0, 1, 2, 1):
        record(recording, iteration)
    assert [one.number for one in recording.iterations] == [2]


def test_another_machine_s_clock_is_brought_to_the_driver_s() -> None:
    recording = Recording(3)
    for iteration in range(3):
        record(recording, iteration, ahead_ms=70_000)
    traced = recording.traced()
    assert traced is not None
    generated = [b for name, b, _ in traced.timeline.processes["generator"] if name == "generate"]
    assert len(generated) == 3, "all lie within the driver's iterations"
    # known within the time that it takes to ask
    assert abs(generated[0] - 3 * MS) <= 43 * MS


def test_what_precedes_the_first_iteration_is_no_part_of_it() -> None:
    recording = Recording(3)
    driver = [("other", 5), ("start", 30), ("generate", 80), ("log", 100)]
    recording.see(1, {"driver": SpanTotals(events=events(driver))}, 0, 0)
    traced = recording.traced()
    assert traced is not None
    assert traced.timeline.begin == 30 * MS
    assert [(link.what, round(link.share, 3)) for link in traced.chain()] == [
        ("generate", 0.714),
        ("log", 0.286),
    ]


def rows(path: Path) -> tuple[Rows, list[float]]:
    """Each process's spans in a trace, in order, and where iterations end."""
    trace: dict[str, Any] = json.loads(path.read_text())
    names = {e["pid"]: e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "process_name"}
    found: Rows = {name: [] for name in names.values()}
    for event in trace["traceEvents"]:
        if event["ph"] == "X":
            found[names[event["pid"]]].append((event["ts"], event["ts"] + event["dur"], event["name"]))
    ends = [event["ts"] for event in trace["traceEvents"] if event["ph"] == "i"]
    return {name: sorted(its) for name, its in found.items()}, ends


def fills(row: list[tuple[float, float, str]], wall: float) -> None:
    """From 0 to the end without a gap or an overlap."""
    assert row[0][0] == 0 and row[-1][1] == pytest.approx(wall, abs=0.01)
    assert all(before[1] == pytest.approx(after[0], abs=0.01) for before, after in zip(row, row[1:]))


def test_in_one_process_the_roles_spans_follow_one_another(workplace: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command(workplace, *ppo_flags(run, "--trace", "2", "--sample-every", "0"))
    found, ends = rows(run / "trace.json")
    assert set(found) == {"driver", "longest chain"}
    for row in found.values():
        fills(row, ends[-1])
    names = [name for _, _, name in found["driver"]]
    steps = [
        "generate",
        "reference",
        "reward",
        "critic: values",
        "advantage",
        "actor and critic: update",
        "log",
    ]
    assert [name for name in names if name in steps[:-1]] == 2 * steps[:-1]
    assert len(ends) == 2
    # what metrics.jsonl says of these iterations is the same time by the same names
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for name in ("generate", "reward", "advantage"):
        traced = sum(end - begin for begin, end, span in found["driver"] if span == name)
        assert traced / 1e6 == pytest.approx(sum(line[f"time/driver/{name}"] for line in lines[1:]), abs=1e-6)
    wall = sum(sec for line in lines[1:] for key, sec in line.items() if key.startswith("time/driver/"))
    assert ends[-1] / 1e6 == pytest.approx(wall, abs=1e-6)
    other = sum(end - begin for begin, end, span in found["driver"] if span == "other")
    assert other < 0.15 * ends[-1], "every second has a name"
    told = summary(run)["longest_chain"]
    assert told["of"] == "iterations 2 to 3, as recorded"
    assert sum(link["share"] for link in told["links"]) == pytest.approx(1)
    shares = {link["what"]: link["share"] for link in told["links"]}
    generated = sum(end - begin for begin, end, span in found["driver"] if span == "generate")
    assert shares["generate"] == pytest.approx(generated / ends[-1], rel=1e-4)


@pytest.mark.ray
@pytest.mark.timeout(280)
def test_apart_every_role_has_a_row_and_the_chain_goes_from_one_to_the_other(
    workplace: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command(workplace, *ppo_flags(run, "--trace", "2", "--placement", "separate", "--sample-every", "0"))
    found, ends = rows(run / "trace.json")
    hosts = {"generator+actor", "reference", "reward", "critic"}
    assert set(found) == {*hosts, "driver", "longest chain"}
    for row in found.values():
        fills(row, ends[-1])
    work = {
        "generator+actor": {"generate", "actor: update", "digest"}, "reference": {"reference"},
        "reward": {"reward"}, "critic": {"critic: values", "advantage", "critic: update"}, "driver": {"publish", "log"},
    }  # fmt: skip
    for process, spans in work.items():
        assert spans <= {name for _, _, name in found[process]}, process
    assert "wait: generator+actor" in {name for _, _, name in found["reference"]}
    # one clock: a response is looked at when it is written, and not before
    written = [end for _, end, name in found["generator+actor"] if name == "generate"]
    looked = [begin for begin, _, name in found["reference"] if name == "reference"]
    assert len(written) == len(looked) == 2
    assert all(end <= begin for end, begin in zip(written, looked))
    on_chain = [name.partition(": ")[2] for _, _, name in found["longest chain"]]
    assert on_chain.count("generate") == 2, "all wait for the responses"
    assert {"actor: update", "critic: update"} & set(on_chain)
    for process in hosts:
        own = [(begin, end) for begin, end, name in found["longest chain"] if name.startswith(f"{process}: ")]
        busy = [(b, e) for b, e, name in found[process] if not name.startswith("wait")]
        assert all(any(b - 0.01 <= begin < e + 0.01 for b, e in busy) for begin, _ in own), (
            "who is on it works"
        )
    totals = summary(run)["spans"]
    assert all(totals[process]["spans"].get("other", 0.0) == 0.0 for process in hosts)
