"""The look that all figures share, and how a figure and its numbers are written."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font

from distrl.machine import versions
from distrl.run_directory import write_json_atomic
from distrl.telemetry.sinks.jsonl import as_json

SCHEMA = 1

INK, SOFT, LINE, GRID = "#1b2430", "#5d6b7c", "#c9d0d9", "#e9ecf1"
BLUE, GREEN, AMBER, RED, VIOLET = "#2563c9", "#18794e", "#c77d0a", "#c0392b", "#8a56c9"
# from dark to light: an order, such as lambda from 0 to 1
SEQUENCE = ("#c77d0a", "#d1495b", "#8a56c9", "#2563c9", "#12805c")

_RC: dict[Any, Any] = {
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": SOFT,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.9,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "figure.facecolor": "white",
}
MORE_SCRIPTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Zen Hei", "Microsoft YaHei",
    "PingFang SC", "Hiragino Sans", "Malgun Gothic", "Noto Sans Arabic", "Noto Sans Hebrew", "Noto Sans Devanagari",
    "Noto Sans Thai", "Noto Emoji", "Segoe UI Emoji", "Arial Unicode MS",
)  # fmt: skip
_INCH_PER_LINE = 0.19
_CHARACTERS_PER_INCH = 14.2


@contextmanager
def page(out: Path, title: str, subtitle: str, caption: str, size: tuple[float, float]) -> Iterator[Figure]:
    """A figure with a title above and a caption in plain words below; written to `out` at the end.

    `size` is that of the plots in inches; title and caption come on top of it. The caller's own
    matplotlib settings are untouched.
    """
    lines = textwrap.wrap(caption, int(size[0] * _CHARACTERS_PER_INCH))
    head, foot = 0.75, 0.3 + _INCH_PER_LINE * len(lines)
    width, height = size[0], size[1] + head + foot
    with matplotlib.rc_context({**_RC, "font.family": _families()}):
        figure = Figure(figsize=(width, height), dpi=130)
        FigureCanvasAgg(figure)
        figure.set_layout_engine(
            "constrained", rect=(0.01, foot / height, 0.98, size[1] / height), hspace=0.06, wspace=0.06
        )
        left = 0.16 / width
        figure.text(left, 1 - 0.14 / height, title, size=15, weight="bold", va="top")
        figure.text(left, 1 - 0.45 / height, subtitle, size=10, color=SOFT, va="top")
        figure.text(
            left, (foot - 0.1) / height, "\n".join(lines), size=9.5, color=INK, va="top", linespacing=1.4
        )
        yield figure
        aside = out.with_name(f".{out.name}.tmp")
        figure.savefig(aside, format="png")
        aside.replace(out)


def plain_text(text: str, missing: str = "□") -> str:
    """A user's text as a figure shows it: no mathematics, one line, `missing` for what no installed font has a glyph of.

    Two dollar signs would begin a formula: each is escaped. Control characters are a dot. `missing` may have the
    character's number: `<U+{:04X}>`.
    """
    return "".join(_shown(one, missing) for one in text)


def _shown(character: str, missing: str) -> str:
    if character == "$":
        return r"\$"
    if character == "\n":
        return "↵"
    if character != " " and not character.isprintable():
        return "·"
    return character if ord(character) in _glyphs() else missing.format(ord(character))


@cache
def _families() -> list[str]:
    """The figures' font, and those that are installed of fonts with more scripts."""
    installed = {one.name for one in fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in MORE_SCRIPTS if name in installed)]


@cache
def _glyphs() -> frozenset[int]:
    """Characters that these can draw, bold or not."""
    weights = []
    for weight in ("normal", "bold"):
        paths = [findfont(FontProperties(family=name, weight=weight)) for name in _families()]
        weights.append({code for path in paths for code in get_font(path).get_charmap()})
    return frozenset(weights[0] & weights[1])


def legend_above(axes: Axes, **options: Any) -> None:
    """The legend in one row over the plot's right end, level with its title."""
    axes.legend(
        loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=8, handlelength=1.6, columnspacing=1.3, **options
    )


def write_numbers(out: Path, picture: str, numbers: dict[str, Any]) -> Path:
    """The numbers of figure `out` as JSON beside it, with versions; returns the path."""
    path = out.with_suffix(".json")
    write_json_atomic(
        path, {"schema": SCHEMA, "picture": picture, **as_json(numbers), "versions": versions()}
    )
    return path


def read_numbers(out: Path) -> dict[str, Any]:
    """What `write_numbers` wrote beside figure `out`."""
    numbers: dict[str, Any] = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
    return numbers
