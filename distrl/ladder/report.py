"""The ladder's report: one self-contained page, and all its numbers as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distrl import machine
from distrl.envs import EnvSpec
from distrl.ladder.results import RungResult, as_numbers, grid, read_rungs
from distrl.ladder.runs import SCHEMA, Settings
from distrl.run_directory import write_json_atomic
from distrl.telemetry.charts import nice_ticks, tick_text
from distrl.telemetry.console import duration
from distrl.telemetry.page import templates, write_page
from distrl.telemetry.sinks.jsonl import as_json

REPORT_FILE = "report.html"
NUMBERS_FILE = "ladder.json"
_BOX = 1000.0
_HOVER_PLACES = 101

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Scale:
    """From env steps and returns to percent of a plot, from the left and from the top."""

    right: float
    low: float
    high: float

    @classmethod
    def of(cls, rungs: Sequence[RungResult], total_steps: int, threshold: float | None) -> Scale:
        """Room for every seed's curve and the threshold."""
        values = np.concatenate([run.curve_G for rung in rungs for run in rung.runs])
        low, high = float(values.min()), float(values.max())
        if threshold is not None:
            low, high = min(low, threshold), max(high, threshold)
        margin = 0.04 * (high - low) or 1.0
        bottom = 0.0 if 0 <= low < 0.25 * high else low - margin
        return cls(float(total_steps), bottom, high + margin)

    def left(self, steps: Any) -> Any:
        """Percent from the left."""
        return 100.0 * np.asarray(steps, np.float64) / self.right

    def top(self, value: Any) -> Any:
        """Percent from the top."""
        return 100.0 * (1.0 - (np.asarray(value, np.float64) - self.low) / (self.high - self.low))


def write_ladder_report(out: Path, settings: Settings, run_dirs: Sequence[Path]) -> Path | None:
    """Writes `report.html` and `ladder.json` into `out` from finished runs; None where there are none."""
    threshold = EnvSpec(settings.env).registered().reward_threshold
    rungs = read_rungs(run_dirs, settings.total_steps, threshold)
    if not rungs:
        return None
    facts = {
        "command": " ".join(["distrl", *sys.argv[1:]]),
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_revision": machine.git_revision(),
        "versions": machine.versions(),
        "machine": machine.machine(),
    }
    numbers = {
        "schema": SCHEMA,
        **asdict(settings),
        "reward_threshold": threshold,
        "grid": grid(settings.total_steps),
        "rungs": as_numbers(rungs),
        **facts,
    }
    write_json_atomic(out / NUMBERS_FILE, as_json(numbers))
    html = render(settings, rungs, threshold, facts)
    path = out / REPORT_FILE
    write_page(path, html)
    return path


def render(
    settings: Settings, rungs: Sequence[RungResult], threshold: float | None, facts: dict[str, Any]
) -> str:
    """The page as text."""
    environment = templates(Path(__file__).parent)
    scale = Scale.of(rungs, settings.total_steps, threshold)
    num_seeds = max(len(rung.runs) for rung in rungs)
    return environment.get_template("ladder.html.j2").render(
        env=settings.env,
        total_steps=f"{settings.total_steps:,}",
        total_short=tick_text(settings.total_steps),
        num_seeds=num_seeds,
        num_runs=sum(len(rung.runs) for rung in rungs),
        threshold=None if threshold is None else f"{threshold:g}",
        who="in-process" if settings.workers == 0 else f"{settings.workers} Ray workers each",
        wall=duration(sum(run.wall_sec for rung in rungs for run in rung.runs)),
        threshold_top=None if threshold is None else round(float(scale.top(threshold)), 3),
        y_ticks=[(round(float(scale.top(y)), 3), tick_text(y)) for y in nice_ticks(scale.low, scale.high, 6)],
        few_y_ticks=[
            (round(float(scale.top(y)), 3), tick_text(y)) for y in nice_ticks(scale.low, scale.high, 4)
        ],
        x_ticks=[(round(float(scale.left(x)), 3), tick_text(x)) for x in nice_ticks(0, scale.right, 6)],
        few_x_ticks=[(round(float(scale.left(x)), 3), tick_text(x)) for x in nice_ticks(0, scale.right, 3)],
        value_ticks=[
            (round(100 - float(scale.top(y)), 3), tick_text(y)) for y in nice_ticks(scale.low, scale.high, 7)
        ],
        rungs=[_rung(index, rung, settings.total_steps, scale) for index, rung in enumerate(rungs)],
        hover=json.dumps(_hover(rungs, settings.total_steps, scale)),
        alt=_in_words(settings, rungs),
        facts=[
            ("command", facts["command"]),
            ("made", facts["made"]),
            ("git revision", facts["git_revision"] or "none"),
            *((f"machine: {name}", str(value)) for name, value in facts["machine"].items()),
            *facts["versions"].items(),
        ],
    )


def _rung(index: int, rung: RungResult, total_steps: int, scale: Scale) -> dict[str, Any]:
    grid_G = grid(total_steps)
    left_G = scale.left(grid_G)
    median = rung.median_solved_at
    steps = sum(run.env_steps for run in rung.runs)
    wall_sec = sum(run.wall_sec for run in rung.runs)
    return {
        "index": index,
        "algo": rung.algo,
        "idea": rung.idea,
        "line": _path(left_G, scale.top(rung.mean_G)),
        "band": _path(
            np.concatenate([left_G, left_G[::-1]]), scale.top(np.concatenate([rung.high_G, rung.low_G[::-1]]))
        ) + "Z",
        "seeds": [_path(left_G, scale.top(run.curve_G)) for run in rung.runs],
        "solved_dots": [
            (round(float(scale.left(run.solved_at)), 3), f"seed {run.seed} solved it at {run.solved_at:,} env steps")
            for run in rung.runs
            if run.solved_at is not None
        ],
        "final_dots": [
            (round(100 - float(scale.top(run.final_return)), 3), f"seed {run.seed}: {run.final_return:,.1f}")
            for run in rung.runs
        ],
        "final_mean": f"{rung.final_mean:,.1f}",
        "final_left": round(100 - float(scale.top(rung.final_mean)), 3),
        "final_low": round(100 - float(scale.top(rung.final_interval[0])), 3),
        "final_high": round(100 - float(scale.top(rung.final_interval[1])), 3),
        "final_interval": f"{rung.final_interval[0]:,.1f} to {rung.final_interval[1]:,.1f}",
        "lowest": f"{min(run.final_return for run in rung.runs):,.1f}",
        "highest": f"{max(run.final_return for run in rung.runs):,.1f}",
        "num_seeds": len(rung.runs),
        "num_solved": rung.num_solved,
        "median": "–" if median is None else f"{median:,.0f}",
        "solved_at": [(run.seed, None if run.solved_at is None else tick_text(run.solved_at)) for run in rung.runs],
        "speed": f"{steps / wall_sec:,.0f}" if wall_sec else "–",
    }  # fmt: skip


def _path(left: Float, top: Float) -> str:
    """SVG path data in a box of 1000 by 1000."""
    x, y = _BOX * np.asarray(left) / 100, _BOX * np.asarray(top) / 100
    return "M" + "L".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))


def _hover(rungs: Sequence[RungResult], total_steps: int, scale: Scale) -> list[list[Any]]:
    """[[left percent, steps, [return of each rung, ...]], ...]"""
    grid_G = grid(total_steps)
    places = np.unique(np.linspace(0, len(grid_G) - 1, _HOVER_PLACES).round().astype(int))
    return [
        [
            round(float(scale.left(grid_G[place])), 2),
            f"{grid_G[place]:,.0f}",
            [f"{rung.mean_G[place]:,.1f}" for rung in rungs],
        ]
        for place in places
    ]


def _in_words(settings: Settings, rungs: Sequence[RungResult]) -> str:
    ends = "; ".join(f"{rung.algo} {rung.final_mean:,.1f}" for rung in rungs)
    return f"Mean return over env steps on {settings.env}; after {settings.total_steps:,} steps: {ends}."
