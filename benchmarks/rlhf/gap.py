"""The certificate as a section of the report: the exact gap to the optimum, from the results of `benchmarks/certificate.py`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from benchmarks.rlhf.pictures import Picture, Series, picture

RESULTS = Path(__file__).resolve().parents[1] / "results" / "certificate.json"
TARGET = 0.02  # of the gap may be left
LEAST = 1e-4  # of the gap: where the logarithmic axis ends
TICKS = {1.0: "100 %", 0.1: "10 %", 0.02: "2 %", 0.01: "1 %", 0.001: "0.1 %"}
COLOURS = ("one", "two", "three", "four", "five")


def section() -> dict[str, Any] | None:
    """What the template shows; None where the certificate has no results."""
    return context(json.loads(RESULTS.read_text())) if RESULTS.is_file() else None


def context(found: dict[str, Any]) -> dict[str, Any]:
    """Charts, the table of shares, and how it was made."""
    sound = [case for case in found["cases"] if not case["bootstraps"]]
    planted = [case for case in found["cases"] if case["bootstraps"]]
    least = min(min(_log_left(case)) for case in found["cases"])  # axes that can be compared
    charts = [_chart("PPO as it is", "Faint: the second and third task and seed.", sound, least)]
    if planted:
        title = "With a fault planted"
        note = "Seed 0: what the length limit cuts is scored, and bootstraps beyond it."
        charts.append(_chart(title, note, planted, least))
    settings = found["settings"]
    worst = min(case["closed"] for case in sound)
    return {
        "charts": charts,
        "header": ["beta", *(f"seed {seed}" for seed in _seeds(sound)), *(["with the fault"] if planted else [])],
        "rows": [_row(beta, sound, planted) for beta in _betas(sound)],
        "worst": f"{math.floor(1e4 * worst) / 100:.2f} %",
        "asked": f"{100 * (1 - TARGET):.0f} %",
        "count": f"{settings['vocabulary'] ** settings['length']:,}",
        "command": found["command"],
        **settings,
    }  # fmt: skip


def _betas(cases: list[dict[str, Any]]) -> list[float]:
    return sorted({case["beta"] for case in cases})


def _seeds(cases: list[dict[str, Any]]) -> list[int]:
    return sorted({case["seed"] for case in cases})


def _row(beta: float, sound: list[dict[str, Any]], planted: list[dict[str, Any]]) -> list[str]:
    closed = {case["seed"]: case["closed"] for case in sound if case["beta"] == beta}
    shares = [closed.get(seed) for seed in _seeds(sound)]
    shares += [next((case["closed"] for case in planted if case["beta"] == beta), None)] if planted else []
    return [f"{beta:g}", *("" if share is None else f"{100 * share:.2f} %" for share in shares)]


def _log_left(case: dict[str, Any]) -> list[float]:
    return [math.log10(max(1 - closed, LEAST)) for closed in case["closed_after_each_iteration"]]


def _chart(title: str, note: str, cases: list[dict[str, Any]], least: float) -> Picture:
    """What is left of the gap after each iteration, on a logarithmic axis."""
    colours = dict(zip(_betas(cases), COLOURS, strict=False))
    series = []
    for case in cases:
        first = case["seed"] == min(_seeds(cases))
        line = [(float(i), share) for i, share in enumerate(_log_left(case))]
        name = f"beta {case['beta']:g}" if first else ""
        series.append(Series(name, colours[case["beta"]], line, kind="" if first else "faint"))
    last = max(len(case["closed_after_each_iteration"]) for case in cases) - 1.0
    level = math.log10(TARGET)
    series.append(
        Series(
            f"{TARGET:.0%} left".replace("%", " %"), "control", [(0.0, level), (last, level)], kind="dashed"
        )
    )
    ticks = [(math.log10(share), text) for share, text in TICKS.items()]
    alt = f"{title}: share of the gap that is left over the iteration"
    return picture(
        title, series, "iteration", "share of the gap that is left", note, alt, y_ticks=ticks, least_y=least
    )
