"""An iteration's time as a function of the configuration: a few costs, measured in the session and in probes.

    group(n)    = T (env(n) + act(n) + rows(n)) + evaluate(T n) + per fragment        n envs, T steps
                  each c(n) = a + b n; a : b from two probes, the level from the session
    worker w    = slow_w * sum of its groups (group g is on worker g mod W) + serialisation of their bytes
    collect     = max( max_w worker w + slowest(W) sqrt(its groups) jitter,  processor seconds of all / cores )
                  slowest(W): how far the largest of W normal numbers lies above their mean, in deviations
    learn       = E (M u0 + B u1) s(threads) + B g + fixed        E epochs, M minibatches, B = T N rows
    transfer    = h + q * groups of the fullest worker             Ray's calls, answers and fetches
    iteration   = collect + learn + transfer + driver              synchronous, the driver's log included
                = max(collect, learn + driver) + transfer / 2      overlapped, where both kinds have cores:
                  never less than all processor seconds / cores

In-process (0 workers) there is no serialisation and no transfer; overlap apart, only fused rollouts' groups run in parallel, in
turns of `learner_threads` of them. Where a session ran with workers, its transfer is measured; from in-process to Ray, `ASSUMED` stands in until `--try` measures.
An env that waits rather than computes (`idle_share` of the probes) needs no core for that share.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import NormalDist

from distrl.autopsy.categories import ENV, FUSED, INFERENCE, ROWS, SERIALISATION, category
from distrl.autopsy.measure import Measured
from distrl.autopsy.path import critical_path
from distrl.autopsy.probe import Line, Rollout
from distrl.autopsy.timeline import DRIVER, LEARNER, TRANSIT
from distrl.config import TrainConfig

STEP_KINDS = (ENV, INFERENCE, ROWS, FUSED)


@dataclass(frozen=True)
class Transport:
    """What Ray adds to an iteration, in seconds."""

    fixed: float
    per_group: float  # of the fullest worker
    per_byte: float  # serialisation


ASSUMED = Transport(fixed=4e-3, per_group=1.5e-3, per_byte=1 / 1.5e9)


@dataclass(frozen=True)
class Update:
    """What learning costs, in seconds; `speed[threads]` is the time with so many threads over that with the session's."""

    per_minibatch: float
    per_row: float  # and epoch
    gather_per_row: float  # once: joining fragments, GAE, the copy to the device
    fixed: float  # publishing, metrics
    speed: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Costs:
    """All that the model knows."""

    rollout: Rollout  # at the session's level, on a core of its own
    update: Update
    transport: Transport
    driver: float
    slow: dict[int, float]  # worker -> how much longer its groups take than the median worker's
    bytes_per_row: float
    rows_per_step: float  # valid env steps over rows
    steps: float  # T: rows of a fragment along time
    cores: int
    jitter: float = 0.0  # deviation of a fragment's time between iterations
    assumed: tuple[str, ...] = ()
    threads_keep_bits: bool = (
        False  # of the update: the compiled learner's sums do not depend on their number
    )
    apart: Mapping[str, float] = field(
        default_factory=dict
    )  # of the fused loop, measured apart: category -> share


@dataclass(frozen=True)
class Prediction:
    """An iteration by the model, in seconds, and the rate of env steps that follows."""

    iteration_sec: float
    rate: float
    parts: dict[str, float]


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def predict(config: TrainConfig, costs: Costs) -> Prediction:
    """The rate of `config`, which differs from the session's in what the model has a term for."""
    recipe, workers = config.recipe, config.workers
    steps = recipe.num_steps if recipe.collects == "steps" else costs.steps
    rows = steps * recipe.num_envs
    collect_cpu, by_worker = _collection(config, costs, steps)
    learn = _learning(config, costs, rows)
    parts = {"learn": learn, "driver": costs.driver}
    in_turns = turns(config, costs.rollout.step.get(FUSED, Line(0.0, 0.0))(1) > 0) / config.num_groups
    parts["collect"] = max(sum(by_worker) * in_turns, collect_cpu / costs.cores)
    if workers:
        hosts = min(workers, config.num_groups)
        fullest = -(-config.num_groups // hosts)
        late = slowest_of(hosts) * fullest**0.5 * costs.jitter
        parts["collect"] = max(max(by_worker) + late, collect_cpu / costs.cores)
        parts["transfer"] = costs.transport.fixed + costs.transport.per_group * fullest
    total = sum(parts.values())
    if config.overlap:
        together = max(parts["collect"], learn + costs.driver, (collect_cpu + learn) / costs.cores)
        total = together + parts.get("transfer", 0.0) / 2
    return Prediction(total, rows * costs.rows_per_step / total, parts)


def turns(config: TrainConfig, fused: bool) -> int:
    """Fragments that one process plays one after the other: threads share the groups where rollouts are fused."""
    threads = min(config.learner_threads, config.num_groups) if fused else 1
    return -(-config.num_groups // threads)


def slowest_of(count: int) -> float:
    """The expected largest of `count` standard normal numbers: 0, 0.56, 0.85, 1.03, ... (Blom's approximation)."""
    return NormalDist().inv_cdf((count - 0.375) / (count + 0.25)) if count > 1 else 0.0


def _collection(config: TrainConfig, costs: Costs, steps: float) -> tuple[float, list[float]]:
    """Processor seconds of collection, and the wall time of each worker on a core of its own."""
    hosts = max(1, min(config.workers, config.num_groups))
    by_worker = [0.0] * hosts
    for group, num_envs in enumerate(config.group_sizes):
        by_worker[group % hosts] += fragment_seconds(costs, num_envs, steps)
    idle = costs.rollout.idle_share
    cpu = (1.0 - idle) * sum(by_worker)
    if config.workers == 0:
        return cpu, by_worker
    sent = costs.transport.per_byte * costs.bytes_per_row * steps * config.recipe.num_envs / hosts
    cpu += hosts * sent
    slowness = [costs.slow.get(worker, 1.0) for worker in range(hosts)]
    if costs.slow and max(slowness) < max(costs.slow.values()):
        slowness[0] = max(costs.slow.values())  # the slow one stays with us, whichever it is
    return cpu, [slow * sec + sent for slow, sec in zip(slowness, by_worker, strict=True)]


def fragment_seconds(costs: Costs, num_envs: int, steps: float) -> float:
    """One group's fragment on a core of its own."""
    rollout = costs.rollout
    per_step = sum(line(num_envs) for line in rollout.step.values())
    return steps * per_step + rollout.evaluate(steps * num_envs) + rollout.per_fragment


def _learning(config: TrainConfig, costs: Costs, rows: float) -> float:
    recipe, update = config.recipe, costs.update
    work = recipe.epochs * (recipe.minibatches * update.per_minibatch + rows * update.per_row)
    once = rows * update.gather_per_row + update.fixed
    if recipe.credit == "vtrace":  # looks at the rows anew, as a rollout does
        once += costs.rollout.evaluate(rows)
    return work * update.speed.get(config.learner_threads, 1.0) + once


def fit(session: Measured, probed: Rollout, minibatch: Line, speed: dict[int, float]) -> Costs:
    """The costs at the session's level: the probes say how a cost splits, the session how large it is.

    `minibatch` is what a step of the optimiser took in probes, over its rows; `speed` as `Update.speed`.
    """
    config, recipe = session.config, session.config.recipe
    cores = available_cores()
    steps = recipe.num_steps if recipe.collects == "steps" else session.env_steps / recipe.num_envs
    rows = steps * recipe.num_envs
    per_group, slow = _group_seconds(session)
    hosts = max(1, min(config.workers, config.num_groups))
    crowd = max(1.0, (1.0 - probed.idle_share) * hosts / cores) if config.workers else 1.0
    size = recipe.num_envs / config.num_groups
    level: dict[str, Line] = {}
    for kind in STEP_KINDS:
        seen = per_group.get(kind, 0.0) / crowd / steps
        if kind == INFERENCE:
            seen = per_group.get("act", 0.0) / crowd / steps
        level[kind] = _scaled(probed.step.get(kind, Line(0.0, 0.0)), size, seen)
    evaluate = _scaled(probed.evaluate, steps * size, per_group.get("evaluate", 0.0) / crowd)
    per_fragment = per_group.get("rest", 0.0) / crowd
    rollout = Rollout(level, evaluate, per_fragment, probed.idle_share)
    return Costs(
        rollout=rollout,
        update=_fit_update(session, rows, minibatch, speed),
        transport=_fit_transport(session, per_group.get(SERIALISATION, 0.0) / crowd),
        driver=_driver_seconds(session),
        slow=slow,
        bytes_per_row=session.num_bytes / rows,
        rows_per_step=session.env_steps / rows,
        steps=steps,
        cores=cores,
        jitter=session.jitter_sec,
        assumed=() if config.workers else ("transfer",),
    )


def _scaled(shape: Line, rows: float, seconds: float) -> Line:
    """A line of that shape through (rows, seconds); per row alone where the probe saw nothing."""
    there = shape(rows)
    if there <= 0:
        return Line(0.0, seconds / rows if rows else 0.0)
    return Line(shape.fixed * seconds / there, shape.per_row * seconds / there)


def _group_seconds(session: Measured) -> tuple[dict[str, float], dict[int, float]]:
    """Mean seconds of a group's fragment by kind on the median worker, and how slow each worker is."""
    config = session.config
    if config.workers == 0:
        alone = session.timeline.workers  # a rollout thread, with overlap
        seconds = session.seconds(alone[0] if alone else DRIVER)
        return _by_kind(seconds, turns(config, "rollout: fused" in seconds)), {}
    hosts = min(config.workers, config.num_groups)
    of_worker: dict[int, list[dict[str, float]]] = {}
    for group, seconds in session.groups.items():
        of_worker.setdefault(group % hosts, []).append(_by_kind(seconds, 1))
    means = {worker: sum(_total(one) for one in ones) / len(ones) for worker, ones in of_worker.items()}
    ordered = sorted(means.values())
    median = ordered[(len(ordered) - 1) // 2]
    typical = next(worker for worker, mean in means.items() if mean == median)
    kinds: dict[str, float] = {}
    for one in of_worker[typical]:
        for kind, sec in one.items():
            kinds[kind] = kinds.get(kind, 0.0) + sec / len(of_worker[typical])
    slow = {worker: mean / median for worker, mean in means.items()}
    return kinds, slow if max(slow.values()) > 1.3 else {}


def _total(kinds: dict[str, float]) -> float:
    return sum(sec for kind, sec in kinds.items() if kind != SERIALISATION)


def _by_kind(seconds: dict[str, float], groups: int) -> dict[str, float]:
    kinds: dict[str, float] = {}
    for name, sec in seconds.items():
        if not name.startswith("rollout"):
            continue
        kind = category(name)
        if kind == INFERENCE:
            kind = "evaluate" if name == "rollout: evaluate" else "act"
        elif kind not in (*STEP_KINDS, SERIALISATION):
            kind = "rest"
        kinds[kind] = kinds.get(kind, 0.0) + sec / groups
    return kinds


def _fit_update(session: Measured, rows: float, minibatch: Line, speed: dict[int, float]) -> Update:
    process = DRIVER if session.config.workers == 0 else LEARNER
    seconds = session.seconds(process)
    recipe = session.config.recipe
    update = seconds.get("learn: update", 0.0) + seconds.get("learn: rows", 0.0)
    line = _scaled(minibatch, rows / recipe.minibatches, update / (recipe.epochs * recipe.minibatches))
    per_batch = sum(
        seconds.get(name, 0.0) for name in ("learn: gather", "learn: advantage", "learn: transfer")
    )
    apart = update + per_batch + seconds.get("learn: evaluate", 0.0)
    rest = sum(sec for name, sec in seconds.items() if name.startswith("learn")) - apart
    return Update(line.fixed, line.per_row, per_batch / rows, rest, speed)


def _fit_transport(session: Measured, send_per_group: float) -> Transport:
    config = session.config
    if config.workers == 0:
        return ASSUMED
    on_the_way = sum(s.end - s.begin for s in critical_path(session.recorded) if s.span == TRANSIT)
    per_iteration = on_the_way / 1e9 / session.iterations
    fullest = -(-config.num_groups // min(config.workers, config.num_groups))
    # two calls, two answers and one task of a queue each: about as long as one another
    share = per_iteration / (3 + fullest)
    bytes_per_group = session.num_bytes / config.num_groups
    return Transport(3 * share, share, send_per_group / max(bytes_per_group, 1.0))


def _driver_seconds(session: Measured) -> float:
    """What the driver does itself: logs, calls; in-process everything but collection and learning."""
    seconds = session.seconds(DRIVER)
    return sum(sec for name, sec in seconds.items() if not name.startswith(("rollout", "learn", "wait")))
