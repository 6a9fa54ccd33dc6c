"""The bound, in one sentence: the part of an iteration that would have to become shorter first.

The critical path's shares are summed into the parts below, and the largest is the bound; but where one worker is much
slower than the others for the same work, what exceeds theirs counts as straggling, and where fewer threads would learn
faster, what that would save counts as oversubscription.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from distrl.autopsy import categories as cat
from distrl.autopsy.apart import split
from distrl.autopsy.categories import category, is_wait
from distrl.autopsy.measure import Measured
from distrl.autopsy.model import Costs, predict
from distrl.autopsy.path import critical_path, shares
from distrl.autopsy.timeline import DRIVER, LEARNER

ENV, INFERENCE, LEARNING = "env-bound", "inference-bound", "learner-bound"
STRAGGLER, THREADS, TRANSFER = "straggler-bound", "oversubscribed-threads-bound", "transfer-bound"
ROLLOUT, DRIVING = "rollout-bound", "driver-bound"

_PART = {
    cat.ENV: ENV, cat.INFERENCE: INFERENCE, cat.SAMPLING: INFERENCE, cat.FUSED: ROLLOUT, cat.ROWS: ROLLOUT, cat.STATE: ROLLOUT,
    cat.SERIALISATION: TRANSFER, cat.TRANSFER: TRANSFER, cat.BROADCAST: TRANSFER, cat.GAE: LEARNING,
    cat.UPDATE: LEARNING, cat.KEEPING: DRIVING, cat.OTHER: DRIVING,
}  # fmt: skip


@dataclass(frozen=True)
class Bound:
    """`parts` are shares of the wall time by bound; they sum to 1."""

    kind: str
    sentence: str
    share: float
    parts: dict[str, float]
    worker: str | None = None  # that is on the path most


def find_bound(session: Measured, costs: Costs) -> Bound:
    """What bounds the session, by its critical path and its costs."""
    path = shares(critical_path(session.recorded), costs.apart)
    parts: dict[str, float] = {}
    on_path: dict[str, float] = {}
    for (process, kind), share in path.items():
        part = _PART.get(kind, DRIVING)
        parts[part] = parts.get(part, 0.0) + share
        if process not in ("", DRIVER, LEARNER):
            on_path[process] = on_path.get(process, 0.0) + share
    worker = max(on_path, key=lambda name: on_path[name], default=None)
    _move(parts, STRAGGLER, (ENV, INFERENCE, ROLLOUT), _straggling(costs, on_path))
    _move(parts, THREADS, (LEARNING,), _oversubscribed(session, costs) * parts.get(LEARNING, 0.0))
    kind = max(parts, key=lambda part: parts[part])
    ordered = dict(sorted(parts.items(), key=lambda item: -item[1]))
    return Bound(kind, _sentence(kind, session, costs, worker, parts), parts[kind], ordered, worker)


def _move(parts: dict[str, float], to: str, sources: tuple[str, ...], share: float) -> None:
    """Counts `share` of the path as `to`, taken from the sources in proportion."""
    there = sum(parts.get(name, 0.0) for name in sources)
    share = min(share, there)
    if share <= 0:
        return
    for name in sources:
        if name in parts:
            parts[name] *= 1.0 - share / there
    parts[to] = share


def _straggling(costs: Costs, on_path: dict[str, float]) -> float:
    """The share of the path in which a slow worker does what the median worker would long have done."""
    excess = 0.0
    for number, slow in costs.slow.items():
        if slow > 1.3:
            excess += on_path.get(f"worker {number}", 0.0) * (1.0 - 1.0 / slow)
    return excess


def _oversubscribed(session: Measured, costs: Costs) -> float:
    """The share of learning that fewer threads would save, where there are more threads than cores."""
    own = session.config.learner_threads
    fewer = [factor for count, factor in costs.update.speed.items() if count < own]
    return max(0.0, 1.0 - min(fewer)) if fewer and own > costs.cores else 0.0


def waits(session: Measured, process: str) -> float:
    """The share of its time that a process waits."""
    totals = session.timeline.totals(process)
    waited = sum(ns for name, ns in totals.items() if is_wait(name) or category(name) == cat.TRANSFER)
    return waited / session.timeline.wall_ns


def _sentence(kind: str, session: Measured, costs: Costs, worker: str | None, parts: dict[str, float]) -> str:
    config = session.config
    size = config.recipe.num_envs / config.num_groups
    remote = LEARNER in session.timeline.processes
    whom = f"collection on {worker}" if worker else "collection"
    learner_waits = f"the learner waits {100 * waits(session, LEARNER):.0f} % of its time" if remote else ""
    takes = f"it takes {100 * parts[kind]:.0f} % of an iteration"
    then = learner_waits or takes
    envs = f"a step of {size:g} env{'s' if size != 1 else ''}"
    if kind == ENV:
        return f"{whom} (env step, {_ms(_step_seconds(costs, size, cat.ENV))} for {envs}) bounds: {then}"
    if kind == INFERENCE:
        act = _step_seconds(costs, size, cat.INFERENCE, cat.SAMPLING)
        return f"{whom} (inference, {_ms(act)} for {envs}) bounds: {then}"
    if kind == ROLLOUT:
        return f"{whom} (writing rows and keeping episodes, or the fused loop) bounds: {then}"
    if kind == STRAGGLER:
        number, slow = max(costs.slow.items(), key=lambda item: item[1])
        return (
            f"worker {number} bounds: its groups take {slow:.1f} times as long as the others', "
            f"which wait {100 * _wait_for(session, f'worker {number}'):.0f} % of their time for it; "
            f"as fast as they are, it would be {predict(config, replace(costs, slow={})).rate:,.0f} steps/s"
        )
    if kind == THREADS:
        best = min(costs.update.speed, key=lambda count: costs.update.speed[count])
        return (
            f"{config.learner_threads} learner threads on {costs.cores} cores bound: {best} would take "
            f"{100 * costs.update.speed[best]:.0f} % of the update's time"
        )
    if kind == TRANSFER:
        size_mb = session.num_bytes / 1e6
        return f"moving fragments ({size_mb:,.1f} MB an iteration) from worker to learner bounds: {takes}"
    if kind == LEARNING:
        recipe = config.recipe
        steps = recipe.epochs * recipe.minibatches
        seconds = session.seconds(LEARNER if remote else DRIVER)
        step_sec = (seconds.get("learn: update", 0.0) + seconds.get("learn: rows", 0.0)) / steps
        idle = f"workers wait {100 * _mean_wait(session):.0f} % of their time" if remote else takes
        return f"the learner (update, {_ms(step_sec)} for each of {steps} minibatches) bounds: {idle}"
    return f"the driver (logs, calls, what no span names) bounds: {takes}"


def _step_seconds(costs: Costs, size: float, *kinds: str) -> float:
    """What some kinds take of one vector step, with their share of a fused loop."""
    lines = {kind: line(size) for kind, line in costs.rollout.step.items()}
    return sum(split(lines, costs.apart).get(kind, 0.0) for kind in kinds)


def _wait_for(session: Measured, whom: str) -> float:
    """Mean share of their time in which the other workers wait for one."""
    others = [name for name in session.timeline.workers if name != whom]
    waited = [session.timeline.totals(name).get(f"wait: {whom}", 0) for name in others]
    return sum(waited) / max(len(others), 1) / session.timeline.wall_ns


def _mean_wait(session: Measured) -> float:
    workers = session.timeline.workers
    return sum(waits(session, name) for name in workers) / max(len(workers), 1)


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.2g} ms" if seconds < 0.1 else f"{1e3 * seconds:,.0f} ms"
