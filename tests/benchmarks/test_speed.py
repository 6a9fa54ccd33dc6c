"""benchmarks/speed.py: its arithmetic, and our own runner for real."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def speed() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmarks_speed", ROOT / "benchmarks" / "speed.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there for their annotations
    spec.loader.exec_module(module)
    return module


def row(*rates: float) -> dict[str, Any]:
    turns = [{"steps_per_sec": rate} for rate in rates]
    return {"steps_per_sec": {"median": sorted(rates)[len(rates) // 2]}, "turns": turns}


def test_a_ratio_is_formed_within_a_turn_against_the_fastest_peer(speed: ModuleType) -> None:
    rows = {"ours": row(300.0, 100.0, 200.0), "slow": row(50.0, 50.0, 50.0), "fast": row(100.0, 100.0, 100.0)}
    verdict = speed.judge(speed.Target(("ours",), ("slow", "fast"), 2.0), rows, [])
    assert verdict["theirs"] == "fast"
    assert verdict["ratios"] == [3.0, 1.0, 2.0]
    assert verdict["median_ratio"] == 2.0 and verdict["met"]
    assert not speed.judge(speed.Target(("ours",), ("slow", "fast"), 2.1), rows, [])["met"]


def test_a_target_is_not_met_where_a_peer_was_left_out(speed: ModuleType) -> None:
    rows = {"ours": row(300.0), "slow": row(50.0)}
    target = speed.Target(("ours",), ("slow", "fast"), 2.0)
    verdict = speed.judge(target, rows, ["fast"])
    assert verdict["missing"] == ["fast"] and not verdict["met"]
    assert not speed.judge(target, {"ours": row(300.0)}, ["slow", "fast"])["met"]


def test_every_target_names_contestants_of_its_section(speed: ModuleType) -> None:
    for name, targets in speed.TARGETS.items():
        contestants = {contestant.name for contestant in speed.SECTIONS[name]}
        for target in targets:
            assert contestants >= {*target.ours, *target.theirs}


def test_the_runner_of_our_side_counts_the_steps_of_whole_iterations() -> None:
    command = [
        sys.executable, str(ROOT / "benchmarks/peers/distrl_speed.py"),
        "--num-envs", "4", "--num-steps", "16", "--seconds", "0.2", "--warmup", "0.1",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout.splitlines()[-1])
    assert line["peer"] == "distrl" and line["settings"]["workers"] == 0
    assert line["env_steps"] > 0 and line["env_steps"] % (4 * 16) == 0
    assert line["steps_per_sec"] == pytest.approx(line["env_steps"] / line["seconds"], rel=0.01)
