"""The update in torch: any policy, any device.

Nothing in the loop waits for the device: losses are summed where they are, and a NaN gradient is skipped
by the fused optimiser's own flag. The host asks once at the end, and once an epoch if `target_kl` is set.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distrl.maths import losses
from distrl.policies.observe import channels_first
from distrl.policies.protocol import Evaluation
from distrl.recipes import Recipe
from distrl.telemetry.spans import span
from distrl.trajectory import Trajectory
from distrl.trees import Tree, tree_map
from distrl.updates.protocol import Index, Rates


@dataclass
class OptimiserGroup:
    """Parameters that step together: their optimiser and the clip of their gradient. Classic RL has one, joint."""

    parameters: list[nn.Parameter]
    optimiser: torch.optim.Adam
    max_grad_norm: float | None

    @classmethod
    def adam(cls, parameters: Iterable[nn.Parameter], recipe: Recipe) -> OptimiserGroup:
        """Those of the parameters that are learned, under the recipe's Adam."""
        parameters = [parameter for parameter in parameters if parameter.requires_grad]
        adam = torch.optim.Adam(parameters, lr=recipe.learning_rate, eps=recipe.adam_eps, fused=True)
        return cls(parameters, adam, recipe.max_grad_norm)

    def step(self, loss: Tensor, held: Tensor | None = None) -> Tensor:
        """One step down `loss`; skipped, parameters and moments untouched, where the gradient is not finite or `held` is 1.

        Returns a float tensor: 1 where skipped, else 0.
        """
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        return self.step_gradients(held)

    def step_gradients(self, held: Tensor | None = None) -> Tensor:
        """As `step`, down the gradients that the parameters hold."""
        limit = self.max_grad_norm if self.max_grad_norm is not None else float("inf")
        norm = nn.utils.clip_grad_norm_(self.parameters, limit)
        skipped = (~torch.isfinite(norm)).float()
        if held is not None:
            skipped = torch.maximum(skipped, held)
        setattr(self.optimiser, "grad_scale", None)  # noqa: B010 - both are read by fused Adam
        setattr(self.optimiser, "found_inf", skipped)  # noqa: B010
        self.optimiser.step()
        return skipped

    def state(self) -> dict[str, dict[str, NDArray[Any]]]:
        """Adam's `step`, `exp_avg`, `exp_avg_sq` of each parameter, by its number in the group."""
        return {
            str(number): {name: tensor.cpu().numpy().copy() for name, tensor in slots.items()}
            for number, slots in self.optimiser.state_dict()["state"].items()
        }

    def load_state(self, state: dict[str, dict[str, Any]]) -> None:
        """Put back what `state` gave."""
        whole = self.optimiser.state_dict()
        whole["state"] = {
            int(number): {name: torch.from_numpy(np.array(array)) for name, array in slots.items()}
            for number, slots in state.items()
        }
        self.optimiser.load_state_dict(whole)


def to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """The array as a tensor there; to a GPU through pinned memory, so that the host need not wait for what runs."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def channels_last(observation: Tensor) -> Tensor:
    """Images [B, C, H, W] of bytes laid out as convolutions like them, once for all minibatches; others as they are.

    Those with channels last in their shape, [B, H, W, C], lie so already.
    """
    if observation.dtype != torch.uint8 or observation.dim() != 4:
        return observation
    shape = tuple(observation.shape[1:])
    if channels_first(shape) != shape:
        return observation
    return observation.contiguous(memory_format=torch.channels_last)


def pick_rows(leaf: Tensor, index: Tensor) -> Tensor:
    """`leaf[index]` in the layout of `leaf`."""
    if leaf.dim() == 4 and leaf.is_contiguous(memory_format=torch.channels_last):
        return leaf.permute(0, 2, 3, 1).index_select(0, index).permute(0, 3, 1, 2)
    return leaf.index_select(0, index)


@dataclass(frozen=True)
class Batch:
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
    reference_log_prob: Tensor | None = None  # of a frozen reference, where the loss looks at it
    episode: Tensor | None = None  # the number of its piece of an episode, where advantages are normalised
    alone: Tensor | None = None  # advantages by the batch's moments, for columns that are one episode

    def take(self, index: Tensor) -> Batch:
        """Rows of a flat batch, columns of one with memory."""
        dim = 0 if self.episode_start is None else 1

        def pick(leaf: Tensor) -> Tensor:
            return pick_rows(leaf, index) if dim == 0 else leaf.index_select(dim, index)

        columns = {
            name: tree_map(pick, value) for name, value in vars(self).items() if name != "initial_state"
        }
        return Batch(
            **columns, initial_state=tree_map(lambda leaf: leaf.index_select(0, index), self.initial_state)
        )


class TorchUpdate:
    """`Update` for any policy."""

    def __init__(self, policy: nn.Module, recipe: Recipe) -> None:
        self.policy = cast(Any, policy)
        self.recipe = recipe
        self.device = next(policy.parameters()).device
        self.group = OptimiserGroup.adam(policy.parameters(), recipe)
        self.learns_policy, self.learns_value = True, recipe.trains_value

    def batch(self, trajectory: Trajectory, advantage: NDArray[Any], target: NDArray[Any]) -> Batch:
        columns = self.policy.recurrent

        def tensor(array: NDArray[Any]) -> Tensor:
            laid_out = array if columns else array.reshape(-1, *array.shape[2:])
            return to_device(laid_out, self.device)

        normalised = self.recipe.normalize_advantage
        episode = tensor(trajectory.episode) if normalised else None
        # flat minibatches mix the envs' rows; a minibatch of one column may well be one episode
        alone = (
            losses.normalise_advantage(tensor(advantage), tensor(trajectory.valid), episode=episode)
            if normalised and columns
            else None
        )
        return Batch(
            observation=tree_map(lambda leaf: channels_last(tensor(leaf)), trajectory.observation),
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
            episode=episode,
            alone=alone,
        )

    def optimise(
        self, batch: Batch, epochs: Iterable[list[Index]], rates: Rates
    ) -> tuple[list[str], NDArray[np.float64]]:
        for group in self.group.optimiser.param_groups:
            group["lr"] = rates.learning_rate
        names: list[str] = []
        # of each minibatch its metrics, then whether it was skipped; read once, at the end
        rows: list[Tensor] = []
        for parts in epochs:
            begun = len(rows)
            for index in parts:
                with span("learn: rows"):
                    rows_taken = batch.take(to_device(index, self.device))
                loss, metrics = self._loss(rows_taken, rates.clip)
                skipped = self.group.step(loss)
                names = [*metrics]
                rows.append(torch.stack([*metrics.values(), skipped]))
            if self.recipe.target_kl is not None and "approx_kl" in names and len(rows) > begun:
                kl, skips = torch.stack(rows[begun:])[:, [names.index("approx_kl"), -1]].unbind(1)
                if torch.where(skips > 0, 0.0, kl).mean().item() > self.recipe.target_kl:
                    break
        return names, torch.stack(rows).double().cpu().numpy() if rows else np.zeros((0, 1))

    def _loss(self, rows: Batch, clip: float | Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        evaluation = self.policy.evaluate(
            rows.observation, rows.action, rows.action_mask, rows.initial_state, rows.episode_start
        )
        if self.recipe.normalize_advantage:
            normalised = losses.normalise_advantage(
                rows.advantage, rows.valid, episode=rows.episode, alone=rows.alone
            )
            rows = replace(rows, advantage=normalised)
        return self._loss_of(evaluation, rows, clip)

    def _loss_of(
        self, evaluation: Evaluation, rows: Batch, clip: float | Tensor | None, count: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The recipe's loss of what the policy says of rows; `count` valid rows are in the whole minibatch."""
        recipe = self.recipe
        loss = torch.zeros((), device=self.device)
        metrics: dict[str, Tensor] = {}
        if self.learns_policy:
            if clip is None:
                loss, metrics = losses.policy_gradient(evaluation.log_prob, rows.advantage, rows.valid, count)
            else:
                loss, metrics = losses.clipped_surrogate(
                    evaluation.log_prob, rows.log_prob, rows.advantage, clip, rows.valid, count
                )
            entropy_loss, entropy_metrics = losses.entropy_bonus(evaluation.entropy, rows.valid, count)
            metrics |= entropy_metrics
            if recipe.entropy_coef:
                loss = loss + recipe.entropy_coef * entropy_loss
        if self.learns_value:
            value_loss, value_metrics = losses.value_loss(
                evaluation.value, rows.target, rows.value, recipe.clip_value, rows.valid, count
            )
            loss = loss + recipe.value_coef * value_loss
            metrics["value_loss"] = value_metrics["value_loss"]
        return loss, metrics

    def optimiser_state(self) -> dict[str, Any]:
        return self.group.state()

    def load_optimiser_state(self, state: dict[str, Any]) -> None:
        self.group.load_state(state)
