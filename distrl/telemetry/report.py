"""report.html: one self-contained page about a run, from config.json, metrics.jsonl and summary.json.

It needs no network and no other file; a content security policy in the page forbids both. Whatever comes from a
user (env ids, run names, config values) is escaped by the template.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distrl.telemetry.charts import Chart, line_chart
from distrl.telemetry.look import TRAIN, Curve, Look, Picture, Records, column, finite
from distrl.telemetry.page import templates, write_page
from distrl.telemetry.samples import PromptShown, shown_samples
from distrl.telemetry.sinks.jsonl import read_jsonl
from distrl.telemetry.spans import PHASES, Phase, phase, span_table_rows

REPORT_FILE = "report.html"

_MAX_MORE_CHARTS = 12
_LEAST_LINK_PERCENT = 2.0


@dataclass(frozen=True)
class Segment:
    """One span in one process's bar."""

    name: str
    phase: Phase
    shade: int
    percent: float
    text: str


def write_report(run_dir: Path, look: Look = TRAIN, picture: Picture | None = None) -> Path:
    """Writes `report.html` into the run directory (replacing it at once) and returns its path.

    `look` is the command's; `picture` shows an iteration, where one was recorded. Works for a run that has not ended, too: what is not there yet (summary.json, metrics) is left out. Raises
    FileNotFoundError where config.json is missing, ValueError where a file is not JSON.
    """
    html = render_report(
        run_name=run_dir.resolve().name,
        config_file=_read_json(run_dir / "config.json"),
        records=read_jsonl(run_dir / "metrics.jsonl") if (run_dir / "metrics.jsonl").exists() else [],
        summary=_read_json(run_dir / "summary.json") if (run_dir / "summary.json").exists() else {},
        look=look,
        picture=picture,
        samples=shown_samples(run_dir),
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
    look: Look = TRAIN,
    picture: Picture | None = None,
    samples: Sequence[PromptShown] = (),
) -> str:
    """The page as text, from what the run directory's files hold."""
    environment = templates(Path(__file__).parent)
    environment.filters["slug"] = _slug
    config = flatten_config(config_file)
    exit_kind, exit_cause = _exit(summary)
    span_section = _spans(summary.get("spans") or {})
    return environment.get_template("report.html.j2").render(
        run_name=run_name,
        title=look.title(config),
        seed=str(config.get("seed", "?")),
        exit_kind=exit_kind,
        exit_cause=exit_cause,
        reproducibility=str(summary.get("reproducibility", "")),
        tiles=look.tiles(records, summary),
        warnings=[str(warning) for warning in summary.get("warnings") or []],
        curve=_big(look, records, summary),
        no_curve=look.no_curve,
        heading=look.heading,
        charts=_charts(look, records),
        spans=span_section,
        phases=list(zip(PHASES, look.phases, strict=True)),
        chain=_chain(summary),
        picture=picture,
        samples=samples,
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


def _big(look: Look, records: Records, summary: Mapping[str, Any]) -> Chart | None:
    return _chart(look, look.big, records, look.last_dot(summary), num_x_ticks=7, num_y_ticks=6)


def _charts(look: Look, records: Records) -> list[Chart]:
    wanted = [*look.charts]
    for prefix, title, note in look.more:
        keys = sorted({key for record in records for key in record if key.startswith(prefix)})
        wanted += [
            Curve(key, title + key.removeprefix(prefix).replace("_", " "), note)
            for key in keys[:_MAX_MORE_CHARTS]
        ]
    charts = [_chart(look, curve, records) for curve in wanted]
    return [chart for chart in charts if chart is not None]


def _chart(
    look: Look, curve: Curve, records: Records, last_dot: float | None = None, **ticks: int
) -> Chart | None:
    """A curve; what was measured `before/` the first iteration is at 0."""
    x = [float(record[look.x]) for record in records]
    dots = list(_points(x, column(records, curve.dots))) if curve.dots else []
    y = column(records, curve.key)
    if records and finite(before := records[0].get(f"before/{curve.dots or curve.key}")):
        if curve.dots:
            dots.insert(0, (0.0, before))
        else:
            x, y = [0.0, *x], [before, *y]
    if records and last_dot is not None:
        dots.append((x[-1], last_dot))
    note = "; ".join(part for part in (curve.note, curve.dots_note if dots else "") if part)
    return line_chart(
        curve.title,
        x,
        y,
        note=note,
        x_label=look.x_label,
        dots=dots,
        floor=curve.floor,
        whole_x=look.x == "iteration",
        **ticks,
    )


def _points(x: Sequence[float], y: Sequence[float | None]) -> Iterator[tuple[float, float]]:
    for at, value in zip(x, y, strict=True):
        if value is not None:
            yield at, value


def _chain(summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """The longest chain of an iteration; links too short to read are one, at the end."""
    told = summary.get("longest_chain")
    if not told or not told["links"]:
        return None
    links = [(str(one["what"]), 100.0 * float(one["share"])) for one in told["links"]]
    shown = [(what, f"{percent:.0f} %") for what, percent in links if percent >= _LEAST_LINK_PERCENT]
    rest = sum(percent for _, percent in links if percent < _LEAST_LINK_PERCENT)
    return {"links": shown, "rest": f"{rest:.0f} %" if rest >= 0.5 else "", "of": str(told["of"])}


def _slug(kind: str) -> str:
    """A kind of work as a class of the style sheet."""
    return "k-" + kind.replace(",", "").replace("'", "").replace(" ", "-").lower()


def _spans(spans: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """The span table and a bar for each process, colours shared: a phase is a hue, its spans are shades."""
    if not spans:
        return None
    table = span_table_rows(spans)
    shades: dict[str, int] = {}
    for name, _ in table.rows:
        shades[name] = sum(phase(other) == phase(name) for other in shades) % 4
    bars = []
    for index, process in enumerate(table.columns):
        segments = []
        for name, seconds in table.rows:
            percent = table.percent(index, seconds[index])
            if percent:
                text = f"{name}: {seconds[index]:,.2f} s, {percent:.1f} %"
                segments.append(Segment(name, phase(name), shades[name], round(percent, 3), text))
        alt = f"{process}, {table.total[index]:,.1f} seconds: " + "; ".join(
            segment.text for segment in segments
        )
        bars.append(
            {"process": process, "wall": f"{table.total[index]:,.1f} s", "segments": segments, "alt": alt}
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


def _value_text(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)
