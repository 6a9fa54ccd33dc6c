"""benchmarks/comparison: what measurements mean, what the limit is, and what fits a time."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from comparison import measuring  # noqa: E402
from comparison.contestants import Contestant, LimitTarget, Section, Target  # noqa: E402
from comparison.judging import judge, judge_limit, share_of_limit, summarise, table  # noqa: E402
from comparison.limit import actor_critic, nature_cnn, shared_trunk  # noqa: E402
from comparison.measuring import Pace, fit, scout, take_turns, worth  # noqa: E402
from comparison.sections import SECTIONS  # noqa: E402


def row(*values: float, metric: str = "steps_per_sec") -> dict[str, Any]:
    turns = [{"worth": value} for value in values]
    ordered = sorted(values)
    return {
        metric: {"median": ordered[len(values) // 2], "min": ordered[0], "max": ordered[-1]},
        "turns": turns,
        "num_envs": 8,
        "steps_per_cpu_sec": None,
    }


def line(rate: float = 100.0, **more: Any) -> dict[str, Any]:
    return {
        "peer": "distrl", "version": "1", "num_envs": 8, "env_steps": 200, "seconds": 2.0, "cpu_seconds": 1.0,
        "steps_per_sec": rate, "settings": {"workers": 0}, "load_average_before": 0.1, "worth": rate,
    } | more  # fmt: skip


def section(*contestants: Contestant, **more: Any) -> Section:
    return Section("made", "made up", actor_critic(4, 2, (64, 64), 4), contestants, (), **more)


def echo(name: str, **printed: Any) -> Contestant:
    """A contestant of a real process that prints one line."""

    class Echo(Contestant):
        @property
        def command(self) -> list[str]:
            return [sys.executable, "-c", f"print({json.dumps(line(**printed))!r})"]

    return Echo(name, None, (json.dumps(printed),))


def test_a_ratio_is_formed_within_a_turn_against_the_fastest_peer() -> None:
    rows = {"ours": row(300.0, 100.0, 200.0), "slow": row(50.0, 50.0, 50.0), "fast": row(100.0, 100.0, 100.0)}
    verdict = judge(Target(("ours",), ("slow", "fast"), 2.0), rows, {})
    assert verdict["theirs"] == "fast"
    assert verdict["ratios"] == [3.0, 1.0, 2.0]
    assert verdict["median_ratio"] == 2.0 and verdict["met"]
    assert not judge(Target(("ours",), ("slow", "fast"), 2.1), rows, {})["met"]


def test_in_a_race_the_fastest_has_the_fewest_seconds() -> None:
    rows = {
        "ours": row(2.0, 4.0, 3.0, metric="seconds"),
        "slow": row(20.0, 20.0, 20.0, metric="seconds"),
        "fast": row(8.0, 8.0, 9.0, metric="seconds"),
    }
    verdict = judge(Target(("ours",), ("slow", "fast"), 3.0), rows, {}, "seconds")
    assert verdict["theirs"] == "fast"
    assert verdict["ratios"] == [4.0, 2.0, 3.0] and verdict["met"]


def test_a_race_that_is_not_won_takes_all_of_its_time() -> None:
    assert worth(line(seconds=7.0, reached=476.0), "seconds", 120.0) == 7.0
    assert worth(line(seconds=7.0, reached=None), "seconds", 120.0) == 120.0


def test_a_target_is_not_met_where_a_peer_was_left_out() -> None:
    rows = {"ours": row(300.0), "slow": row(50.0)}
    target = Target(("ours",), ("slow", "fast"), 2.0)
    verdict = judge(target, rows, {"fast": "no environment"})
    assert verdict["missing"] == ["fast"] and not verdict["met"]
    assert not judge(target, {"ours": row(300.0)}, {"slow": "", "fast": ""})["met"]
    assert not judge(target, {"slow": row(50.0)}, {"ours": "it failed"})["met"]


def test_the_table_says_where_a_peer_wins_and_who_was_left_out() -> None:
    rows = {"ours": row(50.0), "theirs": row(100.0)}
    verdicts = [
        judge(Target(("ours",), ("theirs",), 1.5), rows, {}),
        judge_limit(LimitTarget("ours", 0.3), {"ours": rows["ours"] | {"share_of_limit": 0.25}}),
    ]
    text = table(section(note="a note"), rows, verdicts, {"absent": "no environment\nmore"})
    assert "theirs WINS" in text and "MISSED" in text
    assert "25.0%, MISSED" in text
    assert "absent" in text and "no environment" in text and "a note" in text
    assert text.index("theirs") < text.index("ours")  # the fastest first


def test_every_repeat_is_kept_and_a_process_of_workers_has_no_cpu_rate() -> None:
    kept = summarise([line(100.0), line(300.0), line(200.0)])
    assert kept["steps_per_sec"] == {"median": 200.0, "min": 100.0, "max": 300.0}
    assert [turn["steps_per_sec"] for turn in kept["turns"]] == [100.0, 300.0, 200.0]
    assert kept["steps_per_cpu_sec"] == 200.0
    assert summarise([line(settings={"workers": 2})])["steps_per_cpu_sec"] is None
    assert summarise([line(cpu_seconds=0.0)])["steps_per_cpu_sec"] is None


def test_the_operations_of_an_env_step_are_those_of_its_products() -> None:
    # 4-64-64-2 and 4-64-64-1: weights 4480 + 4416; a forward has two operations for each
    work = actor_critic(4, 2, (64, 64), epochs=4)
    assert work.rollout_flops == 2 * (4480 + 4416)
    forward_and_backward = 3 * work.rollout_flops - 2 * (256 + 256)  # no gradient of the observations
    assert work.update_flops == 4 * forward_and_backward
    assert work.flops_per_step == work.rollout_flops + work.update_flops
    assert shared_trunk(4, 2, (128,), 1).rollout_flops == 2 * (4 * 128 + 128 * 3)
    # Nature-CNN: about 9.3 million multiplications an observation
    assert 9.0e6 < nature_cnn(4, 4).rollout_flops / 2 < 9.5e6


def test_a_share_of_the_limit_is_operations_used_over_operations_to_be_had() -> None:
    assert share_of_limit(1e6, 100_000, 200.0) == 0.5
    assert judge_limit(LimitTarget("ours", 0.5), {"ours": {"share_of_limit": 0.5}})["met"]
    assert not judge_limit(LimitTarget("ours", 0.5), {})["met"]


def test_every_section_names_its_contestants_in_its_targets_and_its_runners_exist() -> None:
    for one in SECTIONS.values():
        for target in one.targets:
            assert set(one.names) >= {*target.ours, *target.theirs}, one.name
        assert set(one.names) >= {limit.ours for limit in one.limits}
        for contestant in one.contestants:
            assert Path(contestant.command[1]).exists()
        for name in one.names:
            settings = [candidate.arguments for candidate in one.candidates(name)]
            assert len(set(settings)) == len(settings), f"{one.name}: a candidate of {name} is there twice"


def test_a_budget_shortens_windows_and_then_takes_turns_away() -> None:
    sections = list(SECTIONS.values())
    pace = Pace()
    whole = sum(pace.cost_sec(one) for one in sections)
    assert fit(pace, sections, whole) == pace
    tight = fit(pace, sections, 0.6 * whole)
    assert tight.seconds < pace.seconds
    assert sum(tight.cost_sec(one) for one in sections) <= 0.6 * whole
    least = fit(pace, sections, 0.0)
    assert least.repeats == 1 and least.seconds == 3.0


def test_scouting_keeps_the_fastest_setting_and_is_not_repeated() -> None:
    made = section(echo("a", rate=100.0), echo("a", rate=300.0), echo("b", rate=50.0))
    failures: dict[str, str] = {}
    chosen, scouted = scout(made, Pace(scout_seconds=0.1), {}, failures)
    assert [one.arguments for one in chosen] == [('{"rate": 300.0}',), ('{"rate": 50.0}',)]
    assert list(scouted["a"].values()) == [100.0, 300.0] and not failures
    known = {"a": dict.fromkeys(scouted["a"], 1.0) | {next(iter(scouted["a"])): 9.0}}
    again, _ = scout(made, Pace(scout_seconds=0.1), known, failures)
    assert again[0].arguments == ('{"rate": 100.0}',)


def test_contestants_take_turns_and_one_that_fails_is_left_out() -> None:
    class Fails(Contestant):
        @property
        def command(self) -> list[str]:
            return [sys.executable, "-c", "import sys; sys.exit('it broke')"]

    made = section(echo("a", rate=100.0), Fails("broken", None, ()))
    failures: dict[str, str] = {}
    lines = take_turns(made, list(made.contestants), Pace(repeats=2), failures)
    assert [one["worth"] for one in lines["a"]] == [100.0, 100.0]
    assert "broken" not in lines and "it broke" in failures["broken"]


def test_no_turn_is_begun_for_which_there_is_no_time() -> None:
    made = section(echo("a", rate=100.0))
    lines = take_turns(made, list(made.contestants), Pace(repeats=3), {}, lambda _seconds: False)
    assert len(lines["a"]) == 1


def test_a_contestant_without_its_environment_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    class Absent(Contestant):
        @property
        def python(self) -> Path:
            return Path("/nowhere/python")

    failures: dict[str, str] = {}
    chosen, _ = scout(section(Absent("absent", "absent", ())), Pace(), {}, failures)
    assert not chosen and "setup.sh" in failures["absent"]


def test_the_repository_is_where_the_runners_are_run() -> None:
    assert measuring.ROOT == ROOT
