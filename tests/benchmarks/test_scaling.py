"""benchmarks/scaling.py: its points, its limit and its page, and one measured point."""

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
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture(scope="module")
def scaling() -> ModuleType:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        spec = importlib.util.spec_from_file_location("benchmarks_scaling", BENCHMARKS / "scaling.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses look there for their annotations
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(BENCHMARKS))


def test_the_curves_cover_what_is_asked_and_no_iteration_is_too_large(scaling: ModuleType) -> None:
    curves = scaling.curves(1)
    ends = {name: (curve.points[0].x, curve.points[-1].x) for name, curve in curves.items()}
    assert ends["envs"] == (1, 65536) and ends["workers"] == (0, 8) and ends["width"] == (32, 1024)
    for point in curves["envs"].points:
        arguments = dict(zip(point.arguments[::2], point.arguments[1::2], strict=True))
        rows = int(arguments["--num-envs"]) * int(arguments["--num-steps"])
        assert rows <= 2**20 and rows % 4 == 0


def test_a_point_stands_beside_its_limit_and_failed_ones_are_left_out(scaling: ModuleType) -> None:
    points = [
        {"x": 8, "flops_per_env_step": 1000, "steps_per_sec": {"median": 5e6}},
        {"x": 1, "flops_per_env_step": 2000, "steps_per_sec": {"median": 1e6}},
        {"x": 4, "flops_per_env_step": 1000, "failed": "out of memory"},
    ]
    whole = scaling.with_limit(points, gflops=10.0)
    assert [one["x"] for one in whole] == [1, 8]
    assert [one["limit_steps_per_sec"] for one in whole] == [5_000_000, 10_000_000]
    assert [one["share_of_limit"] for one in whole] == [0.2, 0.5]


def test_numbers_on_the_axis_are_short(scaling: ModuleType) -> None:
    assert [scaling.short(value) for value in (100, 1500, 2e6, 3e9)] == ["100", "1.5k", "2M", "3G"]


def test_a_failed_point_says_why(scaling: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    point = scaling.Point(1, ("--nonsense", "1"), scaling.curves(1)["envs"].points[0].work)
    measured = scaling.measure_point(point, 0.1, 1)
    assert "--nonsense" in measured["failed"] and measured["x"] == 1


@pytest.mark.slow
def test_points_are_measured_kept_and_drawn(tmp_path: Path) -> None:
    out = tmp_path / "scaling.json"
    command = [
        sys.executable, str(BENCHMARKS / "scaling.py"), "--only", "episode", "--points", "1", "--seconds", "0.1",
        "--repeats", "1", "--threads", "1", "--out", str(out),
    ]  # fmt: skip
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=290)
    assert first.returncode == 0, first.stderr
    record: dict[str, Any] = json.loads(out.read_text())
    (point,) = record["curves"]["episode"]
    assert point["x"] == 2 and point["steps_per_sec"]["median"] > 0 and len(point["repeats"]) == 1
    assert point["settings"]["paths"]["rollout"] == "fused"
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=290)
    assert again.returncode == 0 and "steps/s" not in again.stdout  # nothing is measured twice
