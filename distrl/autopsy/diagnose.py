"""The whole autopsy of one configuration: a session, the probes that it calls for, the bound, the prescriptions."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from distrl.autopsy.apart import parts_apart
from distrl.autopsy.bound import Bound, find_bound
from distrl.autopsy.categories import ENV, FUSED, INFERENCE, ROWS
from distrl.autopsy.measure import Effort, Measured, measure
from distrl.autopsy.model import Costs, available_cores, fit
from distrl.autopsy.path import Segment, critical_path
from distrl.autopsy.prescribe import WAYS, Prescription, changed, prescriptions, together
from distrl.autopsy.probe import (
    Learning,
    Line,
    Rollout,
    Step,
    cut,
    learning_costs,
    minibatch_seconds,
    rollout_costs,
)
from distrl.autopsy.timeline import DRIVER
from distrl.build import learner_device, work_spec
from distrl.errors import BadInput, RunFailed
from distrl.fields import flat_fields
from distrl.resolve import Resolved
from distrl.runtime.workers import WorkSpec
from distrl.telemetry import spans
from distrl.trajectory import Trajectory

Tell = Callable[[str], None]
_TOUCHES = {"vectorization": (ENV,), "env_backend": (ENV, ROWS), "inference": (INFERENCE,)}
_ROLLOUT_WAYS = ("env_backend", "vectorization", "rollout", "inference", "rollout_device")


@dataclass(frozen=True)
class Overhead:
    """What the spans themselves cost a normal run: how often they are entered, times what one costs here."""

    ns_per_span: float
    spans_per_iteration: float  # of the process that enters most
    share: float  # of that process's wall time


@dataclass(frozen=True)
class Diagnosis:
    """What an autopsy found."""

    session: Measured
    path: list[Segment]
    costs: Costs
    bound: Bound
    prescriptions: list[Prescription]
    together: Prescription | None
    overhead: Overhead
    notes: tuple[str, ...] = ()  # what a person should know before trusting the numbers


def diagnose(
    resolved: Resolved, effort: Effort, run_dir: Path | None = None, tell: Tell = lambda _: None
) -> Diagnosis:
    """Measures a session, probes, and says what bounds it and what would help.

    Raises BadInput and RunFailed as `distrl train` does.
    """
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    tell(f"a session of about {effort.seconds:g} s, after {effort.warmup_iterations} iterations to warm up")
    session = measure(resolved.config, resolved, effort, run_dir)
    tell("probes: what the costs are made of")
    costs, ways = probe_costs(session, budget_sec=min(1.0, effort.seconds / 4))
    found = prescriptions(session.config, costs, session.rate, ways)
    return Diagnosis(
        session=session,
        path=critical_path(session.recorded),
        costs=costs,
        bound=find_bound(session, costs),
        prescriptions=found,
        together=together(session.config, costs, session.rate, found),
        overhead=overhead(session),
        notes=tuple(_notes(load, session, costs)),
    )


def _notes(load: float, session: Measured, costs: Costs) -> Iterator[str]:
    if load > 0.5 * costs.cores:
        yield (
            f"the machine was busy before the session began (load average {load:.1f} on {costs.cores} cores): what "
            "computes is measured and predicted roughly; repeat this when it is quiet"
        )
    if session.spread > 1.0 and session.iterations > 2:
        yield f"iterations differ by {100 * session.spread:.0f} % of their mean: give --seconds more"


def probe_costs(session: Measured, budget_sec: float) -> tuple[Costs, dict[tuple[str, Any], Costs]]:
    """The costs as configured, and with each other way to do the same work that can be had here."""
    config = session.config
    with _as_before():
        spec = work_spec(config, learner_device(config))
        rollout, learning, trajectory = _probe(spec, session, budget_sec)
        size = max(1, round(config.recipe.num_envs / config.num_groups))
        costs = replace(
            _fitted(session, rollout, learning),
            apart=parts_apart(spec, size),
            threads_keep_bits=spec.paths["learner"] == "compiled",
        )
        ways: dict[tuple[str, Any], Costs] = {}
        for name, value in other_ways(session):
            with contextlib.suppress(BadInput, RunFailed, RuntimeError, OSError):  # not to be had here
                ways[name, value] = _with_way(
                    name, value, session, costs, spec, (rollout, trajectory), budget_sec
                )
    return costs, ways


def _probe(spec: WorkSpec, session: Measured, budget_sec: float) -> tuple[Rollout, Learning, Trajectory]:
    config = session.config
    size = max(1, round(config.recipe.num_envs / config.num_groups))
    rollout, trajectory = rollout_costs(spec, size, _seconds_per_step(session), budget_sec)
    rows = session.env_steps / config.recipe.minibatches
    cores, own = available_cores(), config.learner_threads
    counts = sorted({1, max(1, cores // 2), cores}) if spec.device == "cpu" else []
    return (
        rollout,
        learning_costs(spec, trajectory, rows, counts, budget_sec) if counts else _same(own),
        trajectory,
    )


def _same(threads: int) -> Learning:
    return Learning(Line(0.0, 0.0), {threads: 1.0})


def _fitted(session: Measured, rollout: Rollout, learning: Learning) -> Costs:
    return fit(session, rollout, learning.minibatch, learning.speed)


def other_ways(session: Measured) -> Iterator[tuple[str, Any]]:
    """(field, value) of each way that the schema knows, that this configuration does not take, and that fits it."""
    config = session.config
    for name in WAYS:
        field = flat_fields().get(name)
        if field is None:
            continue
        own = getattr(config, name, None)
        for value in field.choices:
            if value == "cuda" and not torch.cuda.is_available():
                continue
            if value not in (own, "auto") and changed(config, {name: value}) is not None:
                yield name, value


def _with_way(
    name: str,
    value: Any,
    session: Measured,
    costs: Costs,
    own_spec: WorkSpec,
    probed: tuple[Rollout, Trajectory],
    budget_sec: float,
) -> Costs:
    """The costs with one field changed, scaled by what a probe with it takes over the same probe without."""
    config = changed(session.config, {name: value})
    assert config is not None
    spec = work_spec(config, learner_device(config))
    if spec == own_spec:
        raise BadInput(f"{name} {value} is what the session took")
    own_rollout, trajectory = probed
    if name in _ROLLOUT_WAYS:
        size = max(1, round(config.recipe.num_envs / config.num_groups))
        rollout, _ = rollout_costs(spec, size, _seconds_per_step(session), budget_sec)
        step, level = _at_level(costs.rollout.step, own_rollout.step, rollout.step, size, _TOUCHES.get(name))
        # what goes on in processes of the env's own is not seen from here: it may need a core
        idle = 0.0 if value == "async" else rollout.idle_share
        evaluate = Line(rollout.evaluate.fixed * level, rollout.evaluate.per_row * level)
        return replace(costs, rollout=replace(costs.rollout, step=step, evaluate=evaluate, idle_share=idle))
    rows = session.env_steps / config.recipe.minibatches
    num_envs = trajectory.num_envs
    steps = max(1, min(trajectory.num_steps, round(rows / num_envs)))
    copies = max(1, round(rows / (num_envs * steps)))
    rows_of = [cut(trajectory, steps)] * copies
    both = [Step(one, rows_of, config.learner_threads) for one in (own_spec, spec)]
    without, with_it = minibatch_seconds(both, budget_sec)
    factor = with_it / without
    update = costs.update
    update = replace(update, per_minibatch=update.per_minibatch * factor, per_row=update.per_row * factor)
    return replace(costs, update=update)


def _at_level(
    session: dict[str, Line],
    own: dict[str, Line],
    other: dict[str, Line],
    size: float,
    touched: tuple[str, ...] | None,
) -> tuple[dict[str, Line], float]:
    """A step's costs the other way, as dear as the session is beside its own probe, and how dear that is.

    Kinds that the way does not touch stay the session's, so that two probes' noise does not become a gain.
    """
    before = sum(line(size) for line in own.values())
    level = sum(line(size) for line in session.values()) / before if before > 0 else 1.0
    fused = any(kinds[FUSED](size) > 0 for kinds in (own, other))
    step = {}
    for kind, line in other.items():
        if touched is not None and not fused and kind not in touched:
            step[kind] = session[kind]
        else:
            step[kind] = Line(line.fixed * level, line.per_row * level)
    return step, level


def _seconds_per_step(session: Measured) -> float:
    """Of one group, from the session."""
    config = session.config
    if config.workers:
        seconds = sum(sum(spans.values()) for spans in session.groups.values())
    else:
        who = [*session.timeline.workers, DRIVER][0]
        seconds = sum(sec for name, sec in session.seconds(who).items() if name.startswith("rollout"))
    return seconds / config.num_groups / config.recipe.num_steps


@contextlib.contextmanager
def _as_before() -> Iterator[None]:
    """Probes put recorders and thread counts in place; both come back."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        spans.start()


def overhead(session: Measured) -> Overhead:
    """The spans' own cost in a normal run, in the process where it is largest."""
    cost = spans.cost_of_one_ns()
    counts = {name: sum(spans_of.values()) for name, spans_of in session.counts.items()}
    most = max(counts, key=lambda name: counts[name])
    busiest = counts[most]
    return Overhead(cost, busiest, busiest * cost / 1e9 / session.iteration_sec)
