"""`distrl rlhf ppo`: the roles of a run, and what is kept of each iteration."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import torch

from distrl.autopsy.roles import chain_of_totals
from distrl.errors import RunFailed
from distrl.loops import train_responses, train_responses_overlapped
from distrl.machine import resolve_device
from distrl.maths.kl import AdaptiveBeta, BetaController, FixedBeta
from distrl.rlhf.models import ModelParts, save
from distrl.rlhf.responses import Responses
from distrl.rlhf.rewards import for_a_look
from distrl.rlhf.role_spec import RoleSpec
from distrl.rlhf.roles import LearnReport, RoleWorker
from distrl.rlhf.tokenizers import usable_ids
from distrl.runtime.placement import devices, idle_warnings, require_place
from distrl.runtime.roles import Host, Roles, start_roles
from distrl.stages.evaluation import Evaluator
from distrl.stages.materials import PPOMaterials, read_ppo_materials
from distrl.stages.ppo_config import PPO, PPOConfig
from distrl.stages.report import PPO_LOOK, picture_of, told_chain
from distrl.stages.run import StageRun
from distrl.stages.samples import is_due, printed, sample
from distrl.stages.trace import TRACE_FILE, Recording, write_role_trace
from distrl.telemetry.look import Picture
from distrl.telemetry.spans import SpanTotals, span

# what every record has; null where an algorithm has no such number
KEYS = (
    "score_mean", "kl", "beta", "objective", "policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction",
    "explained_variance", "value_mean", "response_length_mean",
)  # fmt: skip
TRAINED = ("actor", "critic")
NOT_COMPARED = (
    "a reward function timed out so often in an evaluation that the rest of its responses were not scored: the score is "
    "of those before, the longest, and best/ stays as it is"
)
UNSCORED = "responses have no score and are left out, each record's `unscored` says how many"


class PPOStage:
    """A `Stage`, and the keeper of its loop (`loops.ResponsesAhead`)."""

    schema = PPO
    headline = ("score", "score_mean")
    look = PPO_LOOK

    def __init__(self, config: PPOConfig) -> None:
        self.config = config
        self.total = config.iterations
        self.max_restarts = config.max_worker_restarts
        self.record_events = bool(config.trace)
        self.recording = Recording(config.trace) if config.trace else None
        self.picture: Picture | None = None
        self._asked = 0, 0  # ns: when workers were asked for their spans, and had answered
        self.device = resolve_device(config.device)
        self.hosts = config.hosts(self.device)
        placed = require_place(self.hosts, config.address)  # before models are read
        self.materials = read_ppo_materials(config)
        self.spec = role_spec(config, self.materials, self.hosts, self.device)
        self.devices = set(self.spec.devices.values())
        self.notes = [*placed, *self.materials.notes, *idle_warnings(self.spec, self.hosts)]
        self.facts = self.materials.facts
        self.sources = self.materials.sources
        self.ahead: list[Any] | None = None
        self.roles: Roles | None = None
        self.digests: dict[str, str] = {}
        self._evaluator: Evaluator | None = None

    # a stage

    def first_trees(self) -> dict[str, Any]:
        """As a worker that hosts both has them before its first update."""
        torch.set_num_threads(1)
        roles = tuple(role for role in TRAINED if role == "actor" or self.config.recipe.trains_value)
        worker = RoleWorker(replace(self.spec, devices={}), roles, self.materials.models)
        return {**worker.state()}

    def start(self, run: StageRun, trees: dict[str, Any]) -> None:
        torch.set_num_threads(self.config.threads)  # of what the driver computes itself
        self.run = run
        run.seen = self._seen
        states = {role: trees[role] for role in TRAINED if role in trees}
        told = trees.get("ahead")
        self.ahead = None if told is None else [[Responses(**one) for one in told]]
        self.controller = self._controller(run)
        if self.roles is not None:
            self.roles.restart(states)
            return
        run.interrupts.polled = self.config.placement != "in-process"
        self.roles = start_roles(
            self.spec,
            self.materials.models,
            states,
            self.hosts,
            self.config.address,
            self.config.role_timeout_sec,
            self.config.placement_timeout_sec,
            run.interrupts.check,
        )

    def _controller(self, run: StageRun) -> BetaController:
        recipe = self.config.recipe
        beta = run.state.beta if run.iteration else recipe.beta
        if recipe.kl_target is None:
            return FixedBeta(beta)
        return AdaptiveBeta(beta, recipe.kl_target, recipe.kl_horizon)

    @property
    def _roles(self) -> Roles:
        assert self.roles is not None
        return self.roles

    def train(self) -> None:
        if self.config.overlap:
            train_responses_overlapped(self._roles, self)
        else:
            train_responses(self._roles, self)

    def trees(self) -> dict[str, Any]:
        trees = {**self._roles.state()}
        if self.ahead is not None:
            written = self._roles.of["generator"].get(self.ahead)
            trees["ahead"] = [asdict(one) for part in written for one in part]
        return trees

    def finish(self, folder: Path | None) -> dict[str, Any]:
        snapshot = self._roles.snapshot()
        if folder is not None:
            actor = self.materials.models["actor"].with_arrays(snapshot.arrays)
            save(actor, folder, self.materials.tokenizer)
        digests = {**self.digests, "actor": snapshot.digest}
        told = {"parameters_sha256": snapshot.digest, "digests": digests}
        return told | {"longest_chain": self._longest_chain()}

    def _seen(self, iteration: int, taken: dict[str, SpanTotals]) -> None:
        if self.recording is not None:
            self.recording.see(iteration, taken, *self._asked)

    def _longest_chain(self) -> dict[str, Any]:
        """What an iteration's wall time consists of: as recorded, and then with its trace, else from the run's sums."""
        taken = self._roles.take_spans()
        self.run.count_spans(taken)
        (self.run.directory / TRACE_FILE).unlink(missing_ok=True)
        traced = None
        if self.recording is not None:
            self.recording.end(taken)
            traced = self.recording.traced()
        if traced is None:
            sums = {name: totals.seconds() for name, totals in self.run.state.spans.items()}
            return told_chain(chain_of_totals(sums), "sums of the whole run")
        self.picture = picture_of(traced)
        try:
            write_role_trace(self.run.directory, traced)
        except OSError as error:  # the run itself is whole
            self.run.warn(f"{TRACE_FILE} was not written: {error.strerror}")
        return told_chain(traced.chain(), f"iterations {traced.first} to {traced.last}, as recorded")

    def close(self) -> None:
        if self.roles is not None:
            self.roles.close()

    # the keeper of the loop

    @property
    def iteration(self) -> int:
        """Iterations that are whole."""
        return self.run.iteration

    @property
    def progress(self) -> float:
        """Share of the iterations done."""
        return self.run.progress

    @property
    def beta(self) -> float:
        """Weight of the KL to the reference."""
        return self.controller.beta

    def uninterrupted(self) -> AbstractContextManager[None]:
        """Ctrl-C waits inside."""
        return self.run.uninterrupted()

    def keep(self, report: LearnReport) -> None:
        """An iteration is whole."""
        self.digests = report.digests
        unscored, why = report.metrics.get("unscored", 0.0), report.fault or "its reward does not say why"
        if report.metrics["reward_timeouts"] > self.config.max_timeouts:
            raise RunFailed(self._too_many_timeouts(report.num_responses, why))
        if unscored > self.config.max_unscored * report.num_responses:
            raise RunFailed(
                f"{unscored:.0f} of {report.num_responses} responses have no score, more than --max-unscored "
                f"{self.config.max_unscored:g}; the first: {why}"
            )
        if unscored:
            # once a run: a resumed one, and one gone back to a checkpoint, has told of its first already
            told = (one for one in self.run.state.warnings if one.startswith(UNSCORED))
            self.run.warn(next(told, f"{UNSCORED}; the first: {why}"))
        self.controller = self.controller.after(report.metrics["kl"], report.num_responses)
        self.run.state.beta = self.controller.beta
        window = self.run.state.window
        for episode in report.episodes:
            window.add(*episode)
        metrics: dict[str, Any] = {
            "episodes": len(report.episodes),
            "episode_return_mean": window.return_mean,
            "episode_length_mean": window.length_mean,
        }
        metrics |= {name: report.metrics.get(name) for name in KEYS}
        metrics |= report.metrics
        metrics["policy_version"] = report.version
        metrics["behaviour_version"] = report.version - 1 - int(report.metrics.get("policy_lag", 0.0))
        asked = perf_counter_ns()
        taken = self._roles.take_spans()
        self._asked = asked, perf_counter_ns()
        self.run.keep(metrics, report.num_tokens, taken, self._evaluate)

    def _too_many_timeouts(self, num_responses: int, why: str) -> str:
        """Without their number: that depends on who called, since who has seen too many calls no more."""
        config = self.config
        return (
            f"more than {config.max_timeouts} calls of a reward function for {num_responses} responses gave no answer within "
            f"--reward-timeout-sec {config.reward_timeout_sec:g}; raise it where the function is "
            f"only slow; the first: {why}"
        )

    def _evaluate(self, iteration: int) -> dict[str, Any]:
        """Greedy responses to held-out prompts, where they are due; the checkpoint with their best score is kept."""
        self._sample(iteration)
        config, prompts = self.config, self.materials.eval_prompts
        if prompts is None or not config.eval_every or iteration % config.eval_every:
            return {}
        if self._evaluator is None:
            # beside roles on Ray the driver has no device of its own
            device = self.device if config.placement == "in-process" else "cpu"
            self._evaluator = evaluator_of(config, self.materials, device)
        with self.run.interrupts.at_once():
            looked = self._evaluator.evaluate(self.actor())
        if looked.timeouts > config.max_timeouts:
            self.run.warn(NOT_COMPARED)
        else:
            self.run.keep_best(looked.told["score_mean"], looked.told)
        return {f"eval/{name}": value for name, value in looked.told.items()}

    def _sample(self, iteration: int) -> None:
        """Responses to the same few prompts, where they are due."""
        if not is_due(self.config, iteration):
            return
        with span("samples"), self.run.interrupts.at_once():
            found = sample(self._roles, self.materials, iteration)
        self.run.sinks.write_samples(found)
        if self.config.print_samples:
            for one in found:
                self.run.console.message(printed(one))

    def actor(self) -> ModelParts:
        """As it stands."""
        return self.materials.models["actor"].with_arrays(self._roles.snapshot().arrays)


def role_spec(config: PPOConfig, materials: PPOMaterials, hosts: tuple[Host, ...], device: str) -> RoleSpec:
    """What workers are told of the run."""
    placed = devices(hosts)
    if config.placement == "in-process":
        placed = dict.fromkeys(placed, device)
    return RoleSpec(
        recipe=config.recipe,
        seed=config.seed,
        prompts=tuple(prompt.tokens for prompt in materials.prompts.rows),
        num_prompts=config.num_prompts,
        end_tokens=materials.end_tokens,
        reward=materials.reward,
        vocabulary=usable_ids(materials.tokenizer, materials.models["actor"].config),
        value_head=config.value_head,
        critic_rate=config.critic_rate,
        generation_batch=config.generation_batch,
        forward_batch=config.forward_batch,
        micro_batch=config.micro_batch,
        fast_paths=config.fast_paths,
        generation=config.generation,
        dtype=config.dtype,
        threads=config.threads,
        devices=placed,
        max_skipped_updates=config.max_skipped_updates,
        record_events=bool(config.trace),
        samples=config.samples if config.sample_every else 0,
    )


def evaluator_of(config: PPOConfig, materials: PPOMaterials, device: str) -> Evaluator:
    """Of held-out prompts, by the run's own reward and reference."""
    assert materials.eval_prompts is not None
    return Evaluator(
        prompts=materials.eval_prompts.rows,
        reference=materials.models["reference"],
        reward=for_a_look(materials.reward, materials.eval_prompts.rows),
        end_tokens=materials.end_tokens,
        max_response=config.recipe.max_response,
        temperature=config.recipe.temperature,
        seed=config.seed,
        batch=config.generation_batch,
        device=device,
        fast_paths=config.fast_paths,
        dtype=config.dtype,
        vocabulary=usable_ids(materials.tokenizer, materials.models["actor"].config),
    )
