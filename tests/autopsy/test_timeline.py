"""Every process on one clock, every wait named, nothing lost."""

import pytest

from distrl.autopsy.path import critical_path, shares
from distrl.autopsy.timeline import Timeline, attribute_waits, build, clock_offset
from tests.autopsy.synthetic import MS, Iterations, config

TWO = Iterations(
    workers=[{"rollout: env step": 20.0, "rollout: send": 2.0}, {"rollout: env step": 50.0, "rollout: send": 4.0}],
    learner={"learn: advantage": 3.0, "learn: update": 30.0},
)  # fmt: skip


def two() -> Timeline:
    return build(TWO.events, TWO.boundaries)


def test_what_a_process_did_fills_its_wall_time_exactly() -> None:
    timeline = attribute_waits(two())
    for process, events in timeline.processes.items():
        assert events[0][1] == timeline.begin and events[-1][2] == timeline.end
        assert all(one[2] == two[1] for one, two in zip(events, events[1:], strict=False))
        assert sum(timeline.by_category(process).values()) == timeline.wall_ns


def test_a_wait_is_named_by_whom_it_is_for() -> None:
    totals = {name: attribute_waits(two()).totals(name) for name in two().processes}
    n = TWO.count
    # the fast worker waits for the slow one, then for the learner; the driver logs once an iteration
    assert totals["worker 0"]["wait: worker 1"] == n * (54 - 22) * MS
    assert totals["worker 0"]["wait: learner"] == n * 33 * MS
    assert totals["worker 0"]["wait: driver"] == n * 1 * MS
    assert "wait: worker 0" not in totals["worker 1"]
    # the learner waits for the worker that is done last, not for whoever is busy
    assert totals["learner"]["wait: worker 1"] == n * 54 * MS
    assert "wait: worker 0" not in totals["learner"]
    # four hops an iteration: two before the workers work and after, two around the learner
    assert totals["learner"]["transfer"] == n * 4 * MS


def test_a_process_that_had_not_told_of_its_end_was_waiting() -> None:
    events = {"driver": [("log", 0, 100)], "worker 0": [("rollout: env step", 10, 40)]}
    assert build(events, [0, 100]).processes["worker 0"] == [
        ("wait: learner", 0, 10),
        ("rollout: env step", 10, 40),
        ("wait: learner", 40, 100),
    ]


def test_events_are_cut_at_the_window_s_edges() -> None:
    events = {"driver": [("log", 0, 60), ("other", 60, 200)]}
    assert build(events, [50, 100]).processes["driver"] == [("log", 50, 60), ("other", 60, 100)]


@pytest.mark.parametrize("shift_ms", [-7_000_000, 5_000])
def test_another_machine_s_clock_is_brought_to_the_driver_s(shift_ms: int) -> None:
    shifted = [(name, b + shift_ms * MS, e + shift_ms * MS) for name, b, e in TWO.events["worker 1"]]
    offset = clock_offset(shifted, TWO.events["driver"], "wait: workers")
    assert abs(offset + shift_ms * MS) <= 1 * MS, "within a hop: all that a call and its answer can tell"


def test_one_machine_s_clock_is_left_alone() -> None:
    assert clock_offset(TWO.events["worker 0"], TWO.events["driver"], "wait: workers") == 0


def test_the_critical_path_goes_through_the_slow_worker_and_the_learner() -> None:
    path = critical_path(two())
    assert path[0].begin == two().begin and path[-1].end == two().end
    assert all(one.end == two.begin for one, two in zip(path, path[1:], strict=False))
    wall = 54 + 33 + 4 + 1
    expected = {
        ("worker 1", "env step"): 50 / wall,
        ("learner", "update"): 30 / wall,
        ("worker 1", "serialisation"): 4 / wall,
        ("", "transfer"): 4 / wall,
        ("learner", "GAE"): 3 / wall,
        ("driver", "checkpoint, log"): 1 / wall,
    }
    assert shares(path) == pytest.approx(expected)


def test_with_overlap_the_path_follows_the_longer_of_collection_and_learning() -> None:
    # The worker never rests: the driver's answer from the learner is always there before the fragment's.
    work = [
        (f"rollout: {'env step' if k % 2 == 0 else 'send'}", 10 * k, 10 * k + 9 + k % 2) for k in range(40)
    ]
    gaps = [("wait: learner", 10 * k + 9, 10 * k + 10) for k in range(0, 40, 2)]
    driver, learner = [], []
    at, free = 0, 0
    for k in range(20):
        learner += [("wait: workers", free, at + 1), ("learn: update", at + 1, at + 6)]
        free = at + 6
        driver += [("wait: learner", at, at + 7), ("wait: workers", at + 7, 20 * k + 20)]
        at = 20 * k + 20
    events = {
        "worker 0": sorted(work + gaps, key=lambda event: event[1]),
        "learner": learner,
        "driver": driver,
    }
    timeline = build(events, [100, 200, 300, 380])
    found = shares(critical_path(timeline))
    assert found[("worker 0", "env step")] + found[("worker 0", "serialisation")] > 0.85
    assert ("learner", "update") not in found


def test_in_one_process_the_path_is_the_process() -> None:
    events = {"driver": [("rollout: env step", 0, 70), ("learn: update", 70, 95), ("other", 95, 100)]}
    found = shares(critical_path(build(events, [0, 100])))
    assert found == pytest.approx(
        {("driver", "env step"): 0.7, ("driver", "update"): 0.25, ("driver", "other"): 0.05}
    )


def test_a_session_s_numbers_are_means_over_its_iterations() -> None:
    measured = TWO.measured(config(workers=2, groups=2, num_envs=8))
    assert measured.iterations == TWO.count
    assert measured.iteration_sec == pytest.approx(0.092)
    assert measured.rate == pytest.approx(1024 / 0.092)
    assert measured.seconds("learner")["learn: update"] == pytest.approx(0.030)
    assert measured.groups[1]["rollout: env step"] == pytest.approx(0.050)
