"""Several curves and points in one chart, in the manner of `distrl.telemetry.charts`: an SVG that stretches, HTML labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from distrl.telemetry.charts import nice_ticks, tick_text

Place = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """A line, dots, or both, in one of the style sheet's colours; `kind` may be "dashed" or "faint".

    One without a name is not in the legend.
    """

    name: str
    colour: str
    line: Sequence[Place] = ()
    dots: Sequence[Place] = ()
    notes: Sequence[str] = ()  # what a dot says when pointed at
    kind: str = ""


@dataclass(frozen=True)
class Drawn:
    """A series in percent of the plot, from the left and from the top."""

    name: str
    colour: str
    kind: str
    path: str
    dots: list[tuple[float, float, str]]


@dataclass(frozen=True)
class Picture:
    """A chart ready for the template."""

    title: str
    note: str
    alt: str
    x_label: str
    y_label: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    series: list[Drawn]
    marks: list[tuple[float, str]] = field(default_factory=list)  # upright lines: left, text


def picture(
    title: str,
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    note: str = "",
    alt: str = "",
    marks: Sequence[Place | tuple[float, str]] = (),
    y_ticks: Sequence[tuple[float, str]] | None = None,
    least_y: float = math.inf,
) -> Picture:
    """The chart of all series that have a finite place. ValueError where none has.

    `y_ticks` are instead of round numbers; the y axis reaches down to `least_y` at least.
    """
    every = [place for one in series for place in (*one.line, *one.dots) if all(map(math.isfinite, place))]
    if not every:
        raise ValueError(f"{title}: no series has a finite place")
    x_high = max(x for x, _ in every) * 1.03 or 1.0
    low, high = min(least_y, *(y for _, y in every)), max(y for _, y in every)
    room = 0.06 * ((high - low) or 1.0)
    low, high = low - room, high + room

    def left(x: float) -> float:
        return round(100.0 * x / x_high, 3)

    def top(y: float) -> float:
        return round(100.0 * (high - y) / (high - low), 3)

    def drawn(one: Series) -> Drawn:
        line = [place for place in one.line if all(map(math.isfinite, place))]
        path = (
            "M" + "L".join(f"{10 * left(x):.1f},{10 * top(y):.1f}" for x, y in line) if len(line) > 1 else ""
        )
        notes = one.notes or [f"{y:.3g} at {x:.3g}" for x, y in one.dots]
        dots = [
            (left(x), top(y), f"{one.name}: {text}") for (x, y), text in zip(one.dots, notes, strict=True)
        ]
        return Drawn(one.name, one.colour, one.kind, path, dots)

    x_ticks, round_ticks = nice_ticks(0.0, x_high, 5), nice_ticks(low, high, 5)
    if y_ticks is None:
        y_ticks = [(tick, tick_text(tick, round_ticks)) for tick in round_ticks]
    return Picture(
        title=title,
        note=note,
        alt=alt or f"{title}: {y_label} over {x_label}",
        x_label=x_label,
        y_label=y_label,
        x_ticks=[(left(tick), tick_text(tick, x_ticks)) for tick in x_ticks],
        y_ticks=[(top(tick), text) for tick, text in y_ticks if low <= tick <= high],
        series=[drawn(one) for one in series],
        marks=[(left(float(x)), str(text)) for x, text in marks if float(x) <= x_high],
    )
