"""Run: keeps the run directory while a loop trains. Metrics, checkpoints, evaluations, and the summary at the end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distrl.config import TrainConfig
from distrl.envs.group import LEAVES_SPACE
from distrl.errors import BadInput, RunFailed, translated
from distrl.evaluation import Evaluation, evaluate_policy, evaluation_group, limits_of
from distrl.inference import make_inference
from distrl.interrupts import Interrupted, Interrupts
from distrl.maths.random import derive_seed
from distrl.policies import load_parameters, make_policy
from distrl.run_keeper import CommonState, RunKeeper
from distrl.runtime.protocol import Runtime
from distrl.runtime.workers import CollectReport, UpdateReport, WorkSpec, rss_bytes
from distrl.telemetry import spans
from distrl.telemetry.console import ConsoleSink
from distrl.telemetry.metrics import Metrics
from distrl.telemetry.sinks import Sinks
from distrl.telemetry.spans import SpanTotals, span, time_record

# what the contract promises in every record; null where an algorithm has no such number
LEARNER_KEYS = (
    "policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction", "explained_variance", "value_mean",
)  # fmt: skip
EVALUATES_BESIDE = "--eval-every: an evaluation's envs cannot be made while the training's are open"
EVALUATE_AT_THE_END = "--eval-every 0 evaluates at the end, once those are closed"


@dataclass
class RunState(CommonState):
    """What a run has counted so far; goes into every checkpoint and comes back on resume."""

    episodes: int = 0
    reproducibility: str = "exact"
    dropped: int = 0


class Run(RunKeeper[RunState]):
    """The keeper that a loop talks to (`loops.Keeper`)."""

    def __init__(
        self,
        directory: Path,
        *,
        config: TrainConfig,
        spec: WorkSpec,
        runtime: Runtime,
        sinks: Sinks,
        console: ConsoleSink,
        interrupts: Interrupts,
        state: RunState,
        meta: dict[str, Any],
        started: float,
    ) -> None:
        super().__init__(
            directory,
            rules=config,
            sinks=sinks,
            console=console,
            interrupts=interrupts,
            state=state,
            meta=meta,
            started=started,
        )
        self.config = config
        self.spec = spec
        self.runtime = runtime
        if spec.reproducibility != "exact":
            state.reproducibility = spec.reproducibility
        for note in spec.notes:
            self.warn(note)
        self._outside: set[str] = set()
        self.evaluation: Evaluation | None = None  # the last one
        self._tried_envs = False
        self._eval_policy: Any = None
        self._eval_inference: Any = None

    @property
    def progress(self) -> float:
        """Share of the run's env steps done."""
        return self.state.env_steps / self.config.total_steps

    def keep(self, collected: list[CollectReport], updated: UpdateReport) -> None:
        """An iteration is whole."""
        state = self.state
        state.iteration += 1
        with span("log"):
            record = self._count(collected, updated)
            if self.config.eval_every and self.config.eval_episodes and not self._tried_envs:
                self._tried_envs = True
                self._try_evaluation_envs()
        if (
            self.config.eval_every
            and state.iteration % self.config.eval_every == 0
            and self.config.eval_episodes
        ):
            try:
                record |= self._evaluate_and_keep_best()
            except Interrupted:
                self.torn = True
                raise
        with span("log"):
            record |= self._times(collected, updated)
            self.record = record
            self.sinks.write(record)
        if state.iteration % self.config.checkpoint_every == 0:
            self.checkpoint()

    def _count(self, collected: list[CollectReport], updated: UpdateReport) -> dict[str, Any]:
        """The deterministic part of the record: in group order, never in order of arrival."""
        state = self.state
        ended = sorted(
            (episode for report in collected for episode in report.episodes), key=lambda e: (e.step, e.env)
        )
        info = Metrics()
        for episode in ended:
            state.window.add(episode.return_, episode.length)
            for name, value in episode.info.items():
                info.add(f"info/{name}", value)
        steps = sum(report.env_steps for report in collected)
        if steps == 0:
            raise RunFailed(
                "an iteration had no valid row: every observation or reward was NaN or Inf; fix the env"
            )
        state.env_steps += steps
        state.episodes += len(ended)
        state.dropped = sum(report.dropped for report in collected)
        for report in collected:
            if report.reproducibility != "exact" and state.reproducibility != "unknown":
                state.reproducibility = report.reproducibility
            for message in report.warnings:
                kind, leaves, _ = message.partition(LEAVES_SPACE)
                if not leaves or kind not in self._outside:  # once a leaf, and not once a group
                    self._outside.add(kind)
                    self.warn(message)
        for message in self.runtime.take_warnings():
            self.note(message)
        learner = {name: updated.metrics.get(name) for name in LEARNER_KEYS}
        others = {name: value for name, value in updated.metrics.items() if name not in LEARNER_KEYS}
        if state.dropped:
            others["dropped_rows"] = state.dropped
        return {
            "iteration": state.iteration,
            "env_steps": state.env_steps,
            "episodes": len(ended),
            "episode_return_mean": state.window.return_mean,
            "episode_length_mean": state.window.length_mean,
            "policy_version": updated.version,
            "behaviour_version": min(report.version for report in collected),
            **learner,
            **others,
            **info.values(),
        }

    def _times(self, collected: list[CollectReport], updated: UpdateReport) -> dict[str, Any]:
        steps = sum(report.env_steps for report in collected)
        clock = self.time_iteration(steps)
        taken = self.take_spans()
        return {
            **clock,
            **time_record({name: totals.seconds() for name, totals in taken.items()}),
            "system/driver_rss_bytes": rss_bytes(),
            "system/learner_rss_bytes": updated.rss_bytes,
            "system/worker_rss_bytes": max(report.rss_bytes for report in collected),
            "system/trajectory_bytes": sum(report.num_bytes for report in collected),
        }

    def take_spans(self) -> dict[str, SpanTotals]:
        """Each process's time since the last take, counted into the run's."""
        taken = self.runtime.take_spans() | {"driver": spans.current().take_totals()}
        for name, totals in taken.items():
            self.state.spans[name] = self.state.spans.get(name, SpanTotals()).merge(totals)
        return taken

    def trees(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        whole = self.runtime.state()
        trees = {"learner": whole["learner"], "groups": whole["groups"], "run": self.state.tree()}
        if whole["snapshots"]:  # with overlap alone
            trees["snapshots"] = whole["snapshots"]
        return trees

    # evaluation

    def evaluate(self) -> dict[str, Any]:
        """Greedy episodes with the policy as it stands, from seeds of their own; the training stream is not touched."""
        with span("evaluate"):
            if self._eval_policy is None:
                spec = self.spec
                self._eval_policy = make_policy(
                    spec.policy, spec.observation_space, spec.action_space, spec.seed
                )
                self._eval_inference = make_inference(self._eval_policy, spec.path("inference"))
            load_parameters(self._eval_policy, self.runtime.snapshot().arrays)
            self._eval_inference.load()
            seed = derive_seed(self.config.seed, "evaluation")
            limits = limits_of(self.config)
            with self.interrupts.at_once():
                self.evaluation = evaluate_policy(
                    self._eval_policy,
                    self.spec.env,
                    self.config.eval_episodes,
                    seed,
                    inference=self._eval_inference,
                    num_envs=self.config.recipe.num_envs,
                    limits=limits,
                )
            if (caveat := self.evaluation.caveat(limits)) is not None:
                self.warn(caveat)
            return self.evaluation.summary() | {"seed": seed}

    def evaluate_last(self) -> dict[str, Any]:
        """`evaluate` at the end, once the training's envs are closed: some cannot be there twice (a port, a licence)."""
        self.runtime.close_envs()
        return self.evaluate()

    def _evaluate_and_keep_best(self) -> dict[str, Any]:
        result = self.evaluate()
        assert self.evaluation is not None
        self.keep_best(None if self.evaluation.timed_out else result["return_mean"], result)
        return {f"eval/{name}": value for name, value in result.items() if name != "seed"}

    def _try_evaluation_envs(self) -> None:
        """RunFailed, as early as can be known, where an evaluation's envs cannot be made beside the training's."""
        config = self.config
        with translated(EVALUATES_BESIDE, EVALUATE_AT_THE_END, RunFailed):
            try:
                evaluation_group(
                    self.spec.env, config.eval_episodes, config.seed, config.recipe.num_envs
                ).close()
            except BadInput as error:
                raise RunFailed(f"{EVALUATES_BESIDE}: {error}; {EVALUATE_AT_THE_END}") from error

    # the end

    def finish(
        self, exit_reason: str, evaluation: dict[str, Any] | None, described: dict[str, Any]
    ) -> dict[str, Any]:
        """Write summary.json, whole or not at all; returns it."""
        state = self.state
        for message in self.runtime.take_warnings():
            self.note(message)
        self.take_spans()
        told = {
            "episodes": state.episodes,
            "reproducibility": state.reproducibility,
            "evaluation": evaluation,
        }
        return self.write_summary(exit_reason, told | described)
