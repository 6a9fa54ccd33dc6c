"""Line charts as inline SVG for report.html: small, responsive, right in light and dark mode.

The SVG holds only what may stretch (grid, band, line) in a 0..1000 by 0..1000 box; labels are HTML placed in percent,
so that text keeps its size at any width. Colours are classes, so the page's style sheet decides them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

MAX_POINTS = 300
_BOX = 1000.0


@dataclass(frozen=True)
class Point:
    """One place on a curve: the value and, where several were pooled, its range."""

    x: float
    y: float
    low: float
    high: float


@dataclass(frozen=True)
class Chart:
    """A chart ready for the template; all positions in percent of the plot, from the left and from the top."""

    title: str
    note: str
    alt: str
    x_label: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    line: str  # SVG path data
    band: str
    dots: list[tuple[float, float, str]]  # left, top, text
    hover: str  # JSON: [[left, top, x text, y text], ...]
    last: str


def line_chart(
    title: str,
    x: Sequence[float],
    y: Sequence[float | None],
    *,
    note: str = "",
    x_label: str = "env steps",
    dots: Sequence[tuple[float, float]] = (),
    floor: float | None = None,
    whole_x: bool = False,
    num_x_ticks: int = 4,
    num_y_ticks: int = 4,
) -> Chart | None:
    """A curve of y over x (from 0, in ascending order); None where y has no finite value.

    Long runs are pooled to at most `MAX_POINTS` points, the range of what was pooled shown as a band;
    `dots` are single (x, y) measurements; values below `floor` leave the plot; `whole_x` labels whole numbers alone.
    """
    points = _pool(x, y)
    if not points:
        return None
    dots = [(dot_x, dot_y) for dot_x, dot_y in dots if math.isfinite(dot_y)]
    x_low, x_high = 0.0, max([points[-1].x, 1.0] + [dot_x for dot_x, _ in dots])
    low = min([point.low for point in points] + [dot_y for _, dot_y in dots])
    high = max([point.high for point in points] + [dot_y for _, dot_y in dots])
    if floor is not None:
        low, high = max(low, floor), max(high, floor)
    low, high = _widen(low, high)
    y_ticks = nice_ticks(low, high, num_y_ticks)
    step = y_ticks[1] - y_ticks[0]
    # Where the data ends close to the next round number, go on to it: 0 to 500 rather than 9 to 499.9.
    y_ticks = _multiples(low - 0.4 * step, high + 0.4 * step, step)
    margin = 0.03 * (high - low)
    low, high = min(low - margin, y_ticks[0]), max(high + margin, y_ticks[-1])

    x_ticks = nice_ticks(x_low, x_high, num_x_ticks)
    if whole_x:
        x_ticks = [tick for tick in x_ticks if tick.is_integer()]

    def left(value: float) -> float:
        return (value - x_low) / (x_high - x_low)

    def top(value: float) -> float:
        return 1.0 - (value - low) / (high - low)

    shown = [
        (_percent(left(p.x)), _percent(min(top(p.y), 1.0)), _significant(p.x), _significant(p.y))
        for p in points
    ]
    has_band = any(point.low < point.high for point in points)
    last_y = points[-1].y
    return Chart(
        title=title,
        note=note,
        alt=(
            f"{title} over {x_label}: from {_significant(points[0].y)} at {_significant(points[0].x)} to "
            f"{_significant(last_y)} at {_significant(points[-1].x)}; lowest {_significant(min(p.low for p in points))}, "
            f"highest {_significant(max(p.high for p in points))}."
        ),
        x_label=x_label,
        x_ticks=[(_percent(left(tick)), tick_text(tick, x_ticks)) for tick in x_ticks],
        y_ticks=[(_percent(top(tick)), tick_text(tick, y_ticks)) for tick in y_ticks],
        line=_path([(left(p.x), top(p.y)) for p in points]),
        band=_band_path([(left(p.x), top(p.low), top(p.high)) for p in points]) if has_band else "",
        dots=[
            (_percent(left(dx)), _percent(top(dy)), f"{_significant(dy)} at {_significant(dx)}")
            for dx, dy in dots
        ],
        hover=json.dumps(shown),
        last=_significant(last_y),
    )


def nice_ticks(low: float, high: float, num_ticks: int) -> list[float]:
    """About `num_ticks` round numbers (1, 2, 2.5 or 5 times a power of ten apart) within [low, high], two at least."""
    low, high = _widen(low, high)
    step = _nice_step((high - low) / max(1, num_ticks - 1))
    ticks = _multiples(low, high, step)
    while len(ticks) < 2:
        step = _nice_step(step / 2.5)
        ticks = _multiples(low, high, step)
    return ticks


def tick_text(value: float, ticks: Sequence[float] = ()) -> str:
    """A short label: 250k, 1.5M, 0.02, 3e-05. `ticks` decides how many decimals tell neighbours apart."""
    size = max([abs(tick) for tick in ticks] + [abs(value)])
    if value == 0:
        return "0"
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= limit:
            scale = 1e3 if suffix == "k" else limit
            return _minus(f"{value / scale:.6g}{suffix}")
    return _minus(f"{value:.6g}")


def _widen(low: float, high: float) -> tuple[float, float]:
    """The same range, or one around it where it is a single value (but for rounding)."""
    spread = max(abs(low), abs(high)) or 1.0
    return (low, high) if high - low > 1e-9 * spread else (low - 0.5 * spread, high + 0.5 * spread)


def _nice_step(raw: float) -> float:
    power = 10.0 ** math.floor(math.log10(raw))
    return next(factor * power for factor in (1.0, 2.0, 2.5, 5.0, 10.0) if raw <= 1.2 * factor * power)


def _multiples(low: float, high: float, step: float) -> list[float]:
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    digits = max(0, 2 - math.floor(math.log10(step)))
    return [round(index * step, digits) for index in range(first, last + 1)]


def _pool(x: Sequence[float], y: Sequence[float | None]) -> list[Point]:
    """The finite points, neighbours pooled (mean, lowest, highest) where there are more than `MAX_POINTS`."""
    raw = [
        Point(float(at), float(value), float(value), float(value))
        for at, value in zip(x, y, strict=True)
        if value is not None and math.isfinite(value)
    ]
    per_point = math.ceil(len(raw) / MAX_POINTS)
    if per_point <= 1:
        return raw
    pooled = []
    for start in range(0, len(raw), per_point):
        some = raw[start : start + per_point]
        pooled.append(
            Point(
                some[-1].x,
                math.fsum(p.y / len(some) for p in some),
                min(p.low for p in some),
                max(p.high for p in some),
            )
        )
    return pooled


def _path(places: Sequence[tuple[float, float]]) -> str:
    if len(places) == 1:  # a single point: a short dash, so that it is seen at all
        places = [(places[0][0], places[0][1]), (min(places[0][0] + 0.01, 1.0), places[0][1])]
    return "M" + "L".join(f"{_BOX * left:.1f},{_BOX * top:.1f}" for left, top in places)


def _band_path(places: Sequence[tuple[float, float, float]]) -> str:
    lower = [(left, low) for left, low, _ in places]
    upper = [(left, high) for left, _, high in reversed(places)]
    return _path(lower + upper) + "Z"


def _percent(share: float) -> float:
    return round(100.0 * share, 3)


def _significant(value: float) -> str:
    """Four significant digits with thousands separators: 12,345; 0.0123; 9.1e-05."""
    if value != 0 and not 1e-4 <= abs(value) < 1e15:
        return _minus(f"{value:.3g}")
    return _minus(f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}")


def _minus(number: str) -> str:
    return "\N{MINUS SIGN}" + number[1:] if number.startswith("-") else number
