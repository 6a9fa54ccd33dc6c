"""`--try` and `--tune`: what the model promised, beside what a session measures.

`--tune` takes workers x envs x threads x overlap. The model ranks the grid; the best that has not been measured is
measured, and what was promised and measured so far corrects the promises of its like, until nothing left promises more
than the best that was measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from distrl.autopsy.measure import Effort, Measured, measure
from distrl.autopsy.model import Costs, predict
from distrl.autopsy.prescribe import Prescription, changed, worker_counts
from distrl.config import TrainConfig
from distrl.errors import BadInput, RunFailed
from distrl.fields import flat_fields, show
from distrl.resolve import Resolved

Tell = Callable[[str], None]
MOST_MEASURED = 8


@dataclass(frozen=True)
class Tried:
    """A configuration, the rate promised and the rate measured; `failure` where it would not run."""

    flags: str
    changes: dict[str, Any]
    predicted: float
    measured: float | None
    failure: str = ""

    @property
    def error(self) -> float | None:
        """(predicted - measured) / measured."""
        return None if not self.measured else (self.predicted - self.measured) / self.measured


def try_best(
    resolved: Resolved, found: Sequence[Prescription], count: int, effort: Effort, tell: Tell = lambda _: None
) -> list[Tried]:
    """A session with each of the best prescriptions."""
    tried = []
    for one in found[:count]:
        tell(f"trying {one.flags}")
        measured, failure = _measured(one.config, resolved, effort)
        rate = measured.rate if measured else None
        tried.append(Tried(one.flags, one.changes, one.prediction.rate, rate, failure))
    return tried


def _measured(config: TrainConfig, resolved: Resolved, effort: Effort) -> tuple[Measured | None, str]:
    try:
        return measure(config, resolved, effort), ""
    except (BadInput, RunFailed) as error:
        return None, str(error).splitlines()[0]


@dataclass(frozen=True)
class Point:
    """One place of the grid."""

    changes: dict[str, Any]
    config: TrainConfig
    predicted: float

    @property
    def kind(self) -> tuple[bool, bool]:
        """Points of one kind share the model's error: in-process or on Ray, overlapped or not."""
        return self.config.workers > 0, self.config.overlap > 0


def grid(config: TrainConfig, costs: Costs) -> list[Point]:
    """Workers x envs x learner threads x overlap, each with its prediction; what clashes is left out."""
    recipe = config.recipe
    workers = sorted({config.workers, *worker_counts(config, costs, 4 * recipe.num_envs)})
    envs = [recipe.num_envs * times for times in (1, 2, 4)]
    threads = sorted({config.learner_threads, *costs.update.speed})
    points = []
    for n, num_envs, count, overlap in product(workers, envs, threads, sorted({0, 1, config.overlap})):
        groups = min(num_envs, max(config.num_groups, n))
        values = {
            "workers": n, "num_envs": num_envs, "groups": groups, "learner_threads": count, "overlap": overlap
        }  # fmt: skip
        other = changed(config, values)
        if other is not None:
            points.append(Point(_differences(config, values), other, predict(other, costs).rate))
    return points


def _differences(config: TrainConfig, values: dict[str, Any]) -> dict[str, Any]:
    """What to change to get `values`: groups too where their default would follow the number of envs elsewhere."""
    now = {
        **{name: getattr(config, name) for name in values if name not in ("num_envs", "groups")},
        "num_envs": config.recipe.num_envs,
    }
    differing = {name: value for name, value in values.items() if name in now and value != now[name]}
    without = changed(config, differing)
    if without is None or without.num_groups != values["groups"]:
        differing["groups"] = values["groups"]
    return differing


def tune(
    resolved: Resolved, session: Measured, costs: Costs, effort: Effort, tell: Tell = lambda _: None
) -> list[Tried]:
    """What was measured of the grid, best first; the session itself is one of its points."""
    level = session.rate / predict(session.config, costs).rate
    points = [replace(p, predicted=p.predicted * level) for p in grid(session.config, costs)]
    rates: list[tuple[Point, float]] = [(p, session.rate) for p in points if not p.changes]
    tried = [Tried("as it is", {}, session.rate, session.rate)]
    left = [p for p in points if p.changes]
    tell(f"the grid has {len(points)} points")
    while left and len(tried) <= MOST_MEASURED:
        factors = _corrections(rates)
        left.sort(key=lambda p: -p.predicted * factors.get(p.kind, 1.0))
        best, promised = left.pop(0), 0.0
        promised = best.predicted * factors.get(best.kind, 1.0)
        if promised < max(rate for _, rate in rates) * 1.02:
            break
        tell(f"measuring {_flags(best.changes)}: {promised:,.0f} steps/s promised")
        measured, failure = _measured(best.config, resolved, effort)
        rate = measured.rate if measured else None
        tried.append(Tried(_flags(best.changes), best.changes, promised, rate, failure))
        if rate:
            rates.append((best, rate))
    return sorted(tried, key=lambda one: -(one.measured or 0.0))


def _corrections(rates: list[tuple[Point, float]]) -> dict[tuple[bool, bool], float]:
    """Measured over promised, by kind: the geometric mean."""
    logs: dict[tuple[bool, bool], list[float]] = {}
    for point, rate in rates:
        logs.setdefault(point.kind, []).append(math.log(rate / point.predicted))
    return {kind: math.exp(sum(ones) / len(ones)) for kind, ones in logs.items()}


def _flags(changes: dict[str, Any]) -> str:
    return " ".join(f"{flat_fields()[name].flag} {show(value)}" for name, value in changes.items())
