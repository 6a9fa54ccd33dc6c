"""Every second has exactly one name."""

import pickle
import threading
import time

import pytest

from distrl.telemetry import spans as spans_module
from distrl.telemetry.spans import (
    Spans,
    SpanTotals,
    TakenWhenSent,
    phase,
    phase_shares,
    span_table_rows,
    time_record,
)


class Clock:
    """A clock that the test turns, put where the recorder reads perf_counter_ns."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_ns = 1_000
        monkeypatch.setattr(spans_module, "perf_counter_ns", lambda: self.now_ns)

    def pass_ns(self, ns: int) -> None:
        self.now_ns += ns


def test_nested_spans_get_exclusive_times_that_sum_to_the_wall_exactly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    spans = Spans()
    clock.pass_ns(3)
    with spans.span("learn"):
        clock.pass_ns(5)
        with spans.span("learn: gae"):
            clock.pass_ns(7)
        clock.pass_ns(11)
        with spans.span("learn"):  # the same name inside itself
            clock.pass_ns(13)
    clock.pass_ns(17)
    totals = spans.take_totals()
    assert totals.ns == {"other": 3 + 17, "learn": 5 + 11 + 13, "learn: gae": 7}
    assert totals.counts == {"learn": 2, "learn: gae": 1}
    assert totals.wall_ns == clock.now_ns - 1_000


def test_on_the_real_clock_the_parts_sum_to_the_wall_to_the_nanosecond() -> None:
    before_ns = time.perf_counter_ns()
    spans = Spans()
    inside_ns = time.perf_counter_ns()
    walls = []
    for _ in range(3):
        for name in ("rollout", "learn", "rollout"):
            with spans.span(name), spans.span("wait: learner"):
                pass
        walls.append(spans.take_totals().wall_ns)
    last_ns = spans._last
    assert spans.totals().wall_ns == sum(walls) + (spans._last - last_ns)
    assert last_ns - inside_ns <= sum(walls) <= last_ns - before_ns


def test_take_starts_anew_even_inside_a_span_and_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    spans = Spans()
    with spans.span("rollout"):
        clock.pass_ns(2_000_000_000)
        assert spans.take() == {"other": 0.0, "rollout": 2.0}
        clock.pass_ns(500_000_000)
    clock.pass_ns(250_000_000)
    assert spans.take() == {"rollout": 0.5, "other": 0.25}
    assert spans.take() == {"other": 0.0}
    assert spans.totals().seconds() == {"other": 0.25, "rollout": 2.5}
    assert spans.totals().counts == {"rollout": 1}


def test_mark_names_the_time_between_the_calls_of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    spans = Spans("start")
    clock.pass_ns(10)
    spans.mark("wait: learner")
    clock.pass_ns(20)
    with spans.span("rollout"):
        clock.pass_ns(30)
        spans.mark("wait: weights")  # inside a span: it holds from the span's end
        clock.pass_ns(40)
    clock.pass_ns(50)
    assert spans.take_totals().ns == {"start": 10, "wait: learner": 20, "rollout": 70, "wait: weights": 50}


def test_an_exception_closes_its_spans_and_one_that_skips_an_exit_cannot_unbalance_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    spans = Spans()
    with pytest.raises(ZeroDivisionError), spans.span("learn"), spans.span("learn: gae"):
        clock.pass_ns(1)
        raise ZeroDivisionError
    with spans.span("rollout"):
        spans.span("rollout: env").__enter__()  # an interrupt came between its enter and its exit
        clock.pass_ns(5)
    clock.pass_ns(2)
    assert spans.take_totals().ns == {
        "other": 2,
        "learn": 0,
        "learn: gae": 1,
        "rollout": 0,
        "rollout: env": 5,
    }


def test_a_thread_with_a_recorder_of_its_own_has_its_seconds_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    monkeypatch.setattr(spans_module, "_current", Spans())  # put back at the end
    process = spans_module.start("other")
    taken = []

    def beside() -> None:
        own = spans_module.start_thread("wait: learner")
        try:
            assert spans_module.current() is own
            clock.pass_ns(3)
            with spans_module.span("rollout"):
                clock.pass_ns(4)
            taken.append(spans_module.current().take_totals().ns)
        finally:
            spans_module.end_thread()
        assert spans_module.current() is process

    with spans_module.span("learn"):
        thread = threading.Thread(target=beside)
        thread.start()
        thread.join()
    clock.pass_ns(1)
    assert taken == [{"wait: learner": 3, "rollout": 4}]
    assert process.take_totals().ns == {"other": 1, "learn": 7}


def test_another_thread_records_nothing_and_disturbs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    spans = Spans()

    def elsewhere() -> None:
        spans.mark("nonsense")
        with spans.span("checkpoint"):
            clock.pass_ns(9)

    with spans.span("learn"):
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    assert spans.take_totals().ns == {"other": 0, "learn": 9}


def test_the_module_level_span_uses_the_recorder_that_start_made() -> None:
    recorder = spans_module.start("wait: learner")
    assert spans_module.current() is recorder
    with spans_module.span("rollout"):
        pass
    spans_module.mark("other")
    assert set(recorder.take()) >= {"rollout", "wait: learner", "other"}
    assert recorder.totals().counts == {"rollout": 1}


def test_a_span_costs_two_clock_readings_so_its_overhead_is_count_times_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    readings = 0

    def counting_clock() -> int:
        nonlocal readings
        readings += 1
        return readings

    monkeypatch.setattr(spans_module, "perf_counter_ns", counting_clock)
    spans = Spans()
    num_spans, readings_before = 1000, readings
    for _ in range(num_spans):
        with spans.span("learn"):
            pass
    assert readings - readings_before == 2 * num_spans
    totals = spans.take_totals()
    assert totals.counts["learn"] == num_spans
    assert totals.ns["learn"] == num_spans  # between the two readings of each: one tick, nothing else


def test_totals_merge_exactly_where_floats_would_not() -> None:
    parts = [SpanTotals({"learn": 3 * 10**17 + i}, {"learn": 1}) for i in range(10)]
    whole = SpanTotals()
    for part in parts:
        whole = whole.merge(part)
    assert whole.ns["learn"] == 30 * 10**17 + 45
    assert whole.counts["learn"] == 10
    assert parts[0].ns["learn"] == 3 * 10**17  # merging changes neither
    assert whole.as_json()["wall_sec"] == sum(whole.as_json()["spans"].values())


def test_the_span_table_has_workers_learner_driver_in_order_and_its_rows_sum_to_the_wall() -> None:
    spans = {
        "driver": {"wall_sec": 10.0, "spans": {"wait: workers": 8.0, "other": 2.0}},
        "worker 10": {"wall_sec": 9.0, "spans": {"rollout": 6.0, "wait: learner": 3.0}},
        "worker 2": {"wall_sec": 9.5, "spans": {"rollout": 6.5, "wait: learner": 3.0}},
        "learner": {"wall_sec": 9.0, "spans": {"learn": 4.0, "learn: gae": 1.0, "wait: workers": 4.0}},
    }
    table = span_table_rows(spans)
    assert table.columns == ["worker 2", "worker 10", "learner", "driver"]
    assert [name for name, _ in table.rows] == [
        "rollout", "learn", "learn: gae", "wait: workers", "wait: learner", "other",
    ]  # fmt: skip
    assert dict(table.rows)["rollout"] == [6.5, 6.0, None, None]
    for column, wall in enumerate(table.total):
        assert sum(seconds[column] or 0.0 for _, seconds in table.rows) == wall
    assert table.percent(3, 8.0) == 80.0


def test_the_time_record_pools_workers_and_the_shares_leave_the_watching_driver_out() -> None:
    record = time_record(
        {
            "driver": {"wait: workers": 4.0},
            "worker 0": {"rollout": 1.0, "wait: learner": 3.0},
            "worker 1": {"rollout": 3.0, "wait: learner": 1.0},
            "learner": {"learn: gae": 1.0, "publish": 1.0, "wait: workers": 2.0},
        }
    )
    assert record["time/worker/rollout"] == 2.0
    assert record["time/learner/learn: gae"] == 1.0
    assert phase_shares(record) == {"rollout": 2 / 8, "learner": 1 / 8, "waiting": 4 / 8, "other": 1 / 8}
    in_process = time_record({"driver": {"rollout": 3.0, "learn": 1.0}})
    assert phase_shares(in_process) == {"rollout": 0.75, "learner": 0.25, "waiting": 0.0, "other": 0.0}
    assert sum(phase_shares({"iteration": 1}).values()) == 0.0


def test_a_role_s_span_belongs_to_a_phase_by_what_the_role_does() -> None:
    names = (
        "generate",
        "critic: values",
        "actor: log-probs",
        "reward",
        "actor and critic: update",
        "wait: reward",
    )
    assert [phase(name) for name in names] == [*["rollout"] * 4, "learner", "waiting"]
    assert phase("load weights") == phase("generator+actor: digest") == "other"


def test_a_span_belongs_to_a_phase_by_its_first_known_word() -> None:
    names = ("rollout", "rollout: env", "learn: gae", "learner", "wait: learner", "publish", "other")
    assert [phase(name) for name in names] == [
        "rollout", "rollout", "learner", "learner", "waiting", "other", "other",
    ]  # fmt: skip


def test_recorded_events_follow_one_another_and_sum_to_the_named_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    spans = Spans("other", record_events=True)
    clock.pass_ns(3)
    with spans.span("learn"):
        clock.pass_ns(5)
        with spans.span("learn: gae"):
            clock.pass_ns(7)
    spans.mark("wait: workers")
    clock.pass_ns(11)
    taken = spans.take_totals()
    assert [event for event in taken.events if event[1] < event[2]] == [
        ("other", 1_000, 1_003),
        ("learn", 1_003, 1_008),
        ("learn: gae", 1_008, 1_015),
        ("wait: workers", 1_015, 1_026),
    ]
    clock.pass_ns(13)
    assert spans.take_totals().events == [("wait: workers", 1_026, 1_039)], "a take starts anew"
    assert sum(end - begin for _, begin, end in taken.events) == taken.wall_ns


def test_a_normal_run_records_no_events() -> None:
    spans = Spans()
    with spans.span("learn"):
        pass
    assert spans.take_totals().events == []


def test_totals_taken_when_sent_hold_what_was_serialised_before_them() -> None:
    recorder = spans_module.start("wait: learner")

    class Slow:
        def __reduce__(self) -> tuple[object, ...]:
            time.sleep(0.02)
            return int, ()

    try:
        spans_module.mark("rollout: send")
        _, arrived = pickle.loads(pickle.dumps([Slow(), TakenWhenSent("wait: learner")]))
        assert isinstance(arrived, SpanTotals)
        assert arrived.ns["rollout: send"] >= 20_000_000
        assert set(recorder.take()) == {"wait: learner"}, "from then on it waits"
    finally:
        spans_module.start()


def test_the_cost_of_a_span_is_that_of_microseconds_at_most() -> None:
    assert 10 < spans_module.cost_of_one_ns() < 100_000
