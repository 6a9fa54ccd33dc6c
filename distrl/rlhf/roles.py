"""What runs in a role's worker: an ordinary class, the same in-process and behind Ray.

    generator  ->  responses  ->  actor, reference, critic, reward say what they think  ->  actor and critic learn

A `RoleWorker` hosts one role or several, and is one of `num_shares` that share each role's work. Responses are written
in batches that the configuration fixes, models look at pieces that it fixes, and gradients are joined by a fixed tree:
which worker has which share changes no bit.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from distrl.learner import Snapshot
from distrl.maths.random import derive_seed
from distrl.policies.lm import LanguagePolicy
from distrl.policies.protocol import load_parameters
from distrl.rlhf.devices import make_repeatable
from distrl.rlhf.diagnostics import response_metrics, score_metrics
from distrl.rlhf.experience import Opinions, episodes, experience, summary
from distrl.rlhf.generation import CachedGenerator, Generator, respond
from distrl.rlhf.learning import RoleLearner
from distrl.rlhf.models import ModelParts, torch_dtype
from distrl.rlhf.offload import Held, Turns
from distrl.rlhf.opinions import Part, first_fault, join, log_probs, pieces, values
from distrl.rlhf.prompts import PromptOrder
from distrl.rlhf.responses import Responses, share_of
from distrl.rlhf.role_spec import RoleSpec
from distrl.rlhf.weights import Weights
from distrl.telemetry import spans
from distrl.telemetry.spans import TakenWhenSent, span
from distrl.updates.shares import LARGEST, Share, joined, stops

Layout = tuple[tuple[str, int], ...]
WAITING = "wait: driver"


@dataclass(frozen=True)
class LearnReport:
    """What the driver learns of an update."""

    metrics: dict[str, float]
    version: int
    digests: dict[str, str]  # role -> of its parameters after the update
    num_responses: int
    num_tokens: int
    pid: int
    fault: str | None = None  # why the first response without a score has none
    episodes: tuple[tuple[float, int], ...] = ()  # return and length of each response that has one


class RoleWorker:
    """Hosts `roles`; `models` are theirs, `states` what trained ones go on from (`state`).

    Models of roles in `offload` are on their device for their turns alone, on the CPU in between.
    """

    def __init__(
        self,
        spec: RoleSpec,
        roles: Sequence[str],
        models: dict[str, ModelParts],
        states: dict[str, Any] | None = None,
        share: int = 0,
        num_shares: int = 1,
        remote: bool = False,
        offload: Sequence[str] = (),
    ) -> None:
        if remote:
            torch.set_num_threads(spec.threads)
            spans.start("start", spec.record_events)
        make_repeatable(spec.device(role) for role in roles)
        self.spec, self.roles = spec, tuple(roles)
        self.turns = Turns(offload)
        self.share, self.num_shares = share, num_shares
        self.learner: RoleLearner | None = None
        models = {role: replace(parts, fused=spec.fast_paths) for role, parts in models.items()}
        if "actor" in roles or "critic" in roles:
            self.learner = RoleLearner(spec, roles, models)
            policy = self.learner.policy
            self.weights = {role: Weights(getattr(policy, role)) for role in self._trained}
            if self._has("actor"):  # as generators have them
                self.sampled = (
                    self.weights["actor"]
                    if spec.dtype == "float32"
                    else Weights(policy.actor, torch_dtype(spec.dtype))
                )
        if "generator" in roles:
            own, parts = self._own_writer(), replace(models["actor"], dtype=spec.dtype)
            self.writer = own if own is not None else parts.build(spec.device("generator"))
            own_generator = spec.generator(self.writer, spec) if spec.generator is not None else None
            self.generator: Generator = own_generator or CachedGenerator(
                self.writer,
                spec.end_tokens,
                spec.recipe.temperature,
                fast=spec.fast_paths,
                vocabulary=spec.vocabulary,
                steps=spec.generation,
                longest=max(map(len, spec.prompts), default=0) + spec.recipe.max_response,
            )
            self.order = PromptOrder(len(spec.prompts), spec.seed)
            self.written_by = 0
            self.loaded = Weights(self.writer)
        if "reference" in roles:
            parts = replace(models["reference"], dtype=spec.dtype)
            model = parts.build(spec.device("reference")).requires_grad_(False)
            self.reference = LanguagePolicy(model, None, spec.recipe.temperature, spec.vocabulary)
        if "reward" in roles:
            self.scorer = spec.reward.build(spec.device("reward"))
        if states is not None:
            self.load_states(states)
        for owner in {self._owner(role) for role in roles}:
            self.turns.leave(owner, self._held(owner, learns=True))
        if remote:
            spans.mark(WAITING)

    def _own_writer(self) -> nn.Module | None:
        """The actor's own model, where it lives here too and is written with as it is, not rounded to another dtype."""
        return (
            self.learner.policy.actor if self.learner is not None and self.spec.dtype == "float32" else None
        )

    # turns on a device

    def _owner(self, role: str) -> str:
        """Whose models a role uses: the actor's where it writes with them, or is a head on them."""
        on_actor = role == "critic" and self.spec.value_head
        on_actor |= role == "generator" and self._own_writer() is not None
        return "actor" if on_actor and self._has("actor") else role

    def _held(self, owner: str, learns: bool = False) -> list[Held]:
        """What it has on the device: its models, where it learns its optimiser's moments too."""
        if owner == "reward":
            return [*getattr(self.scorer, "models", tuple)()]
        if owner in ("generator", "reference"):
            return [self.writer if owner == "generator" else self.reference]
        if not self._has(owner):
            return []
        learner = cast(RoleLearner, self.learner)
        held: list[Held] = [getattr(learner.policy, owner)]
        if owner == "actor" and self.spec.value_head and self._has("critic"):
            held.append(learner.policy.critic)
        if learns:
            held.append(learner.shared.groups[owner].optimiser)
        return held

    @contextmanager
    def _turn(self, *roles: str, learns: bool = False) -> Iterator[None]:
        with ExitStack() as stack:
            for owner in dict.fromkeys(self._owner(role) for role in roles):
                device = self.spec.device(owner)
                stack.enter_context(self.turns.turn(owner, device, self._held(owner, learns)))
            yield

    @property
    def _trained(self) -> tuple[str, ...]:
        """Which roles learn here."""
        return self.learner.trained if self.learner is not None else ()

    # writing

    def write(self, iteration: int) -> list[Responses]:
        """This share's batches of an iteration's responses, with the weights that were loaded last."""
        spec = self.spec
        size = spec.recipe.group_size
        with span("generate"), self._turn("generator"):
            numbers = np.repeat(self.order.of(iteration, spec.num_prompts), size)
            starts = range(0, spec.num_responses, spec.generation_batch)
            written = []
            for i in share_of(len(starts), self.share, self.num_shares):
                rows = range(starts[i], min(starts[i] + spec.generation_batch, spec.num_responses))
                written.append(
                    respond(
                        self.generator, [spec.prompts[numbers[row]] for row in rows], numbers[rows.start : rows.stop],
                        spec.seed, iteration, rows, spec.recipe.max_response, self.written_by,
                    )
                )  # fmt: skip
            if self._owner("generator") in self.turns.offloaded and self.spec.generator is None:
                cast(CachedGenerator, self.generator).rest()
        return written

    def write_samples(self) -> list[Responses]:
        """Responses to the first `spec.samples` prompts, with the weights that were loaded last and the same noise each time."""
        spec = self.spec
        with span("generate"), self._turn("generator"):
            rows = range(min(spec.samples, len(spec.prompts)))
            prompts, seed = [spec.prompts[row] for row in rows], derive_seed(spec.seed, "samples")
            written = respond(
                self._sampler(),
                prompts,
                np.array(rows),
                seed,
                0,
                rows,
                spec.recipe.max_response,
                self.written_by,
            )
        return [written]

    def _sampler(self) -> Generator:
        """The plain loop where others would be compiled for another number of rows."""
        spec = self.spec
        if spec.generator is not None or spec.generation == "plain":
            return self.generator
        temperature = spec.recipe.temperature
        return CachedGenerator(
            self.writer, spec.end_tokens, temperature, fast=spec.fast_paths, vocabulary=spec.vocabulary
        )

    def load_writer(self, snapshot: Snapshot | None) -> tuple[int, str]:
        """Takes the actor's new weights over; None where the actor lives here too.

        Returns the version and the digest of what it writes with from now on.
        """
        if snapshot is None and self._own_writer() is not None:
            self.written_by, found = self.snapshot_name()
            return self.written_by, found
        with span("load weights"):
            if snapshot is None:
                learner = cast(RoleLearner, self.learner)
                self.loaded.take(learner.policy.actor)
                self.written_by = learner.version
            else:
                self.loaded.load(snapshot)
                self.written_by = snapshot.version
        return self.written_by, self.loaded.digest(self.written_by)

    # opinions

    def _look(
        self, role: str, written: Sequence[list[Responses]]
    ) -> tuple[Responses, list[NDArray[np.int64]]]:
        responses = Responses.concatenate([one for part in written for one in part])
        device = self.spec.device(role)
        return responses, pieces(responses, self.spec.forward_batch, self.share, self.num_shares, device)

    def actor_log_probs(self, *written: list[Responses]) -> Part:
        """Under the actor as it stands, in the very pieces of the first epoch: its ratios start at 1 to the bit."""
        with span("actor: log-probs"), self._turn("actor"):
            learner = cast(RoleLearner, self.learner)
            update = learner.shared
            responses, _ = self._look("actor", written)
            every = [
                piece
                for index in learner.minibatches(0, responses.valid)
                for piece in update.pieces(responses.length, index)
            ]
            mine = share_of(len(every), self.share, self.num_shares)
            return log_probs(learner.policy, responses, every[mine.start : mine.stop])

    def reference_log_probs(self, *written: list[Responses]) -> Part:
        """Under the frozen reference."""
        with span("reference"), self._turn("reference"):
            return log_probs(self.reference, *self._look("reference", written))

    def values(self, *written: list[Responses]) -> Part:
        """By the critic."""
        with span("critic: values"), self._turn("critic"):
            assert self.learner is not None
            return values(self.learner.policy, *self._look("critic", written))

    def scores(self, *written: list[Responses]) -> Part:
        """By the reward."""
        with span("reward"), self._turn("reward"):
            return self.scorer.score(*self._look("reward", written))

    # learning

    def begin(self, progress: float, beta: float, layout: Layout, *parts: Any) -> dict[str, float]:
        """Makes experience of what was written and said; returns what it was like.

        `layout` names the parts in their order: ("written", 2), ("reference", 1), ... (top-level arguments, so that
        references to them travel instead of themselves).
        """
        learner, recipe = cast(RoleLearner, self.learner), self.spec.recipe
        with span("advantage"):
            given = iter(parts)
            said = {name: [next(given) for _ in range(count)] for name, count in layout}
            responses = Responses.concatenate([one for part in said.pop("written") for one in part])
            fault = first_fault(said["reward"])
            self.why = None if fault is None else fault[1]
            columns = {name: join(told, responses.num_responses) for name, told in said.items()}
            opinions = Opinions(
                columns.get("actor"), columns["reference"], columns["reward"], columns.get("critic")
            )
            trajectory = experience(responses, opinions, recipe, beta)
            self.told = summary(responses, opinions, recipe, beta)
            self.told |= score_metrics(said["reward"], responses.num_responses)
            self.told |= response_metrics(responses, opinions.score, recipe.group_size)
            self.told["reward_timeouts"] = float(sum(part.timeouts for part in said["reward"]))
            self.episodes = episodes(responses, opinions.score, recipe)
            self.size = responses.num_responses, int(responses.valid.sum())
        self.learning = ExitStack()
        self.learning.enter_context(self._turn(*self._trained, learns=True))
        learner.begin([trajectory], progress, beta if recipe.kl_in == "loss" else 0.0)
        self.rows: list[NDArray[np.float64]] = []
        self.names: list[str] = []
        self.epoch, self.epoch_begun, self.stopped = 0, 0, False
        return self.told

    def learn(self, progress: float, beta: float, layout: Layout, *parts: Any) -> LearnReport:
        """A whole update, where no other worker shares it: `begin` to `finish`."""
        told = self.begin(progress, beta, layout, *parts)
        learner = cast(RoleLearner, self.learner)
        with span(self._updating):
            epochs = (learner.minibatches(epoch) for epoch in range(self.spec.recipe.epochs))
            found = learner.optimisation.optimise(learner.task.batch, epochs, learner.task.rates)
        return self._report(told, *found)

    def gradient(self, epoch: int, minibatch: int) -> Share:
        """This share of a minibatch's gradient; an empty one once an epoch's KL was too large."""
        learner = cast(RoleLearner, self.learner)
        with span(self._updating):
            if epoch != self.epoch:
                self.stopped |= stops(self.spec.recipe, self.names, np.array(self.rows[self.epoch_begun :]))
                self.epoch, self.epoch_begun = epoch, len(self.rows)
            if self.stopped:
                return Share((), np.zeros(0, np.float32), {})
            index = learner.minibatches(epoch)[minibatch]
            update = learner.shared
            return update.gradient(learner.task.batch, index, learner.task.rates, self.share, self.num_shares)

    def step(self, *shares: Share) -> None:
        """Steps down all shares' gradient."""
        if self.stopped:
            return
        learner = cast(RoleLearner, self.learner)
        with span(self._updating):
            whole = joined(shares)
            self.names = [*whole.names]
            self.rows.append(learner.shared.step(whole, learner.task.rates))

    def finish(self) -> LearnReport:
        """The end of an update in shares."""
        return self._report(self.told, self.names, np.array(self.rows))

    @property
    def _updating(self) -> str:
        return f"{' and '.join(self._trained)}: update"

    def _report(self, told: dict[str, float], names: list[str], table: NDArray[np.float64]) -> LearnReport:
        learner = cast(RoleLearner, self.learner)
        self.learning.close()
        metrics = learner.finish(names, table)
        if metrics.pop(LARGEST, None) is not None and len(table):
            # before the first step: how far the log-prob of any token in sampling is from that in the update
            metrics["first_ratio_deviation"] = float(table[0, names.index(LARGEST)])
        trained = {role: self.weights[role].digest(learner.version) for role in self._trained}
        told = told | metrics
        return LearnReport(told, learner.version, trained, *self.size, os.getpid(), self.why, self.episodes)

    # state

    def _has(self, role: str) -> bool:
        return self.learner is not None and self.learner.has(role)

    def snapshot(self) -> Snapshot:
        """The actor as it stands."""
        assert self.learner is not None
        with span("snapshot"):
            return Snapshot.of(self.learner.policy.actor, self.learner.version)

    def changes(self) -> Snapshot:
        """What of the actor is learned, for generators: they have the rest."""
        with span("snapshot"):
            return self.weights["actor"].snapshot(cast(RoleLearner, self.learner).version)

    def snapshot_name(self) -> tuple[int, str]:
        """Version and digest of the actor, as generators have it."""
        version = cast(RoleLearner, self.learner).version
        return version, self.sampled.digest(version)

    def state(self) -> dict[str, Any]:
        """Role -> state tree of all that its next update depends on."""
        assert self.learner is not None
        return self.learner.states()

    def load_states(self, states: dict[str, Any]) -> None:
        """Puts back what `state` of workers that together hosted these roles gave."""
        if "generator" in self.roles:
            self.written_by = int(states["actor"]["version"])
            if self._own_writer() is None:
                load_parameters(self.writer, states["actor"]["parameters"])
        if self.learner is not None:
            self.learner.load_states(states)

    def take_spans(self) -> TakenWhenSent:
        """Seconds by name since the last take, the sending of this answer included."""
        return TakenWhenSent(WAITING)
