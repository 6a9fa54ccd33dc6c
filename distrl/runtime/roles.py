"""Roles at work: who hosts which, and an iteration of RLHF over them, the same in-process and on Ray.

    generator   |write i|                                  |write i+1|
    reference            |log-probs|
    reward               |scores   |
    critic               |values   | |update|
    actor                |log-probs| |update|-- weights -->          acknowledged before a token is sampled

The driver passes references; the batch travels from worker to worker. What roles say of the responses they say at the
same time where they live apart, and so do actor and critic learn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from distrl.errors import RunFailed
from distrl.learner import Snapshot
from distrl.rlhf.models import ModelParts
from distrl.rlhf.role_spec import RoleSpec
from distrl.rlhf.roles import LearnReport, RoleWorker
from distrl.telemetry.spans import SpanTotals, span


@dataclass(frozen=True)
class Host:
    """Workers that host the same roles and share their work; 0 of them: this process. `cpus` and `gpus` are of each.

    Models of roles in `offload` are on the device for their turns alone.
    """

    roles: tuple[str, ...]
    workers: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    offload: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """`actor`, or `generator+actor`."""
        return "+".join(self.roles)


class RoleLost(RunFailed):
    """A role's worker died or does not answer. What it was asked may be asked again of new ones: `Roles.restart`."""

    def __init__(self, role: str, worker: int, asked: str, cause: str) -> None:
        self.role, self.worker, self.asked, self.cause = role, worker, asked, cause
        super().__init__(f"{role} worker {worker} is lost ({asked}): {cause}")

    def __reduce__(self) -> tuple[Any, ...]:
        return RoleLost, (self.role, self.worker, self.asked, self.cause)


class Workers(Protocol):
    """A host's workers, wherever they are."""

    host: Host

    def call(self, method: str, *args: Any) -> list[Any]:
        """Calls it in every worker; a handle for each answer, which is good as an argument of another call."""
        ...

    def first(self, method: str, *args: Any) -> Any:
        """As `call`, in the first worker alone."""
        ...

    def get(self, handles: Sequence[Any]) -> list[Any]:
        """Waits for answers. RoleLost names the worker that died or did not answer in time."""
        ...


class LocalWorkers:
    """One worker in this process: handles are the answers themselves."""

    def __init__(self, host: Host, worker: RoleWorker) -> None:
        self.host = host
        self.worker = worker

    def call(self, method: str, *args: Any) -> list[Any]:
        return [self.first(method, *args)]

    def first(self, method: str, *args: Any) -> Any:
        return getattr(self.worker, method)(*args)

    def get(self, handles: Sequence[Any]) -> list[Any]:
        return list(handles)


class Stage(Protocol):
    """Where roles are started, and started anew."""

    def start(self, states: dict[str, Any] | None) -> Sequence[Workers]:
        """All of them; trained ones go on from `states` (`Roles.state`)."""
        ...

    def close(self) -> None:
        """Ends what it started."""
        ...


class LocalStage:
    """Every role in this process, without Ray."""

    def __init__(self, spec: RoleSpec, models: dict[str, ModelParts], host: Host) -> None:
        self.spec, self.models, self.host = spec, models, host

    def start(self, states: dict[str, Any] | None) -> Sequence[Workers]:
        torch.set_num_threads(self.spec.threads)
        worker = RoleWorker(self.spec, self.host.roles, self.models, states, offload=self.host.offload)
        return [LocalWorkers(self.host, worker)]

    def close(self) -> None:
        """Nothing outlives the process."""


def start_roles(
    spec: RoleSpec,
    models: dict[str, ModelParts],
    states: dict[str, Any] | None,
    hosts: Sequence[Host],
    address: str | None = None,
    answer_timeout_sec: float = 1800.0,
    start_timeout_sec: float = 300.0,
    check_interrupt: Callable[[], None] = lambda: None,
) -> Roles:
    """The roles at work, in this process where the one host has no workers, else on Ray, by the same arguments.

    `models` are what roles start with, `states` what trained ones go on from. A call that takes a worker longer than
    `answer_timeout_sec` loses it. BadInput where the cluster can never hold the hosts, RunFailed where it does not
    within `start_timeout_sec`: needed against available.
    """
    from distrl.runtime.placement import require_valid

    require_valid(hosts, spec.recipe, spec.value_head)
    if hosts[0].workers == 0:
        return Roles(spec, LocalStage(spec, models, hosts[0]), states)
    from distrl.runtime.roles_ray import RayStage

    stage = RayStage(spec, models, hosts, address, answer_timeout_sec, start_timeout_sec, check_interrupt)
    try:
        return Roles(spec, stage, states)
    except BaseException:
        stage.close()
        raise


class Roles:
    """An iteration's steps over hosts that together have every role. `close` ends them."""

    def __init__(self, spec: RoleSpec, stage: Stage, states: dict[str, Any] | None = None) -> None:
        self.spec = spec
        self.stage = stage
        self.recipe = spec.recipe
        self.restart(states)

    def restart(self, states: dict[str, Any] | None) -> None:
        """Every worker anew, trained ones from `states`: after one was lost, the iteration can be done again."""
        self.hosts = list(self.stage.start(states))
        self.of = {role: workers for workers in self.hosts for role in workers.host.roles}
        self.published: tuple[int, str] | None = None

    @property
    def learners(self) -> list[Workers]:
        """The hosts that learn: one where actor and critic live together."""
        found = [self.of["actor"]]
        if "critic" in self.of and self.of["critic"] is not found[0]:
            found.append(self.of["critic"])
        return found

    def write(self, iteration: int) -> list[Any]:
        """Has an iteration's responses written; handles of each worker's."""
        with span("submit"):  # in this process the roles' own spans lie within
            return self.of["generator"].call("write", iteration)

    def opinions(self, written: Sequence[Any]) -> dict[str, list[Any]]:
        """Has every role say what it thinks of them, all at once where they live apart."""
        with span("submit"):
            said = {
                "reference": self.of["reference"].call("reference_log_probs", *written),
                "reward": self.of["reward"].call("scores", *written),
            }
            if self.recipe.trains_value:
                said["critic"] = self.of["critic"].call("values", *written)
            if self.recipe.exact_ratio or self.recipe.importance_cap is not None:
                said["actor"] = self.of["actor"].call("actor_log_probs", *written)
        return said

    def learn(
        self, progress: float, beta: float, written: Sequence[Any], said: dict[str, list[Any]]
    ) -> LearnReport:
        """Has actor and critic learn from it, at the same time where they live apart; their reports as one."""
        named = {"written": list(written), **said}
        layout = tuple((name, len(parts)) for name, parts in named.items())
        parts = [part for several in named.values() for part in several]
        given = (progress, beta, layout, *parts)
        with span("submit"):
            waiting = [(workers, self._begin_learning(workers, given)) for workers in self.learners]
        reports = []
        for workers, handles in waiting:
            told: list[LearnReport] = workers.get(handles)
            self._agree(workers, told)
            reports.append(told[0])
        return _merged(reports)

    def _begin_learning(self, workers: Workers, given: tuple[Any, ...]) -> list[Any]:
        if workers.host.workers <= 1:
            return workers.call("learn", *given)
        workers.call("begin", *given)
        for epoch in range(self.recipe.epochs):
            for minibatch in range(min(self.recipe.minibatches, self.spec.num_responses)):
                workers.call("step", *workers.call("gradient", epoch, minibatch))
        return workers.call("finish")

    @staticmethod
    def _agree(workers: Workers, told: Sequence[LearnReport]) -> None:
        if len({tuple(sorted(report.digests.items())) for report in told}) > 1:
            raise RunFailed(
                f"the workers of {workers.host.name} hold different parameters after version {told[0].version}"
            )

    def publish(self) -> None:
        """The actor's weights to whoever samples; returns when all have acknowledged version and digest."""
        with span("publish"):
            version, digest = self._acknowledged()
        self.published = version, digest

    def _acknowledged(self) -> tuple[int, str]:
        """Version and digest of the actor, once every generator has said that it samples with them."""
        actor, generator = self.of["actor"], self.of["generator"]
        # who samples with the very weights that it trained is asked too
        snapshot = None if generator is actor else actor.first("changes")
        acknowledged = generator.call("load_writer", snapshot)
        version, digest = actor.get([actor.first("snapshot_name")])[0]
        for number, answer in enumerate(generator.get(acknowledged)):
            if tuple(answer) != (version, digest):
                raise RunFailed(
                    f"generator worker {number} samples with version {answer[0]} ({answer[1][:12]}), the actor "
                    f"published version {version} ({digest[:12]}): its weights did not arrive"
                )
        return version, digest

    def snapshot(self) -> Snapshot:
        """The actor as it stands."""
        actor = self.of["actor"]
        found: Snapshot = actor.get([actor.first("snapshot")])[0]
        return found

    def state(self) -> dict[str, Any]:
        """Role -> state tree, of actor and critic."""
        states: dict[str, Any] = {}
        for workers in self.learners:
            states |= workers.get([workers.first("state")])[0]
        return states

    def take_spans(self) -> dict[str, SpanTotals]:
        """Seconds by name of each worker apart from the driver since the last take; they sum to its wall time."""
        asked = [(workers, workers.call("take_spans")) for workers in self.hosts if workers.host.workers > 0]
        totals: dict[str, SpanTotals] = {}
        for workers, handles in asked:
            for number, told in enumerate(workers.get(handles)):
                name = workers.host.name if workers.host.workers == 1 else f"{workers.host.name} {number}"
                totals[name] = told
        return totals

    def close(self) -> None:
        """Ends every worker; nothing is left running."""
        self.stage.close()


def _merged(reports: Sequence[LearnReport]) -> LearnReport:
    """The actor's report with what only the critic's has: its loss, and its own digest."""
    first = reports[0]
    if len(reports) == 1:
        return first
    critic = reports[1]
    metrics = {**critic.metrics, **first.metrics}
    metrics["skipped_updates"] = max(one.metrics["skipped_updates"] for one in reports)
    return replace(first, metrics=metrics, digests=first.digests | critic.digests)
