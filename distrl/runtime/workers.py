"""What runs in a worker process: ordinary classes, the same in-process and behind Ray.

`RolloutWorker` hosts env groups and collects; `LearnerWorker` owns the learner. Neither knows Ray.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event, Lock
from typing import Any, Literal, cast

import torch

from distrl.envs import EnvGroup, EnvSpec
from distrl.envs.registrations import register
from distrl.inference import make_inference
from distrl.learner import Learner, Snapshot, digest
from distrl.policies import PolicySpec, load_parameters, make_policy
from distrl.recipes import Recipe
from distrl.rollout import Collector, EpisodeRecord, Stopped
from distrl.rollout_fused import FusedCollector
from distrl.runtime.side_by_side import SideBySide
from distrl.telemetry import spans
from distrl.telemetry.spans import SpanTotals, TakenWhenSent, span
from distrl.trajectory import Trajectory


@dataclass(frozen=True)
class WorkSpec:
    """All that a worker needs to know of a run; travels to each once."""

    env: EnvSpec
    policy: PolicySpec
    recipe: Recipe
    seed: int
    group_sizes: tuple[int, ...]
    observation_space: Any
    action_space: Any
    device: str = "cpu"
    learner_threads: int = 1
    normalize_reward: bool = False
    max_skipped_updates: int = 10
    paths: dict[str, str] = field(default_factory=dict)  # which of twins does what: {"rollout": "fused", ...}
    rollout_device: str = "cpu"
    overlap: int = 0  # versions that a fragment's policy is behind the learner's
    record_events: bool = False  # spans with their moments: a profile wants them
    reproducibility: str = (
        "exact"  # what the env's trial found; "unknown" where it is not known to be a function of its seed
    )
    notes: tuple[str, ...] = ()  # what the trial tells
    registrations: tuple[
        Any, ...
    ] = ()  # Gymnasium's specs of env ids that only the driver's script registered

    def first_env(self, group: int) -> int:
        """Number in the run of a group's first env."""
        return sum(self.group_sizes[:group])

    def make_learner(self, device: str | None = None) -> Learner:
        """The learner with its first parameters."""
        policy = make_policy(self.policy, self.observation_space, self.action_space, self.seed)
        return Learner(
            policy,
            self.recipe,
            self.seed,
            device or self.device,
            self.policy.normalize_observation,
            self.normalize_reward,
            self.max_skipped_updates,
            "captured" if self.paths.get("learner") == "captured" else self.path("learner"),
            self.learner_threads,
        )

    def warm(self) -> None:
        """Compile what the workers will want into Numba's cache: once, not each of them."""
        policy = self.make_learner("cpu").policy if self.path("learner") == "compiled" else None
        if self.path("inference") == "compiled":
            spaces = self.observation_space, self.action_space
            policy = policy or make_policy(self.policy, *spaces, self.seed)
            inference = make_inference(policy, "compiled")
            if self.fused:
                group = EnvGroup(self.env, 0, num_envs=1, first_env=0, seed=self.seed)
                FusedCollector(group, policy, self.seed, "steps", 1, inference=inference)
                group.close()

    @property
    def fused(self) -> bool:
        """Whether policy and env are one compiled loop."""
        return self.paths.get("rollout") == "fused"

    @property
    def rollout_threads(self) -> int:
        """Threads that play the groups of one process: fused rollouts let go of Python's lock. No bit depends on them."""
        return min(self.learner_threads, len(self.group_sizes)) if self.fused else 1

    def path(self, part: str) -> Literal["torch", "compiled"]:
        """Which of the twins does a part of the work: `learner` or `inference`."""
        return "compiled" if self.paths.get(part) == "compiled" else "torch"


@dataclass(frozen=True)
class CollectReport:
    """What the driver is told of a fragment; the trajectory itself goes to the learner."""

    group: int
    version: int  # of the policy that collected it
    env_steps: int
    episodes: list[EpisodeRecord]
    dropped: int
    num_bytes: int
    reproducibility: str
    warnings: list[str]
    pid: int
    rss_bytes: int
    spans: SpanTotals = field(default_factory=SpanTotals)


@dataclass(frozen=True)
class UpdateReport:
    """What the driver is told of an update; the new snapshot goes to the workers."""

    metrics: dict[str, float]
    version: int
    digest: str
    pid: int
    rss_bytes: int
    spans: SpanTotals = field(default_factory=SpanTotals)


class RolloutWorker:
    """Hosts env groups. Any worker can collect any group's next fragment, given its state at the last boundary."""

    def __init__(self, spec: WorkSpec, own_process: bool = False) -> None:
        self.spec = spec
        self.own_process = own_process
        register(spec.registrations)
        if own_process:
            gc.collect()  # as a session does
            gc.freeze()
            torch.set_num_threads(1)
            spans.start("wait: learner", spec.record_events)
        policy = make_policy(spec.policy, spec.observation_space, spec.action_space, spec.seed)
        self.policy = policy.to(spec.rollout_device)
        self.inference = make_inference(self.policy, spec.path("inference"))
        self.loaded: str | None = None
        self.collectors: dict[int, tuple[int, Collector]] = {}  # group -> the boundary it stands at
        self.stopped = Event()
        self._side_by_side = SideBySide(1 if own_process else spec.rollout_threads, "env-group")
        self._making = Lock()  # of a collector: its kernels are made once

    def ready(self) -> int:
        """The process id: answers once the worker is up."""
        return os.getpid()

    def collect(
        self, group: int, iteration: int, snapshot: Snapshot, state: dict[str, Any] | None
    ) -> tuple[Trajectory, dict[str, Any], CollectReport]:
        """A group's fragment of `iteration` with the policy of `snapshot`, and the group's state after it.

        `state` is the group's at this boundary, read only where the worker does not host the group there
        already; None at the first boundary of all. Raises `rollout.Stopped` after `stop`.
        """
        self._load(snapshot)
        return self._play(group, iteration, snapshot.version, state)

    def collect_all(
        self, iteration: int, snapshot: Snapshot, states: list[dict[str, Any] | None]
    ) -> list[tuple[Trajectory, dict[str, Any], CollectReport]]:
        """`collect` of every group, given all their states; on `WorkSpec.rollout_threads` threads in the caller's process."""
        self._load(snapshot)
        return self._side_by_side.run(
            lambda group: self._play(group, iteration, snapshot.version, states[group]),
            len(states),
            waits_as="rollout: fused",  # which the others are still at
        )

    def _load(self, snapshot: Snapshot) -> None:
        if self.stopped.is_set():
            raise Stopped
        with span("rollout: policy"):
            if self.loaded != snapshot.digest:
                load_parameters(self.policy, snapshot.arrays)
                self.inference.load()
                self.loaded = snapshot.digest

    def _play(
        self, group: int, iteration: int, version: int, state: dict[str, Any] | None
    ) -> tuple[Trajectory, dict[str, Any], CollectReport]:
        if self._unwanted():
            raise Stopped
        with span("rollout: restore"):
            collector = self._collector(group, iteration, state)
        self.collectors.pop(group, None)  # not at a boundary until the fragment is whole
        # rows: what is neither inference nor env, as noise, writing rows, counting episodes
        with span("rollout: rows"), _closed_by_error(collector):
            fragment = collector.collect(iteration, version)
        with span("rollout: snapshot"), _closed_by_error(collector):
            after = collector.snapshot()
        self.collectors[group] = (iteration + 1, collector)
        env_group = collector.group
        if self.own_process:
            spans.mark(
                "rollout: send"
            )  # the results on their way into the object store, until the report goes
        with span("rollout: report"):
            report = CollectReport(
                group=group,
                version=version,
                env_steps=fragment.trajectory.num_valid,
                episodes=fragment.episodes,
                dropped=fragment.dropped,
                num_bytes=fragment.trajectory.num_bytes,
                reproducibility=env_group.reproducibility,
                warnings=list(env_group.warnings),
                pid=os.getpid(),
                rss_bytes=rss_bytes(),
                spans=cast(SpanTotals, TakenWhenSent("wait: learner")) if self.own_process else SpanTotals(),
            )
        return fragment.trajectory, after, report

    def _collector(self, group: int, iteration: int, state: dict[str, Any] | None) -> Collector:
        boundary, collector = self.collectors.get(group, (None, None))
        if collector is not None and boundary == iteration:
            return collector
        if collector is not None:
            collector.group.close()
        spec = self.spec
        recipe = spec.recipe
        with self._making:
            env_group = EnvGroup(spec.env, group, spec.group_sizes[group], spec.first_env(group), spec.seed)
            collector = (FusedCollector if spec.fused else Collector)(
                env_group,
                self.policy,
                spec.seed,
                recipe.collects,
                recipe.num_steps,
                self._unwanted,
                self.inference,
            )
        with _closed_by_error(collector):
            if state is None:
                collector.start()
            else:
                collector.restore(state)
        return collector

    def drop(self, group: int) -> None:
        """Close a group that another worker hosts now."""
        _, collector = self.collectors.pop(group, (None, None))
        if collector is not None:
            collector.group.close()

    def stop(self) -> None:
        """From any thread: a fragment that is being collected ends at its next row, and none begins."""
        self.stopped.set()

    def _unwanted(self) -> bool:
        return self.stopped.is_set() or self._side_by_side.given_up.is_set()

    def close(self) -> None:
        """Close every env."""
        self._side_by_side.close()
        for group in list(self.collectors):
            self.drop(group)


@contextmanager
def _closed_by_error(collector: Collector) -> Iterator[None]:
    """Closes the envs of a collector that fails: it is at no boundary any more, and nobody will ask for it."""
    try:
        yield
    except BaseException as error:
        try:
            collector.group.close()
        except Exception as closing:  # an env may raise anything
            error.add_note(f"closing its envs raised {closing!r} too")
        raise


class LearnerWorker:
    """Owns the learner, in the driver or in a process of its own."""

    def __init__(self, spec: WorkSpec, state: dict[str, Any], own_process: bool = False) -> None:
        self.spec = spec
        self.own_process = own_process
        if own_process:
            spans.start("wait: workers", spec.record_events)
            torch.set_num_threads(spec.learner_threads)
        self.learner = spec.make_learner()
        self.learner.load_state(state)

    def ready(self) -> int:
        """The process id: answers once the learner is up."""
        return os.getpid()

    def snapshot(self) -> Snapshot:
        """The policy as it stands."""
        return self.learner.snapshot()

    def update(self, progress: float, *trajectories: Trajectory) -> tuple[UpdateReport, Snapshot]:
        """Learn from one iteration's trajectories, in group order; the report and the next snapshot."""
        with span("learn: report"):  # what is left beside its parts
            metrics = self.learner.update(list(trajectories), progress)
            with span("learn: publish"):
                snapshot = self.learner.snapshot()
            memory = rss_bytes()
        taken = spans.current().take_totals() if self.own_process else SpanTotals()
        return UpdateReport(metrics, snapshot.version, snapshot.digest, os.getpid(), memory, taken), snapshot

    def state(self) -> dict[str, Any]:
        """State tree for the checkpoint."""
        return self.learner.state()


def older_snapshots(state: dict[str, Any]) -> list[Snapshot]:
    """Those that a runtime's state holds beside the learner's own; none in a checkpoint without overlap."""
    arrays = {int(version): one for version, one in state.get("snapshots", {}).items()}
    return [Snapshot(arrays[version], version, digest(arrays[version])) for version in sorted(arrays)]


def snapshots_tree(snapshots: Iterable[Snapshot]) -> dict[str, Any]:
    """State tree of all but the newest, which is the learner's own: version -> parameters and moments."""
    ordered = sorted(snapshots, key=lambda one: one.version)
    return {str(one.version): one.arrays for one in ordered[:-1]}


def rss_bytes() -> int:
    """Resident memory of this process; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
