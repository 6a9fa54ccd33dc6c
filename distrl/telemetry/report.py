"""report.html: one self-contained page about a run, from config.json, metrics.jsonl and summary.json.

It needs no network and no other file; a content security policy in the page forbids both. Whatever comes from a
user (env ids, run names, config values) is escaped by the template.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distrl.telemetry.charts import Chart, line_chart
from distrl.telemetry.console import duration
from distrl.telemetry.page import templates, write_page
from distrl.telemetry.sinks.jsonl import read_jsonl
from distrl.telemetry.spans import Phase, phase, span_table_rows

REPORT_FILE = "report.html"

# key, title, what a reader should know
_CHARTS: tuple[tuple[str, str, str], ...] = (
    ("episode_length_mean", "Episode length", "mean steps of the last 100 episodes"),
    ("policy_loss", "Policy loss", "the surrogate objective, negated"),
    ("value_loss", "Value loss", "squared error of the critic on its targets"),
    ("entropy", "Entropy", "how undecided the policy is; falls as it commits"),
    ("approx_kl", "Approximate KL", "how far an update moved the policy"),
    ("clip_fraction", "Clip fraction", "share of samples whose ratio left the clip range"),
    ("explained_variance", "Explained variance", "of the returns, by the critic; 1 is perfect"),
    ("value_mean", "Mean value", "what the critic expects, on average"),
    ("steps_per_sec", "Steps per second", "env steps, of all envs, by wall time"),
)
_MAX_INFO_CHARTS = 12
_ALGO_NAMES = {
    "ppo": "PPO",
    "a2c": "A2C",
    "actor-critic": "Actor-critic",
    "reinforce": "REINFORCE",
    "reinforce-baseline": "REINFORCE with a baseline",
}


@dataclass(frozen=True)
class Tile:
    """A headline number."""

    label: str
    value: str
    detail: str = ""


@dataclass(frozen=True)
class Segment:
    """One span in one process's bar."""

    name: str
    phase: Phase
    shade: int
    percent: float
    text: str


def write_report(run_dir: Path) -> Path:
    """Writes `report.html` into the run directory (replacing it at once) and returns its path.

    Works for a run that has not ended, too: what is not there yet (summary.json, metrics) is left out. Raises
    FileNotFoundError where config.json is missing, ValueError where a file is not JSON.
    """
    html = render_report(
        run_name=run_dir.resolve().name,
        config_file=_read_json(run_dir / "config.json"),
        records=read_jsonl(run_dir / "metrics.jsonl") if (run_dir / "metrics.jsonl").exists() else [],
        summary=_read_json(run_dir / "summary.json") if (run_dir / "summary.json").exists() else {},
    )
    path = run_dir / REPORT_FILE
    write_page(path, html)
    return path


def render_report(
    *,
    run_name: str,
    config_file: Mapping[str, Any],
    records: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any],
) -> str:
    """The page as text, from what the run directory's files hold."""
    environment = templates(Path(__file__).parent)
    config = flatten_config(config_file)
    exit_kind, exit_cause = _exit(summary)
    span_section = _spans(summary.get("spans") or {})
    return environment.get_template("report.html.j2").render(
        run_name=run_name,
        env=str(config.get("env", "?")),
        algo=_ALGO_NAMES.get(str(config.get("algo")), str(config.get("algo", "?"))),
        seed=str(config.get("seed", "?")),
        exit_kind=exit_kind,
        exit_cause=exit_cause,
        reproducibility=str(summary.get("reproducibility", "")),
        tiles=_tiles(records, summary),
        warnings=[str(warning) for warning in summary.get("warnings") or []],
        curve=_curve(records, summary),
        charts=_charts(records),
        spans=span_section,
        config=[(name, _value_text(value)) for name, value in config.items()],
        facts=_facts(summary),
    )


def flatten_config(config_file: Mapping[str, Any]) -> dict[str, Any]:
    """config.json as flat names: `{"config": {"env": ..., "recipe": {"gamma": ...}}}` -> `{"env", "gamma"}`.

    The recipe's fields are flags of their own, so they go by their own names; other nesting is dotted.
    """
    inner = config_file.get("config")
    flat: dict[str, Any] = {}

    def visit(prefix: str, mapping: Mapping[str, Any]) -> None:
        for key, value in mapping.items():
            name = key if prefix in ("", "recipe.") else f"{prefix}{key}"
            if isinstance(value, Mapping) and value:
                visit(f"{name}.", value)
            elif name not in ("schema", "sources"):
                flat[name] = value

    visit(
        "",
        {k: v for k, v in (inner if isinstance(inner, Mapping) else config_file).items() if k != "sources"},
    )
    return flat


def _exit(summary: Mapping[str, Any]) -> tuple[str, str]:
    """How the run ended in a word (a class of the badge), and the cause where it failed."""
    reason = str(summary.get("exit_reason", "not finished"))
    word, _, cause = reason.partition(":")
    if word.startswith("failed") or len(reason) > 40:
        return "failed", cause.strip() or reason
    return reason, ""


def _tiles(records: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> list[Tile]:
    last = records[-1] if records else {}
    tiles = [Tile("Final return", _number(last.get("episode_return_mean"), 1), "last 100 episodes")]
    evaluation = summary.get("evaluation")
    if isinstance(evaluation, Mapping) and _finite(evaluation.get("return_mean")):
        spread = f" ± {_number(evaluation['return_std'], 1)}" if _finite(evaluation.get("return_std")) else ""
        episodes = evaluation.get("episodes")
        detail = f"{episodes} episodes" if episodes is not None else ""
        tiles.insert(0, Tile("Evaluated return", _number(evaluation["return_mean"], 1) + spread, detail))
    env_steps: Any = last.get("env_steps")
    wall_sec: Any = last.get("wall_sec")
    tiles.append(Tile("Env steps", _number(env_steps, 0), f"{_number(last.get('iteration'), 0)} iterations"))
    if _finite(env_steps) and _finite(wall_sec) and wall_sec > 0:
        tiles.append(Tile("Steps per second", _number(env_steps / wall_sec, 0), "mean over the whole run"))
    tiles.append(Tile("Wall time", duration(wall_sec if _finite(wall_sec) else None), "resumes included"))
    return tiles


def _curve(records: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> Chart | None:
    evaluations = [
        (float(record["env_steps"]), float(record["eval/return_mean"]))
        for record in records
        if _finite(record.get("eval/return_mean"))
    ]
    at_the_end = summary.get("evaluation")
    if records and isinstance(at_the_end, Mapping) and _finite(at_the_end.get("return_mean")):
        evaluations.append((float(records[-1]["env_steps"]), float(at_the_end["return_mean"])))
    return line_chart(
        "Episode return",
        _steps(records),
        _column(records, "episode_return_mean"),
        note="mean of the last 100 episodes, raw rewards" + ("; dots: evaluations" if evaluations else ""),
        dots=evaluations,
        num_x_ticks=7,
        num_y_ticks=6,
    )


def _charts(records: Sequence[Mapping[str, Any]]) -> list[Chart]:
    info_keys = sorted({key for record in records for key in record if key.startswith("info/")})[
        :_MAX_INFO_CHARTS
    ]
    wanted = (*_CHARTS, *((key, key.removeprefix("info/"), "from the env's info, mean") for key in info_keys))
    charts = []
    for key, title, note in wanted:
        floor = -1.0 if key == "explained_variance" else None
        chart = line_chart(title, _steps(records), _column(records, key), note=note, floor=floor)
        if chart is not None:
            charts.append(chart)
    return charts


def _spans(spans: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """The span table and a bar for each process, colours shared: a phase is a hue, its spans are shades."""
    if not spans:
        return None
    table = span_table_rows(spans)
    shades: dict[str, int] = {}
    for name, _ in table.rows:
        shades[name] = sum(phase(other) == phase(name) for other in shades) % 4
    bars = []
    for index, column in enumerate(table.columns):
        segments = []
        for name, seconds in table.rows:
            percent = table.percent(index, seconds[index])
            if percent:
                text = f"{name}: {seconds[index]:,.2f} s, {percent:.1f} %"
                segments.append(Segment(name, phase(name), shades[name], round(percent, 3), text))
        alt = f"{column}, {table.total[index]:,.1f} seconds: " + "; ".join(
            segment.text for segment in segments
        )
        bars.append(
            {"process": column, "wall": f"{table.total[index]:,.1f} s", "segments": segments, "alt": alt}
        )
    rows = [
        {
            "name": name,
            "phase": phase(name),
            "shade": shades[name],
            "cells": [
                None if sec is None else (f"{sec:,.2f}", f"{table.percent(i, sec) or 0.0:.1f} %")
                for i, sec in enumerate(seconds)
            ],
        }
        for name, seconds in table.rows
    ]
    return {
        "columns": table.columns,
        "bars": bars,
        "rows": rows,
        "total": [f"{sec:,.2f}" for sec in table.total],
    }


def _facts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What reproduces the run: revision, digest, versions, machine."""
    facts: list[tuple[str, str]] = []
    for key in ("parameters_sha256", "git_revision", "reproducibility"):
        if summary.get(key):
            facts.append((key.replace("_", " "), _value_text(summary[key])))
    for key in ("machine", "versions"):
        value = summary.get(key)
        if isinstance(value, Mapping):
            facts += [
                (f"{name}" if key == "versions" else f"machine: {name}", _value_text(v))
                for name, v in value.items()
            ]
        elif value:
            facts.append((key, _value_text(value)))
    return facts


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} must hold JSON, got: {error}; restore it or run the report on another run"
        ) from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value


def _steps(records: Sequence[Mapping[str, Any]]) -> list[float]:
    return [float(record["env_steps"]) for record in records]


def _column(records: Sequence[Mapping[str, Any]], key: str) -> list[float | None]:
    return [float(record[key]) if _finite(record.get(key)) else None for record in records]


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _number(value: Any, decimals: int) -> str:
    return f"{value:,.{decimals}f}" if _finite(value) else "–"


def _value_text(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)
