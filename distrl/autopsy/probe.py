"""Tiny runs in this process: what a cost is made of, fixed and per row, and what a core and an option change.

One group of n envs plays a few steps, and a learner learns from the fragment: the same `RolloutWorker` and
`LearnerWorker` as in a run, without Ray, timed by the same spans. Two group sizes give of a step's cost c(n) = a + b n;
two batch sizes of a minibatch's. The least of some repeats counts, since whatever disturbs a probe makes it longer.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import torch

from distrl.autopsy.categories import ENV, FUSED, INFERENCE, ROWS, category
from distrl.runtime.workers import LearnerWorker, RolloutWorker, WorkSpec
from distrl.telemetry import spans
from distrl.trajectory import Trajectory
from distrl.trees import tree_map

REPEATS = 3
MOST_REPEATS = 12
SHORTEST_STEPS = 4
MOST_ENVS = 1_024


@dataclass(frozen=True)
class Line:
    """A cost in seconds: `fixed + per_row * rows`."""

    fixed: float
    per_row: float

    def __call__(self, rows: float) -> float:
        return self.fixed + self.per_row * rows

    @classmethod
    def through(cls, first: tuple[float, float], second: tuple[float, float]) -> Line:
        """Through two (rows, seconds); neither part below 0."""
        (x, y), (x2, y2) = sorted((first, second))
        slope = max(0.0, (y2 - y) / (x2 - x)) if x2 > x else y / max(x, 1)
        slope = min(slope, y / x) if x > 0 else slope
        return cls(max(0.0, y - slope * x), slope)


@dataclass(frozen=True)
class Rollout:
    """What a group's fragment costs here, by what it grows with. Seconds."""

    step: dict[str, Line]  # of one vector step, over the group's envs: env step, inference, row writing
    evaluate: Line  # V and log-prob at the end, over the fragment's rows
    per_fragment: float  # snapshot, restore
    idle_share: float  # of collection: no core was wanted, so the env waits for something


@dataclass(frozen=True)
class Played:
    """One probe: seconds by span of a fragment of `rows` rows in `steps` steps."""

    num_envs: int
    steps: int
    seconds: dict[str, float]
    wall_sec: float
    idle_sec: float  # neither on a core nor in the queue for one
    trajectory: Trajectory


def core_seconds() -> float:
    """Seconds in which this thread had a core or, where the system tells, stood in the queue for one."""
    try:
        with open("/proc/thread-self/schedstat") as schedstat:
            on_core_ns, queued_ns, _ = schedstat.read().split()
        return (int(on_core_ns) + int(queued_ns)) / 1e9
    except (OSError, ValueError):
        return time.thread_time()


def play(spec: WorkSpec, num_envs: int, num_steps: int, budget_sec: float) -> Played:
    """Some fragments of one group of `num_envs` envs: of each span the least, which nothing else made longer."""
    recipe = replace(spec.recipe, num_envs=num_envs, num_steps=num_steps)
    spec = replace(spec, group_sizes=(num_envs,), recipe=recipe, record_events=False)
    snapshot = spec.make_learner("cpu").snapshot()
    worker = RolloutWorker(spec)
    state: Any = None
    least: Played | None = None
    until = time.perf_counter() + budget_sec
    try:
        for iteration in range(MOST_REPEATS):
            recorder = spans.start()
            begun, wanted = time.perf_counter(), core_seconds()
            trajectory, state, _ = worker.collect(0, iteration, snapshot, state)
            wall, wanted = time.perf_counter() - begun, core_seconds() - wanted
            steps = trajectory.num_steps
            one = Played(num_envs, steps, recorder.take(), wall, max(0.0, wall - wanted), trajectory)
            # the first holds resets and compilation: it counts only where there is no other
            least = one if least is None or iteration == 1 else _least(least, one)
            if time.perf_counter() > until and iteration >= 1:
                break
    finally:
        worker.close()
    assert least is not None
    return least


def _least(one: Played, other: Played) -> Played:
    """Of each span the shorter; episodes of other lengths are compared by their steps."""
    scale = one.steps / other.steps
    seconds = {
        name: min(one.seconds.get(name, 0.0), scale * other.seconds.get(name, 0.0))
        for name in one.seconds.keys() | other.seconds.keys()
    }
    faster = min(one, other, key=lambda played: played.wall_sec / played.steps)
    return replace(one, seconds=seconds, wall_sec=faster.wall_sec, idle_sec=faster.idle_sec)


def rollout_costs(
    spec: WorkSpec, num_envs: int, sec_per_step: float, budget_sec: float
) -> tuple[Rollout, Trajectory]:
    """What a fragment costs for groups of about `num_envs`; `sec_per_step` is what one step took before."""
    more = min(4 * num_envs, max(MOST_ENVS, num_envs + 1))  # as far as a prescription goes
    steps = max(
        SHORTEST_STEPS, min(spec.recipe.num_steps, int(budget_sec / 3 / REPEATS / max(sec_per_step, 1e-7)))
    )
    small = play(spec, num_envs, steps, budget_sec)
    large = play(spec, more, steps, budget_sec)
    per_step = {
        kind: Line.through((num_envs, _of(small, kind) / small.steps), (more, _of(large, kind) / large.steps))
        for kind in (ENV, INFERENCE, ROWS, FUSED)
    }
    evaluated = [(p.steps * p.num_envs, p.seconds.get("rollout: evaluate", 0.0)) for p in (small, large)]
    known = sum(small.seconds.get(name, 0.0) for name in ("rollout: restore", "rollout: snapshot"))
    idle = small.idle_sec / small.wall_sec
    rollout = Rollout(per_step, Line.through(*evaluated), known, idle if idle > 0.15 else 0.0)
    return rollout, small.trajectory


def _of(played: Played, kind: str) -> float:
    return sum(
        sec for name, sec in played.seconds.items() if category(name) == kind and name != "rollout: evaluate"
    )


def cut(trajectory: Trajectory, steps: int) -> Trajectory:
    """The first rows of a fragment, as one of its own."""
    columns = {name: getattr(trajectory, name) for name in _COLUMNS}
    first = {name: tree_map(lambda leaf: leaf[:steps], column) for name, column in columns.items()}
    extra = {name: column[:steps] for name, column in trajectory.extra.items()}
    return replace(trajectory, **first, extra=extra)


_COLUMNS = (
    "observation", "action", "reward", "terminated", "done", "valid", "episode_start", "value", "next_value",
    "log_prob",
)  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One step of the optimiser to time: on all rows of `fragments`, as `spec` learns, with so many threads."""

    spec: WorkSpec
    fragments: list[Trajectory]
    threads: int

    def make_learner(self) -> LearnerWorker:
        """A learner whose update is one such step."""
        envs = sum(fragment.num_envs for fragment in self.fragments)
        recipe = replace(self.spec.recipe, num_envs=envs, epochs=1, minibatches=1)
        spec = replace(
            self.spec,
            recipe=recipe,
            record_events=False,
            normalize_reward=False,
            learner_threads=self.threads,
        )
        return LearnerWorker(spec, spec.make_learner("cpu").state())


def minibatch_seconds(steps: list[Step], budget_sec: float) -> list[float]:
    """What each takes: the least of some repeats, taken in turns, so that what disturbs one disturbs all."""
    learners = [step.make_learner() for step in steps]
    least = [float("inf")] * len(steps)
    until = time.perf_counter() + budget_sec * len(steps)
    before = torch.get_num_threads()
    try:
        for repeat in range(MOST_REPEATS):
            for index, (step, learner) in enumerate(zip(steps, learners, strict=True)):
                torch.set_num_threads(step.threads)
                recorder = spans.start()
                learner.update(0.0, *step.fragments)
                if repeat > 0:  # the first makes what is made once
                    taken = recorder.take()
                    least[index] = min(least[index], taken["learn: update"] + taken.get("learn: rows", 0.0))
            if time.perf_counter() > until and repeat > 0:
                break
    finally:
        torch.set_num_threads(before)
    return least


@dataclass(frozen=True)
class Learning:
    """What a step of the optimiser takes here: over its rows, and with other thread counts over the session's."""

    minibatch: Line
    speed: dict[int, float]


def learning_costs(
    spec: WorkSpec, trajectory: Trajectory, rows: float, threads: list[int], budget_sec: float
) -> Learning:
    """For minibatches of about `rows` rows; `threads` are the counts to try beside `spec.learner_threads`."""
    num_envs = trajectory.num_envs
    steps = max(1, min(trajectory.num_steps, round(rows / num_envs)))
    copies = max(1, round(rows / (num_envs * steps)))
    real = [cut(trajectory, steps)] * copies
    own = spec.learner_threads
    few = [cut(trajectory, max(1, steps // 8))]
    others = [count for count in threads if count != own]
    to_time = [Step(spec, real, own), Step(spec, few, own), *(Step(spec, real, count) for count in others)]
    at_own, small, *at_others = minibatch_seconds(to_time, budget_sec)
    line = Line.through((few[0].num_envs * few[0].num_steps, small), (num_envs * steps * copies, at_own))
    speed = {own: 1.0} | {count: sec / at_own for count, sec in zip(others, at_others, strict=True)}
    return Learning(line, speed)
