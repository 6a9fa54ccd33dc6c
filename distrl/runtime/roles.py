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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from distrl.errors import RunFailed
from distrl.learner import Snapshot
from distrl.rlhf.roles import LearnReport, RoleSpec, RoleWorker
from distrl.telemetry.spans import SpanTotals, span


@dataclass(frozen=True)
class Host:
    """Workers that host the same roles and share their work. `cpus` and `gpus` are of each worker."""

    roles: tuple[str, ...]
    workers: int = 1
    cpus: float = 1.0
    gpus: float = 0.0

    @property
    def name(self) -> str:
        """`actor`, or `actor+generator`."""
        return "+".join(self.roles)


class Workers(Protocol):
    """A host's workers, wherever they are."""

    host: Host

    def call(self, method: str, *args: Any) -> list[Any]:
        """Calls it in every worker; a handle for each answer, which is good as an argument of another call."""
        ...

    def get(self, handles: Sequence[Any]) -> list[Any]:
        """Waits for answers. RunFailed names the role whose worker failed or did not answer in time."""
        ...


class LocalWorkers:
    """One worker in this process: handles are the answers themselves."""

    def __init__(self, host: Host, worker: RoleWorker) -> None:
        self.host = host
        self.worker = worker

    def call(self, method: str, *args: Any) -> list[Any]:
        return [getattr(self.worker, method)(*args)]

    def get(self, handles: Sequence[Any]) -> list[Any]:
        return list(handles)


class Roles:
    """An iteration's steps over hosts that together have every role."""

    def __init__(self, spec: RoleSpec, hosts: Sequence[Workers]) -> None:
        self.spec = spec
        self.hosts = list(hosts)
        self.of = {role: workers for workers in hosts for role in workers.host.roles}
        self.recipe = spec.recipe
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
        return self.of["generator"].call("write", iteration)

    def opinions(self, written: Sequence[Any]) -> dict[str, list[Any]]:
        """Has every role say what it thinks of them, all at once where they live apart."""
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
        waiting = [(workers, self._begin_learning(workers, given)) for workers in self.learners]
        reports = []
        for workers, handles in waiting:
            with span(f"wait: {workers.host.name}"):
                told: list[LearnReport] = workers.get(handles)
            self._agree(workers, told)
            reports.append(told[0])
        return _merged(reports)

    def _begin_learning(self, workers: Workers, given: tuple[Any, ...]) -> list[Any]:
        if workers.host.workers == 1:
            return workers.call("learn", *given)
        workers.call("begin", *given)
        for epoch in range(self.recipe.epochs):
            for minibatch in range(min(self.recipe.minibatches, self.spec.num_responses)):
                workers.call("step", *workers.call("gradient", epoch, minibatch))
            if self.recipe.target_kl is not None and not workers.get(workers.call("goes_on", epoch))[0]:
                break
        return workers.call("finish")

    @staticmethod
    def _agree(workers: Workers, told: Sequence[LearnReport]) -> None:
        if len({tuple(sorted(report.digests.items())) for report in told}) > 1:
            raise RunFailed(
                f"the workers of {workers.host.name} hold different parameters after version {told[0].version}"
            )

    def publish(self) -> None:
        """The actor's weights to whoever samples; returns when all have acknowledged version and digest."""
        actor, generator = self.of["actor"], self.of["generator"]
        # who samples with the very weights that it trained is asked too
        snapshot = None if generator is actor else actor.call("snapshot")[0]
        with span(f"wait: {actor.host.name}"):
            version, digest = actor.get(actor.call("snapshot_name"))[0]
        acknowledged = generator.call("load_writer", snapshot)
        with span(f"wait: {generator.host.name}"):
            for number, answer in enumerate(generator.get(acknowledged)):
                if answer != (version, digest):
                    raise RunFailed(
                        f"generator worker {number} samples with version {answer[0]} ({answer[1][:12]}), the actor "
                        f"published version {version} ({digest[:12]}): its weights did not arrive"
                    )
        self.published = version, digest

    def snapshot(self) -> Snapshot:
        """The actor as it stands."""
        actor = self.of["actor"]
        found: Snapshot = actor.get(actor.call("snapshot"))[0]
        return found

    def state(self) -> dict[str, Any]:
        """Role -> state tree, of actor and critic."""
        states: dict[str, Any] = {}
        for workers in self.learners:
            states |= workers.get(workers.call("state")[:1])[0]
        return states

    def take_spans(self) -> dict[str, SpanTotals]:
        """Seconds by name of each worker apart from the driver."""
        totals: dict[str, SpanTotals] = {}
        for workers in self.hosts:
            if isinstance(workers, LocalWorkers):
                continue
            for number, told in enumerate(workers.get(workers.call("take_spans"))):
                name = workers.host.name if workers.host.workers == 1 else f"{workers.host.name} {number}"
                totals[name] = told
        return totals

    def close(self) -> None:
        """Nothing outlives the process."""


def _merged(reports: Sequence[LearnReport]) -> LearnReport:
    """The actor's report with what only the critic's has: its loss, and its own digest."""
    first = reports[0]
    if len(reports) == 1:
        return first
    critic = reports[1]
    metrics = {**critic.metrics, **first.metrics}
    metrics["skipped_updates"] = max(one.metrics["skipped_updates"] for one in reports)
    return LearnReport(
        metrics,
        first.version,
        first.digests | critic.digests,
        first.num_responses,
        first.num_tokens,
        first.pid,
    )
