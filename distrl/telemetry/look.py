"""What differs between the reports of commands: the title, the curves, the headline numbers. `report.py` has the rest."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from distrl.telemetry.console import duration
from distrl.telemetry.spans import PHASES

Records = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Tile:
    """A headline number."""

    label: str
    value: str
    detail: str = ""


@dataclass(frozen=True)
class Curve:
    """A metric over the run. `dots` is the key of single measurements of it; what is below `floor` leaves the plot."""

    key: str
    title: str
    note: str = ""
    dots: str = ""
    dots_note: str = ""
    floor: float | None = None


@dataclass(frozen=True)
class Look:
    """One command's report."""

    title: Callable[[Mapping[str, Any]], str]  # of the flat config
    big: Curve
    no_curve: str  # what is said where it has no value
    heading: str
    charts: tuple[Curve, ...]
    more: tuple[
        tuple[str, str, str], ...
    ]  # every metric whose key begins so, what its title begins with, a note
    tiles: Callable[[Records, Mapping[str, Any]], list[Tile]]
    x: str = "env_steps"
    x_label: str = "env steps"
    last_dot: Callable[[Mapping[str, Any]], float | None] = lambda summary: None  # measured at the end
    phases: tuple[str, ...] = PHASES  # their names here


@dataclass(frozen=True)
class Piece:
    """A rectangle of a picture, in a box of 1000 by 1000: of one kind, from left to right and from top down."""

    kind: str
    x: float
    width: float
    y: float
    height: float


@dataclass(frozen=True)
class Lane:
    """One process's time from left to right."""

    process: str
    pieces: Sequence[Piece]
    alt: str


@dataclass(frozen=True)
class Picture:
    """An iteration, a lane for each process, the longest chain last. Ticks are in percent from the left, with a text."""

    title: str
    lanes: Sequence[Lane]
    ticks: Sequence[tuple[float, str]]
    kinds: Sequence[str]  # in the order of the legend


def column(records: Records, key: str) -> list[float | None]:
    """A metric of every record; None where it is not a finite number."""
    return [float(record[key]) if finite(record.get(key)) else None for record in records]


def finite(value: Any) -> TypeGuard[float]:
    """Whether it is a number that a curve may have."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def number(value: Any, decimals: int) -> str:
    """With thousands separators; a dash for what is no finite number."""
    return f"{value:,.{decimals}f}" if finite(value) else "–"


def wall_tile(records: Records) -> Tile:
    """How long the run took."""
    wall_sec: Any = records[-1].get("wall_sec") if records else None
    return Tile("Wall time", duration(wall_sec if finite(wall_sec) else None), "resumes included")


def rate_tile(records: Records, label: str) -> list[Tile]:
    """What `env_steps` counts, by wall time; nothing before the first record."""
    last = records[-1] if records else {}
    steps: Any = last.get("env_steps")
    wall_sec: Any = last.get("wall_sec")
    if not (finite(steps) and finite(wall_sec) and wall_sec > 0):
        return []
    return [Tile(label, number(steps / wall_sec, 0), "mean over the whole run")]


# curves that mean the same whatever the policy is
LOSSES = (
    Curve("policy_loss", "Policy loss", "the surrogate objective, negated"),
    Curve("value_loss", "Value loss", "squared error of the critic on its targets"),
)
CRITIC = (
    Curve(
        "explained_variance",
        "Explained variance",
        "ratio: share of the returns' variance that the critic tells, 1 all, 0 none",
        floor=-1.0,
    ),
    Curve("value_mean", "Mean value", "what the critic expects, in units of the return"),
)

# distrl train

_ALGO_NAMES = {
    "ppo": "PPO",
    "a2c": "A2C",
    "actor-critic": "Actor-critic",
    "reinforce": "REINFORCE",
    "reinforce-baseline": "REINFORCE with a baseline",
}


def _train_title(config: Mapping[str, Any]) -> str:
    algo = _ALGO_NAMES.get(str(config.get("algo")), str(config.get("algo", "?")))
    return f"{algo} on {config.get('env', '?')}"


def _train_tiles(records: Records, summary: Mapping[str, Any]) -> list[Tile]:
    last = records[-1] if records else {}
    tiles = [Tile("Final return", number(last.get("episode_return_mean"), 1), "last 100 episodes")]
    evaluation = summary.get("evaluation")
    if isinstance(evaluation, Mapping) and finite(evaluation.get("return_mean")):
        spread = f" ± {number(evaluation['return_std'], 1)}" if finite(evaluation.get("return_std")) else ""
        episodes = evaluation.get("episodes")
        detail = f"{episodes} episodes" if episodes is not None else ""
        tiles.insert(0, Tile("Evaluated return", number(evaluation["return_mean"], 1) + spread, detail))
    iterations = f"{number(last.get('iteration'), 0)} iterations"
    tiles.append(Tile("Env steps", number(last.get("env_steps"), 0), iterations))
    return [*tiles, *rate_tile(records, "Steps per second"), wall_tile(records)]


def _evaluated(summary: Mapping[str, Any]) -> float | None:
    evaluation = summary.get("evaluation")
    found = evaluation.get("return_mean") if isinstance(evaluation, Mapping) else None
    return float(found) if found is not None and finite(found) else None


TRAIN = Look(
    title=_train_title,
    big=Curve(
        "episode_return_mean",
        "Episode return",
        "mean of the last 100 episodes, raw rewards",
        "eval/return_mean",
        "dots: evaluations",
    ),
    no_curve="No episode has ended yet, so there is no learning curve.",
    heading="Inside the updates",
    charts=(
        Curve("episode_length_mean", "Episode length", "mean steps of the last 100 episodes"),
        *LOSSES,
        Curve("entropy", "Entropy", "how undecided the policy is; falls as it commits"),
        Curve("approx_kl", "Approximate KL", "how far an update moved the policy"),
        Curve("clip_fraction", "Clip fraction", "share of samples whose ratio left the clip range"),
        *CRITIC,
        Curve("steps_per_sec", "Steps per second", "env steps, of all envs, by wall time"),
    ),
    more=(("info/", "", "from the env's info, mean"),),
    tiles=_train_tiles,
    last_dot=_evaluated,
)
