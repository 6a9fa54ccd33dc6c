r"""PPO's clip, seen: which of the two objectives is used, and the gradient that it leaves.

    r = pi(a|s) / pi_old(a|s)
    L = min( r A, clip(r, 1 - eps, 1 + eps) A )          Schulman et al. 2017, arXiv 1707.06347, eq. 7

    dL / d log pi = r A     where the unclipped term is the smaller (or they are equal)
                  = 0       where the clipped one is: the row has moved far enough the way A wants

The curves are `surrogate_terms`, and the gradient is autograd's through `clipped_surrogate`: the loss
that trains, not a copy of the formula.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from numpy.typing import ArrayLike, NDArray

from distrl.maths.losses import clipped_surrogate, surrogate_terms
from distrl.show.style import BLUE, GREEN, GRID, RED, SOFT, page, write_numbers

DEFAULT_CLIP = 0.2
_SPAN = (0.4, 1.8)  # ratios drawn, for a clip of 0.2; wider clips widen it


@dataclass(frozen=True)
class Surrogate:
    """Columns [B], one row for each ratio, at one advantage."""

    advantage: float
    clip: float
    ratio: NDArray[np.float64]
    unclipped: NDArray[np.float64]
    clipped: NDArray[np.float64]
    objective: NDArray[np.float64]
    used_clipped: NDArray[np.bool_]
    gradient: NDArray[np.float64]  # of the objective, with respect to log pi(a|s)


def evaluate(ratio: ArrayLike, advantage: float, clip: float) -> Surrogate:
    """The surrogate and its gradient at these ratios [B], all positive, in float64."""
    log_prob_B = torch.from_numpy(np.log(np.asarray(ratio, np.float64))).requires_grad_()
    old_B = torch.zeros_like(log_prob_B)
    advantage_B = torch.full_like(old_B, advantage)
    # count = 1 makes the loss a sum, so that each row's gradient is its own
    loss, _ = clipped_surrogate(log_prob_B, old_B, advantage_B, clip, count=1.0)
    (gradient_B,) = torch.autograd.grad(-loss, log_prob_B)
    terms = surrogate_terms(log_prob_B.detach(), old_B, advantage_B, clip)
    return Surrogate(advantage, clip, gradient=gradient_B.numpy(), **{k: v.numpy() for k, v in terms.items()})


def table_ratios(clip: float) -> list[float]:
    """Ratios outside, inside and at the middle of the bounds."""
    factors = (-2.0, -1.25, -0.5, 0.0, 0.5, 1.25, 2.0)
    return [round(ratio, 6) for factor in factors if (ratio := 1.0 + factor * clip) > 0]


def meaning(advantage: float, ratio: float, clip: float, gradient: float) -> str:
    """A row of the table in words."""
    good = advantage > 0
    if gradient == 0:
        return f"let be, {abs(ratio - 1):.0%} {'up' if good else 'down'}"
    back = " back" if abs(ratio - 1) > clip else ""
    return f"pushed{back} {'up' if good else 'down'}"


def show(run_dir: Path | None, out: Path, seed: int, trust_run: bool = False) -> None:
    """Prints the table and writes the figure and its numbers; with `run_dir`, for that run's clip.

    Nothing is random or trained here: `seed` and `trust_run` change nothing.
    """
    clip, title = DEFAULT_CLIP, "the default clip"
    if run_dir is not None:
        from distrl.errors import BadInput
        from distrl.resolve import CONFIG_FILE, read_config

        config = read_config(run_dir / CONFIG_FILE).config
        if config.recipe.clip is None:
            raise BadInput(f"{run_dir} was trained by {config.algo}, without a clip; give a PPO run, or none")
        clip, title = config.recipe.clip, f"the clip of {run_dir.name}"
    rows = [evaluate(table_ratios(clip), advantage, clip) for advantage in (1.0, -1.0)]
    _print_table(rows)
    width = max(clip, 0.2) / 0.2
    low, high = max(1 - (1 - _SPAN[0]) * width, 0.02), 1 + (_SPAN[1] - 1) * width
    curves = [evaluate(np.linspace(low, high, 561), advantage, clip) for advantage in (1.0, -1.0)]
    _draw(
        curves,
        rows,
        out,
        f"the objective of one action and its gradient, over the probability ratio; {title}, {clip:g}",
    )
    write_numbers(
        out,
        "clip",
        {"clip": clip, "table": [_as_rows(one) for one in rows], "curves": [vars(one) for one in curves]},
    )
    print(f"figure     {out}\nnumbers    {out.with_suffix('.json')}", file=sys.stderr)


def _as_rows(one: Surrogate) -> list[dict[str, Any]]:
    names = ("ratio", "unclipped", "clipped", "objective", "used_clipped", "gradient")
    columns = [getattr(one, name).tolist() for name in names]
    return [
        {"advantage": one.advantage, **dict(zip(names, row, strict=True))}
        for row in zip(*columns, strict=True)
    ]


def _print_table(tables: list[Surrogate]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    clip = tables[0].clip
    table = Table(
        title=f"PPO's clipped objective: clip {clip:g}, so the ratio's bounds are {1 - clip:g} and {1 + clip:g}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for name in ("A", "ratio r", "r A", "clip(r) A", "used", "gradient"):
        table.add_column(name, justify="left" if name == "used" else "right", no_wrap=True)
    table.add_column("the action is", no_wrap=True)
    for one in tables:
        for row in _as_rows(one):
            inside = abs(row["ratio"] - 1) <= clip
            used = "clipped" if row["used_clipped"] else ("both, equal" if inside else "unclipped")
            table.add_row(
                f"{row['advantage']:+g}",
                f"{row['ratio']:.2f}",
                f"{row['unclipped']:+.2f}",
                f"{row['clipped']:+.2f}",
                used,
                f"{row['gradient']:+.2f}" if row["gradient"] else "0",
                meaning(row["advantage"], row["ratio"], clip, row["gradient"]),
                style="dim" if row["gradient"] == 0 else "",
            )
        table.add_section()
    Console().print(table)


CAPTION = (
    "Read from the middle, where the policy has not moved yet (ratio 1). Left: a good action. Pushing it up pays until "
    "it is {up:.0%} likelier than when it was sampled; beyond, the objective is flat and the gradient zero, so one batch "
    "can be used for several epochs without running away. Right: a bad action, the mirror image. On the other side "
    "nothing is clipped: an action that moved the wrong way is always pulled back. The objective is the smaller of "
    "the two dashed lines; the gradients below are autograd's, through the loss that trains."
)


def _draw(curves: list[Surrogate], rows: list[Surrogate], out: Path, subtitle: str) -> None:
    caption = CAPTION.format(up=curves[0].clip)
    with page(out, "What PPO's clip does", subtitle, caption, size=(10.5, 6.2)) as figure:
        axes = figure.subplots(2, 2, sharex=True, sharey="row", height_ratios=(1.25, 1))
        for column, (curve, dots) in enumerate(zip(curves, rows, strict=True)):
            good = curve.advantage > 0
            sign = "good action, A = +1" if good else "bad action, A = −1"
            _draw_objective(axes[0, column], curve, dots, f"Objective: {sign}", legend=column == 0)
            _draw_gradient(axes[1, column], curve, dots, f"Its gradient: {sign}")
        axes[0, 0].set_ylabel("objective")
        axes[1, 0].set_ylabel("gradient to log π(a|s)")


def _bounds(axes: Axes, curve: Surrogate) -> None:
    clip = curve.clip
    low, high = curve.ratio[[0, -1]]
    span = (1 + clip, high) if curve.advantage > 0 else (low, 1 - clip)
    axes.axvspan(*span, color=GRID, alpha=0.75, lw=0)
    for bound in (1 - clip, 1 + clip):
        axes.axvline(bound, color=SOFT, lw=0.9, ls=(0, (2, 3)))
    axes.axvline(1.0, color=SOFT, lw=0.6)
    axes.axhline(0.0, color=SOFT, lw=0.6)
    axes.set_xlim(low, high)


def _draw_objective(axes: Axes, curve: Surrogate, dots: Surrogate, title: str, legend: bool) -> None:
    _bounds(axes, curve)
    axes.plot(curve.ratio, curve.unclipped, color=BLUE, ls="--", lw=1.4, label="unclipped  r A")
    axes.plot(curve.ratio, curve.clipped, color=RED, ls="--", lw=1.4, label="clipped  clip(r) A")
    axes.plot(curve.ratio, curve.objective, color=GREEN, lw=3.4, alpha=0.85, label="used: the smaller")
    axes.plot(dots.ratio, dots.objective, "o", color=GREEN, ms=5, mec="white", mew=1.0)
    axes.set_title(title)
    if legend:
        axes.legend(loc="lower right")


def _draw_gradient(axes: Axes, curve: Surrogate, dots: Surrogate, title: str) -> None:
    _bounds(axes, curve)
    jumps = np.flatnonzero(np.diff(curve.used_clipped)) + 1
    gradient = np.insert(curve.gradient, jumps, np.nan)
    ratio = np.insert(curve.ratio, jumps, np.nan)
    axes.plot(ratio, gradient, color=GREEN, lw=2.6)
    axes.plot(dots.ratio, dots.gradient, "o", color=GREEN, ms=5, mec="white", mew=1.0)
    clip = curve.clip
    low, high = curve.ratio[[0, -1]]
    middle = (1 + clip + high) / 2 if curve.advantage > 0 else (low + 1 - clip) / 2
    axes.annotate(
        "no gradient", (middle, 0), (0, 9), textcoords="offset points", ha="center", color=SOFT, size=9
    )
    axes.set_title(title)
    axes.set_xlabel("probability ratio  r = π(a|s) / π_old(a|s)")
