"""The learner: trajectories in, a better policy out. It reads a `Recipe` and knows no algorithm's name.

    fragments in group order -> one [T, N] batch -> rewards scaled -> credit (return to go, or GAE)
        -> epochs x minibatches of one global permutation -> loss -> gradient clip -> Adam

Nothing in the loop waits for the device: losses are summed where they are, and a NaN gradient is skipped
by the fused optimiser's own flag. The host asks once at the end, and once an epoch if `target_kl` is set.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distrl.errors import RunFailed
from distrl.maths import losses
from distrl.maths.advantage import discounted_sum, gae
from distrl.maths.random import stream
from distrl.maths.statistics import explained_variance
from distrl.normalization import ObservationMoments, RewardScale
from distrl.policies.protocol import load_parameters, parameters_and_buffers
from distrl.recipes import Recipe
from distrl.telemetry.spans import span
from distrl.trajectory import Trajectory, column_minibatches, flat_minibatches
from distrl.trees import Tree, tree_map


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
        total.update(np.ascontiguousarray(arrays[name]).tobytes())
    return total.hexdigest()


@dataclass
class OptimiserGroup:
    """Parameters that step together: their optimiser and the clip of their gradient. Classic RL has one, joint."""

    parameters: list[nn.Parameter]
    optimiser: torch.optim.Adam
    max_grad_norm: float | None

    @classmethod
    def adam(cls, policy: nn.Module, recipe: Recipe) -> OptimiserGroup:
        parameters = [parameter for parameter in policy.parameters() if parameter.requires_grad]
        adam = torch.optim.Adam(parameters, lr=recipe.learning_rate, eps=recipe.adam_eps, fused=True)
        return cls(parameters, adam, recipe.max_grad_norm)

    def step(self, loss: Tensor) -> Tensor:
        """One step down `loss`; skipped, parameters and moments untouched, where the gradient is not finite.

        Returns a float tensor: 1 where skipped, else 0.
        """
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        limit = self.max_grad_norm if self.max_grad_norm is not None else float("inf")
        norm = nn.utils.clip_grad_norm_(self.parameters, limit)
        skipped = (~torch.isfinite(norm)).float()
        setattr(self.optimiser, "grad_scale", None)  # noqa: B010 - both are read by fused Adam
        setattr(self.optimiser, "found_inf", skipped)  # noqa: B010
        self.optimiser.step()
        return skipped


def make_cuda_repeatable() -> None:
    """cuDNN's repeatable algorithms, and cuBLAS with a workspace of its own (read once, when it first starts)."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


def to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """The array as a tensor there; to a GPU through pinned memory, so that the host need not wait for what runs."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


@dataclass(frozen=True)
class _Batch:
    """A trajectory's columns as tensors on the device, flat [B] or, for a policy with memory, [T, N]."""

    observation: Tree
    action: Tensor
    action_mask: Tensor | None
    log_prob: Tensor
    value: Tensor
    advantage: Tensor
    target: Tensor
    valid: Tensor | None
    episode_start: Tensor | None
    initial_state: Tree

    def take(self, index: Tensor) -> _Batch:
        """Rows of a flat batch, columns of one with memory."""
        dim = 0 if self.episode_start is None else 1

        def pick(leaf: Tensor) -> Tensor:
            return leaf.index_select(dim, index)

        columns = {
            name: tree_map(pick, value) for name, value in vars(self).items() if name != "initial_state"
        }
        return _Batch(
            **columns, initial_state=tree_map(lambda leaf: leaf.index_select(0, index), self.initial_state)
        )


class Learner:
    """Owns the policy's parameters, their optimiser and the running moments. Deterministic in (state, trajectories)."""

    def __init__(
        self,
        policy: nn.Module,
        recipe: Recipe,
        seed: int,
        device: str = "cpu",
        normalize_observation: bool = False,
        normalize_reward: bool = False,
        max_skipped_updates: int = 10,
    ) -> None:
        if torch.device(device).type == "cuda":
            make_cuda_repeatable()
        self.policy = cast(Any, policy.to(device))
        self.recipe = recipe
        self.seed = seed
        self.device = torch.device(device)
        self.max_skipped_updates = max_skipped_updates
        self.optimiser_group = OptimiserGroup.adam(self.policy, recipe)
        self.observation_moments = ObservationMoments(self.policy.observe) if normalize_observation else None
        self.reward_scale = RewardScale(recipe.num_envs, recipe.gamma) if normalize_reward else None
        self.version = 0
        self.skipped = 0
        self.streak = 0.0  # minibatches skipped in a row, the last ones first

    def snapshot(self) -> Snapshot:
        """The policy as it stands."""
        return Snapshot.of(self.policy, self.version)

    def update(self, trajectories: list[Trajectory], progress: float) -> dict[str, float]:
        """Learn from one iteration's trajectories, given in group order. Returns its metrics.

        `progress` is the share of the run's env steps done before this iteration: it drives the schedules.
        Raises RunFailed once `max_skipped_updates` minibatches in a row had a gradient that is not finite.
        """
        versions = [trajectory.version for trajectory in trajectories]
        with span("learn: gather"):
            trajectory = Trajectory.concatenate(trajectories)
        # no warnings of NumPy's about what is not finite: minibatches with it are skipped and counted
        with span("learn: advantage"), np.errstate(invalid="ignore", over="ignore"):
            advantage, target = self._credit(trajectory)
        with span("learn: transfer"):
            batch = self._batch(trajectory, advantage, target)
        with span("learn: update"):
            metrics = self._optimise(batch, trajectory.valid, progress)
        with span("learn: moments"):
            if self.observation_moments is not None:
                self.observation_moments.include(trajectory)
        if self.recipe.trains_value:
            with span("learn: metrics"), np.errstate(invalid="ignore", over="ignore"):
                value = trajectory.value[trajectory.valid]
                metrics["explained_variance"] = explained_variance(trajectory.value, target, trajectory.valid)
                metrics["value_mean"] = float(value.mean(dtype=np.float64)) if len(value) else float("nan")
        metrics["policy_lag"] = float(self.version - min(versions))
        self.version += 1
        return metrics

    def _credit(self, trajectory: Trajectory) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The weight of each log-prob and the critic's target, [T, N]."""
        recipe, reward = self.recipe, trajectory.reward
        if self.reward_scale is not None:
            reward = self.reward_scale.scale(reward, trajectory.done, trajectory.valid)
        if recipe.credit == "return":
            target = discounted_sum(reward, trajectory.done, recipe.gamma)
            return (target - trajectory.value if recipe.baseline else target), target
        advantage = gae(
            reward,
            trajectory.value,
            trajectory.next_value,
            trajectory.terminated,
            trajectory.done,
            recipe.gamma,
            recipe.lam,
        )
        return advantage, advantage + trajectory.value

    def _batch(self, trajectory: Trajectory, advantage: NDArray[Any], target: NDArray[Any]) -> _Batch:
        columns = self.policy.recurrent

        def tensor(array: NDArray[Any]) -> Tensor:
            laid_out = array if columns else array.reshape(-1, *array.shape[2:])
            return to_device(laid_out, self.device)

        return _Batch(
            observation=tree_map(tensor, trajectory.observation),
            action=tensor(trajectory.action),
            action_mask=tree_map(tensor, trajectory.extra.get("action_mask")),
            log_prob=tensor(trajectory.log_prob),
            value=tensor(trajectory.value),
            advantage=tensor(advantage),
            target=tensor(target),
            # flat minibatches are made of valid rows alone; whole columns carry the others along
            valid=tensor(trajectory.valid) if columns and not trajectory.valid.all() else None,
            episode_start=tensor(trajectory.episode_start) if columns else None,
            initial_state=tree_map(lambda leaf: to_device(leaf, self.device), trajectory.initial_state)
            if columns
            else None,
        )

    def _optimise(self, batch: _Batch, valid: NDArray[np.bool_], progress: float) -> dict[str, float]:
        recipe = self.recipe
        remaining = max(1.0 - progress, 0.0)
        learning_rate = recipe.learning_rate * (
            remaining if recipe.learning_rate_schedule == "linear" else 1.0
        )
        clip = recipe.clip
        if clip is not None and recipe.clip_schedule == "linear":
            clip = max(clip * remaining, 1e-8)
        for group in self.optimiser_group.optimiser.param_groups:
            group["lr"] = learning_rate
        names: list[str] = []
        rows: list[
            Tensor
        ] = []  # of each minibatch its metrics, then whether it was skipped; read once, at the end
        for epoch in range(recipe.epochs):
            generator = stream(self.seed, "permutation", self.version, epoch)
            if self.policy.recurrent:
                parts = column_minibatches(valid.shape[1], recipe.minibatches, generator)
            else:
                parts = flat_minibatches(valid, recipe.minibatches, generator)
            begun = len(rows)
            for index in parts:
                loss, metrics = self._loss(batch.take(to_device(index, self.device)), clip)
                skipped = self.optimiser_group.step(loss)
                names = [*metrics]
                rows.append(torch.stack([*metrics.values(), skipped]))
            if recipe.target_kl is not None and "approx_kl" in names:
                kl, skips = torch.stack(rows[begun:])[:, [names.index("approx_kl"), -1]].unbind(1)
                if torch.where(skips > 0, 0.0, kl).mean().item() > recipe.target_kl:
                    break
        return self._read(names, rows) | {"learning_rate": learning_rate}

    def _loss(self, rows: _Batch, clip: float | None) -> tuple[Tensor, dict[str, Tensor]]:
        recipe = self.recipe
        evaluation = self.policy.evaluate(
            rows.observation, rows.action, rows.action_mask, rows.initial_state, rows.episode_start
        )
        advantage = rows.advantage
        if recipe.normalize_advantage:
            advantage = losses.normalise_advantage(advantage, rows.valid)
        if clip is None:
            loss, metrics = losses.policy_gradient(evaluation.log_prob, advantage, rows.valid)
        else:
            loss, metrics = losses.clipped_surrogate(
                evaluation.log_prob, rows.log_prob, advantage, clip, rows.valid
            )
        entropy_loss, entropy_metrics = losses.entropy_bonus(evaluation.entropy, rows.valid)
        metrics |= entropy_metrics
        if recipe.entropy_coef:
            loss = loss + recipe.entropy_coef * entropy_loss
        if recipe.trains_value:
            value_loss, value_metrics = losses.value_loss(
                evaluation.value, rows.target, rows.value, recipe.clip_value, rows.valid
            )
            loss = loss + recipe.value_coef * value_loss
            metrics["value_loss"] = value_metrics["value_loss"]
        return loss, metrics

    def _read(self, names: list[str], rows: list[Tensor]) -> dict[str, float]:
        """Means over the minibatches that were not skipped: the one wait for the device."""
        table = torch.stack(rows).double().cpu().numpy() if rows else np.zeros((0, 1))
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
            "num_updates": float(len(rows)),
        }

    def state(self) -> dict[str, Any]:
        """State tree of all that a later update depends on; `load_state` puts it back, on any device."""
        optimiser = self.optimiser_group.optimiser.state_dict()["state"]
        return {
            "policy": parameters_and_buffers(self.policy),
            "optimiser": {
                str(number): {name: tensor.cpu().numpy().copy() for name, tensor in slots.items()}
                for number, slots in optimiser.items()
            },
            "observation_moments": self.observation_moments.state() if self.observation_moments else None,
            "reward_scale": self.reward_scale.state() if self.reward_scale else None,
            "version": self.version,
            "skipped": self.skipped,
            "streak": self.streak,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Put back what `state` gave."""
        load_parameters(self.policy, state["policy"])
        optimiser = self.optimiser_group.optimiser
        whole = optimiser.state_dict()
        whole["state"] = {
            int(number): {name: torch.from_numpy(np.array(array)) for name, array in slots.items()}
            for number, slots in state["optimiser"].items()
        }
        optimiser.load_state_dict(whole)
        if self.observation_moments is not None:
            self.observation_moments.load_state(state["observation_moments"])
        if self.reward_scale is not None:
            self.reward_scale.load_state(state["reward_scale"])
        self.version = int(state["version"])
        self.skipped = int(state["skipped"])
        self.streak = float(state["streak"])
