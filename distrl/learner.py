"""The learner: trajectories in, a better policy out. It reads a `Recipe` and knows no algorithm's name.

    fragments in group order -> one [T, N] batch -> rewards scaled -> credit (return to go, GAE or V-trace)
        -> epochs x minibatches of one global permutation -> loss -> gradient clip -> Adam

The last line is a twin's work: `distrl.updates.torch`, `distrl.updates.compiled` for an MLP on a CPU, or
`distrl.updates.captured` on a GPU, which computes GAE there too.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from distrl.credit import give_credit, importance_weighted, whitened
from distrl.errors import RunFailed
from distrl.maths.random import stream
from distrl.maths.statistics import explained_variance
from distrl.normalization import ObservationMoments, RewardScale
from distrl.policies.protocol import load_parameters, parameters_and_buffers
from distrl.recipes import Recipe
from distrl.telemetry.spans import span
from distrl.trajectory import Trajectory, column_minibatches, flat_minibatches
from distrl.updates.protocol import Rates, Update

Kind = Literal["torch", "compiled", "captured"]


@dataclass(frozen=True)
class Snapshot:
    """A policy frozen for an iteration: parameters and observation moments, with one version and digest."""

    arrays: dict[str, NDArray[Any]]
    version: int
    digest: str

    @classmethod
    def of(cls, policy: nn.Module, version: int) -> Snapshot:
        arrays = parameters_and_buffers(policy)
        return cls(arrays, version, digest(arrays))


def digest(arrays: dict[str, NDArray[Any]]) -> str:
    """SHA-256 over names, shapes and bytes, in the order of the names."""
    total = hashlib.sha256()
    for name in sorted(arrays):
        total.update(f"{name}{arrays[name].shape}{arrays[name].dtype}".encode())
        total.update(np.ascontiguousarray(arrays[name]).data)
    return total.hexdigest()


def make_cuda_repeatable() -> None:
    """cuDNN's repeatable algorithms, and cuBLAS with a workspace of its own (read once, when it first starts)."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


def make_update(policy: nn.Module, recipe: Recipe, kind: Kind, threads: int) -> Update:
    """The twin of that name, or the one given. BadInput where it does not serve the policy."""
    if kind == "captured":
        from distrl.updates.captured import CapturedUpdate

        return CapturedUpdate(policy, recipe)
    if kind == "compiled":
        from distrl.updates.compiled import CompiledUpdate

        return CompiledUpdate(policy, recipe, threads)
    from distrl.updates.torch import TorchUpdate

    return TorchUpdate(policy, recipe)


@dataclass(frozen=True)
class Task:
    """An iteration's learning between its first and its last minibatch."""

    trajectory: Trajectory
    log_prob: NDArray[np.float32]  # of the policy as it stands, [T, N]
    advantage: NDArray[np.float32]
    target: NDArray[np.float32]
    batch: Any  # as the twin wants it
    rates: Rates
    lag: int  # versions between the policy that collected and the one that learns


class Learner:
    """Owns the policy's parameters, their optimiser and the running moments. Deterministic in (state, trajectories).

    `update` names the twin that optimises; `threads` are the compiled one's, and change no bit.
    """

    task: Task  # between `begin` and `finish`

    def __init__(
        self,
        policy: nn.Module,
        recipe: Recipe,
        seed: int,
        device: str = "cpu",
        normalize_observation: bool = False,
        normalize_reward: bool = False,
        max_skipped_updates: int = 10,
        update: Kind | Update = "torch",
        threads: int = 1,
    ) -> None:
        if torch.device(device).type == "cuda":
            make_cuda_repeatable()
        self.policy = cast(Any, policy.to(device))
        self.recipe = recipe
        self.seed = seed
        self.device = torch.device(device)
        self.max_skipped_updates = max_skipped_updates
        self.optimisation = (
            make_update(self.policy, recipe, update, threads) if isinstance(update, str) else update
        )
        if recipe.credit == "vtrace":
            from distrl.inference import make_inference

            # the twin that updates also says what it thinks of an older policy's rows
            self.inference = make_inference(self.policy, "compiled" if update == "compiled" else "torch")
        self.credits_on_device = update == "captured" and recipe.credit == "gae"
        self.observation_moments = ObservationMoments(self.policy.observe) if normalize_observation else None
        self.reward_scale = RewardScale(recipe.num_envs, recipe.gamma) if normalize_reward else None
        self.version = 0
        self.skipped = 0
        self.streak = 0.0  # minibatches skipped in a row, the last ones first

    def snapshot(self) -> Snapshot:
        """The policy as it stands."""
        return Snapshot.of(self.policy, self.version)

    def update(self, trajectories: list[Trajectory], progress: float, beta: float = 0.0) -> dict[str, float]:
        """Learn from one iteration's trajectories, given in group order. Returns its metrics.

        `progress` is the share of the run's env steps done before this iteration: it drives the schedules. `beta`
        weighs a KL to the reference in the loss. Raises RunFailed once `max_skipped_updates` minibatches in a row had
        a gradient that is not finite.
        """
        task = self.begin(trajectories, progress, beta)
        with span("learn: update"):
            epochs = (self.minibatches(epoch) for epoch in range(self.recipe.epochs))
            names, table = self.optimisation.optimise(task.batch, epochs, task.rates)
        return self.finish(names, table)

    def begin(self, trajectories: list[Trajectory], progress: float, beta: float = 0.0) -> Task:
        """All of `update` that comes before the first minibatch."""
        lag = self.version - min(trajectory.version for trajectory in trajectories)
        with span("learn: gather"):
            trajectory = Trajectory.concatenate(trajectories)
        log_prob = trajectory.log_prob  # of the policy as it stands
        if self.recipe.credit == "vtrace":
            with span("learn: evaluate"):
                trajectory, log_prob = self._seen_now(trajectory)
        advantage = target = np.zeros((0, 0), np.float32)
        # no warnings of NumPy's about what is not finite: minibatches with it are skipped and counted
        with span("learn: advantage"), np.errstate(invalid="ignore", over="ignore"):
            if self.credits_on_device:
                reward = self._reward(trajectory)
            else:
                advantage, target = self._credit(trajectory, log_prob)
        with span("learn: transfer"), np.errstate(invalid="ignore", over="ignore"):
            if self.credits_on_device:
                batch = cast(Any, self.optimisation).batch_by_gae(trajectory, reward)
            else:
                batch = self.optimisation.batch(trajectory, advantage, target)
        rates = replace(self._rates(progress), beta=beta)
        self.task = Task(trajectory, log_prob, advantage, target, batch, rates, lag)
        return self.task

    def finish(self, names: list[str], table: NDArray[np.float64]) -> dict[str, float]:
        """All of `update` that comes after the last minibatch: `table` has a row of metrics for each. The next version."""
        task = self.task
        trajectory = task.trajectory
        with span("learn: metrics"):
            metrics = self._read(names, table)
        target = cast(Any, self.optimisation).target if self.credits_on_device else task.target
        metrics["learning_rate"] = task.rates.learning_rate
        with span("learn: moments"):
            if self.observation_moments is not None:
                self.observation_moments.include(trajectory)
        if self.recipe.trains_value:
            with span("learn: metrics"), np.errstate(invalid="ignore", over="ignore"):
                value = trajectory.value[trajectory.valid]
                metrics["explained_variance"] = explained_variance(trajectory.value, target, trajectory.valid)
                metrics["value_mean"] = float(value.mean(dtype=np.float64)) if len(value) else float("nan")
        if self.recipe.credit == "vtrace":
            metrics["behaviour_kl"] = _approximate_kl(trajectory, task.log_prob)
        metrics["policy_lag"] = float(task.lag)
        self.version += 1
        del self.task
        return metrics

    def _seen_now(self, trajectory: Trajectory) -> tuple[Trajectory, NDArray[np.float32]]:
        """What an older policy collected with the values of the policy as it stands, and its log-probs [T, N].

        V of what lies beyond an episode's end or the last row stays the collector's: those states are not in it.
        """
        rows = {
            "observation": trajectory.observation,
            "action": trajectory.action,
            "reward": trajectory.reward,
            "episode_start": trajectory.episode_start,
        }
        with torch.no_grad():
            self.inference.load()
            log_prob, value = self.inference.evaluate(
                rows, trajectory.extra.get("action_mask"), trajectory.initial_state
            )
        next_value = trajectory.next_value.copy()
        next_value[:-1] = np.where(trajectory.done[:-1], next_value[:-1], value[1:])
        return replace(trajectory, value=value, next_value=next_value), log_prob

    def _reward(self, trajectory: Trajectory) -> NDArray[np.float32]:
        """What is learned from, [T, N]: scaled, with moments that include it, where that is asked for."""
        if self.reward_scale is None:
            return trajectory.reward
        return self.reward_scale.scale(trajectory.reward, trajectory.done, trajectory.valid)

    def _credit(
        self, trajectory: Trajectory, log_prob: NDArray[np.float32] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The weight of each log-prob and the critic's target, [T, N]."""
        advantage, target = give_credit(self.recipe, trajectory, self._reward(trajectory), log_prob)
        if self.recipe.normalizes_batch:
            advantage = whitened(advantage, trajectory.valid)
        if (cap := getattr(self.recipe, "importance_cap", None)) is not None:
            advantage = importance_weighted(advantage, trajectory, cap)
        return advantage, target

    def _rates(self, progress: float) -> Rates:
        recipe = self.recipe
        remaining = max(1.0 - progress, 0.0)
        linear = recipe.learning_rate_schedule == "linear"
        clip = recipe.clip
        if clip is not None and recipe.clip_schedule == "linear":
            clip = max(clip * remaining, 1e-8)
        return Rates(recipe.learning_rate * (remaining if linear else 1.0), clip)

    def minibatches(self, epoch: int, valid: NDArray[np.bool_] | None = None) -> list[NDArray[np.int64]]:
        """Of an epoch's batch: rows, or columns for a policy with memory, of one global permutation.

        `valid` [T, N] is the batch's where it has not begun yet.
        """
        generator = stream(self.seed, "permutation", self.version, epoch)
        if valid is None:
            valid = self.task.trajectory.valid
        if self.policy.recurrent:
            return [*column_minibatches(valid.shape[1], self.recipe.minibatches, generator)]
        return [*flat_minibatches(valid, self.recipe.minibatches, generator)]

    def _read(self, names: list[str], table: NDArray[np.float64]) -> dict[str, float]:
        """Means over the minibatches that were not skipped; a table's last column says which were."""
        skipped = table[:, -1] > 0
        most = 0.0
        for skip in skipped:
            self.streak = self.streak + 1 if skip else 0.0
            most = max(most, self.streak)
        self.skipped += int(skipped.sum())
        if most >= self.max_skipped_updates:
            raise RunFailed(
                f"{int(most)} minibatches in a row had a NaN or Inf gradient (--max-skipped-updates "
                f"{self.max_skipped_updates}): lower --learning-rate, or look at rewards and observations; "
                "the last checkpoint is from before them"
            )
        taken = table[~skipped]
        means = taken.mean(axis=0) if len(taken) else np.full(table.shape[1], np.nan)
        return {name: float(mean) for name, mean in zip(names, means, strict=False)} | {
            "skipped_updates": float(self.skipped),
            "num_updates": float(len(table)),
        }

    def state(self) -> dict[str, Any]:
        """State tree of all that a later update depends on; `load_state` puts it back, on any device."""
        return {
            "policy": parameters_and_buffers(self.policy),
            "optimiser": self.optimisation.optimiser_state(),
            "observation_moments": self.observation_moments.state() if self.observation_moments else None,
            "reward_scale": self.reward_scale.state() if self.reward_scale else None,
            "version": self.version,
            "skipped": self.skipped,
            "streak": self.streak,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Put back what `state` gave."""
        load_parameters(self.policy, state["policy"])
        self.optimisation.load_optimiser_state(state["optimiser"])
        if self.observation_moments is not None:
            self.observation_moments.load_state(state["observation_moments"])
        if self.reward_scale is not None:
            self.reward_scale.load_state(state["reward_scale"])
        self.version = int(state["version"])
        self.skipped = int(state["skipped"])
        self.streak = float(state["streak"])


def _approximate_kl(trajectory: Trajectory, log_prob: NDArray[np.float32]) -> float:
    """KL of the policy that collected from the one that learns: the mean of r - 1 - log r, as the loss's own."""
    log_ratio = (log_prob - trajectory.log_prob)[trajectory.valid].astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        return float((np.exp(log_ratio) - 1.0 - log_ratio).mean()) if len(log_ratio) else float("nan")
