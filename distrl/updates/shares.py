"""The update in pieces: micro-batches, joined by one fixed tree, so that several learners may share them.

    minibatch    |  0  |  1  |  2  |  3  |       micro-batches: columns of about one length
    learner 0     g0 + g1 = g01     \\
    learner 1     g2 + g3 = g23  ->  g01 + g23   every learner joins all shares, and steps alike

A gradient is the sum over micro-batches of sums over their rows, each divided by the valid rows of the whole
minibatch: split and number of learners change no row's weight. The tree splits in halves, and learners, a power of
two of them, take its nodes, so 1, 2 and 4 learners add in one order and agree to the bit. Parameters step in groups,
actor and critic apart, each with its own optimiser, gradient clip and skip: which of them a process has changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distrl.maths import losses
from distrl.maths.pieces import by_length
from distrl.policies.lm import NO_ACTION
from distrl.policies.protocol import Evaluation
from distrl.recipes import Recipe
from distrl.telemetry.spans import span
from distrl.trajectory import Trajectory
from distrl.trees import tree_map
from distrl.updates.protocol import Index, Rates
from distrl.updates.torch import Batch, OptimiserGroup, TorchUpdate, to_device

T = TypeVar("T")
LARGEST = "largest_ratio_deviation"  # joins by maximum; all other metrics are sums
Sums = tuple[
    dict[str, Tensor], dict[str, list[Tensor]]
]  # metrics, and the gradients of each group's parameters


@dataclass(frozen=True)
class Texts:
    """A batch, and what the host asks of its columns, so that it need not wait for the device: NumPy, [N] each."""

    batch: Batch
    rows_N: NDArray[np.int64]  # that are a decision, scored or not: they come first
    valid_N: NDArray[np.int64]  # that are learned from
    length_N: NDArray[np.int64]  # tokens of the text

    def take(self, columns: Index) -> Batch:
        """Some of them, without the rows at the end that are no decision in any."""
        num_rows = max(int(self.rows_N[columns].max()), 1)
        whole = vars(self.batch)
        rows = {
            name: tree_map(lambda leaf: leaf[:num_rows], value)
            for name, value in whole.items()
            if name != "initial_state"
        }
        device = self.batch.action.device
        state = self.batch.initial_state
        longest = int(self.length_N[columns].max())
        kept = {"token": state["token"][:, :longest], "length": state["length"]}
        some = Batch(**rows, initial_state=kept).take(to_device(columns, device))
        decision_2B = np.stack((np.arange(num_rows)[:, None] < self.rows_N[columns]).nonzero())
        return replace(some, initial_state=some.initial_state | {"decision": to_device(decision_2B, device)})


@dataclass(frozen=True)
class Share:
    """A learner's part of a minibatch's gradient: sums that add up. Arrays, so that it travels."""

    names: tuple[str, ...]
    metrics: NDArray[np.float32]
    gradients: dict[str, NDArray[np.float32]]  # group -> all its parameters', flat

    def __add__(self, other: Share) -> Share:
        gradients = {name: flat + other.gradients[name] for name, flat in self.gradients.items()}
        is_largest = np.array([name == LARGEST for name in self.names])
        largest = np.maximum(self.metrics, other.metrics)
        return Share(self.names, np.where(is_largest, largest, self.metrics + other.metrics), gradients)


def halves(low: int, high: int) -> tuple[range, range]:
    """The two sides of the tree's node over low..high-1."""
    middle = (low + high + 1) // 2
    return range(low, middle), range(middle, high)


def node(count: int, share: int, num_shares: int) -> range:
    """The pieces of one of `num_shares` learners: a node of the tree over `count`. ValueError for no power of two."""
    if num_shares & (num_shares - 1):
        raise ValueError(f"learners that share a role's update are 1, 2, 4, 8, ..., got {num_shares}")
    pieces = range(count)
    while num_shares > 1:
        num_shares //= 2
        pieces = halves(pieces.start, pieces.stop)[share // num_shares]
        share %= num_shares
    return pieces


def tree_sum(pieces: range, leaf: Callable[[int], T], add: Callable[[T, T], T]) -> T:
    """The sum of the leaves by the tree. There must be one at least."""
    if len(pieces) == 1:
        return leaf(pieces.start)
    left, right = halves(pieces.start, pieces.stop)
    return add(tree_sum(left, leaf, add), tree_sum(right, leaf, add))


class SharedUpdate(TorchUpdate):
    """`Update` by groups and micro-batches of columns; alone, or as one of several learners by `gradient` and `step`.

    The policy says by `optimiser_groups()` which parameters step together; without an actor the policy's loss is left
    out, without a critic the value's. Advantages come normalised. `micro_batch` columns at most go through the models
    at a time (default: a minibatch), fewer where that saves padding; `rate_factors` multiply a group's learning rate.
    """

    def __init__(
        self,
        policy: Any,
        recipe: Recipe,
        micro_batch: int | None = None,
        rate_factors: dict[str, float] | None = None,
    ) -> None:
        self.policy = policy
        self.recipe = replace(recipe, normalize_advantage=False)
        self.device = next(policy.parameters()).device
        self.micro_batch = micro_batch
        groups: dict[str, list[nn.Parameter]] = policy.optimiser_groups()
        self.groups = {name: OptimiserGroup.adam(own, recipe) for name, own in groups.items()}
        self.rate_factors = rate_factors or {}
        self.learns_policy = self.policy.actor is not None
        self.learns_value = recipe.trains_value and self.policy.critic is not None

    def batch(self, trajectory: Trajectory, advantage: NDArray[Any], target: NDArray[Any]) -> Texts:  # type: ignore[override]
        batch = super().batch(trajectory, advantage, target)
        reference = to_device(trajectory.extra["reference_log_prob"], self.device)
        valid = to_device(trajectory.valid, self.device)
        return Texts(
            replace(batch, reference_log_prob=reference, valid=valid),
            rows_N=(trajectory.action != NO_ACTION).sum(axis=0),
            valid_N=trajectory.valid.sum(axis=0),
            length_N=np.asarray(trajectory.initial_state["length"]),
        )

    def optimise(
        self, batch: Any, epochs: Iterable[list[Index]], rates: Rates
    ) -> tuple[list[str], NDArray[np.float64]]:
        """As `Update.optimise`, all shares here; a row ends in one number for each group, 1 if that was skipped."""
        tables: list[NDArray[np.float64]] = []
        names: list[str] = []
        for parts in epochs:
            rows: list[Tensor] = []
            for index in parts:
                metrics, gradients = self._sums(batch, index, rates)
                skipped = self._step(gradients, rates)
                names = [*metrics]
                rows.append(torch.cat([torch.stack([*metrics.values()]), skipped]))
            if rows:  # the host waits for the device here, once an epoch
                tables.append(torch.stack(rows).double().cpu().numpy())
            if rows and stops(self.recipe, names, tables[-1]):
                break
        return names, np.concatenate(tables) if tables else np.zeros((0, len(self.groups)))

    def gradient(
        self, texts: Texts, index: Index, rates: Rates, share: int = 0, num_shares: int = 1
    ) -> Share:
        """This learner's share of the gradient of a minibatch, the columns `index`; an empty one where it has no piece."""
        sums = self._sums(texts, index, rates, share, num_shares)
        if not sums[1]:
            return Share((), np.zeros(0, np.float32), {})
        metrics, gradients = sums
        told = torch.stack([*metrics.values()]).float().cpu().numpy()
        flat = {
            name: torch.cat([one.flatten() for one in parts]).float().cpu().numpy()
            for name, parts in gradients.items()
        }
        return Share(tuple(metrics), told, flat)

    def step(self, whole: Share, rates: Rates) -> NDArray[np.float64]:
        """Steps every group down the whole gradient. Its metrics, then of each 1 if it was not finite and skipped."""
        gradients = {}
        for name, group in self.groups.items():
            ends = np.cumsum([parameter.numel() for parameter in group.parameters])
            parts = np.split(whole.gradients[name], ends[:-1])
            # copies: what came from another process is read-only, and the clip scales in place
            gradients[name] = [
                torch.tensor(part).to(self.device).view_as(own)
                for own, part in zip(group.parameters, parts, strict=True)
            ]
        skipped = self._step(gradients, rates).double().cpu().numpy()
        return np.append(whole.metrics.astype(np.float64), skipped)

    def _sums(self, texts: Texts, index: Index, rates: Rates, share: int = 0, num_shares: int = 1) -> Sums:
        """Metrics and gradients of this learner's pieces; nothing where it has none."""
        pieces = self.pieces(texts.length_N, index)
        count = torch.tensor(max(int(texts.valid_N[index].sum()), 1))
        mine = node(len(pieces), share, num_shares)
        if not len(mine):
            return {}, {}
        return tree_sum(mine, lambda i: self._piece(texts, pieces[i], rates, count), _added)

    def _step(self, gradients: dict[str, list[Tensor]], rates: Rates) -> Tensor:
        """1 for each group that was skipped, else 0."""
        skipped = []
        for name, group in self.groups.items():
            for options in group.optimiser.param_groups:
                options["lr"] = rates.learning_rate * self.rate_factors.get(name, 1.0)
            for parameter, gradient in zip(group.parameters, gradients[name], strict=True):
                parameter.grad = gradient.contiguous()  # norms add in the order of memory
            skipped.append(group.step_gradients())
            group.optimiser.zero_grad(set_to_none=True)
        return torch.stack(skipped)

    def pieces(self, length_N: NDArray[np.int64], index: Index) -> list[Index]:
        """Micro-batches of the columns `index`, texts of about one length together."""
        most = self.micro_batch or len(index)
        return [index[piece] for piece in by_length(length_N[index], most, self.device.type)]

    def _piece(self, texts: Texts, columns: Index, rates: Rates, count: Tensor) -> Sums:
        """Metrics and gradients of one micro-batch; of |ratio - 1| its part of the mean, and the largest."""
        with span("learn: rows"):
            rows = texts.take(columns)
        assert rows.valid is not None
        evaluation = self.policy.evaluate(
            rows.observation, rows.action, rows.action_mask, rows.initial_state, rows.episode_start
        )
        loss, metrics = self._loss_of(evaluation, rows, rates.clip, count)
        if self.learns_policy:
            off = (torch.exp(evaluation.log_prob.detach() - rows.log_prob) - 1).abs()
            off = torch.where(rows.valid, off, 0.0)
            metrics = metrics | {"ratio_deviation": off.sum() / count, LARGEST: off.max()}
        if self.learns_policy and rates.beta:
            loss, metrics = self._with_kl(loss, metrics, evaluation, rows, rates.beta, count)
        every = [parameter for group in self.groups.values() for parameter in group.parameters]
        found = torch.autograd.grad(loss, every, allow_unused=True)
        filled = iter(
            torch.zeros_like(parameter) if gradient is None else gradient
            for parameter, gradient in zip(every, found, strict=True)
        )
        return metrics, {
            name: [next(filled) for _ in group.parameters] for name, group in self.groups.items()
        }

    def _with_kl(
        self,
        loss: Tensor,
        metrics: dict[str, Tensor],
        evaluation: Evaluation,
        rows: Batch,
        beta: float,
        count: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        assert rows.reference_log_prob is not None
        estimator: str = getattr(self.recipe, "kl_estimator")  # noqa: B009 - a ResponseRecipe's
        kl, kl_metrics = losses.kl_penalty(
            evaluation.log_prob, rows.reference_log_prob, estimator, rows.valid, count
        )
        return loss + beta * kl, metrics | kl_metrics

    def optimiser_state(self) -> dict[str, Any]:
        """Of each group by its name, as `OptimiserGroup.state`."""
        return {name: group.state() for name, group in self.groups.items()}

    def load_optimiser_state(self, state: dict[str, Any]) -> None:
        for name, group in self.groups.items():
            group.load_state(state[name])


def joined(shares: Sequence[Share]) -> Share:
    """The whole of all learners' shares, in their order, by the upper part of the tree."""
    some = [share for share in shares if share.gradients]
    return tree_sum(range(len(some)), lambda i: some[i], lambda a, b: a + b)


def stops(recipe: Recipe, names: Sequence[str], rows: NDArray[np.float64]) -> bool:
    """Whether an epoch's rows (metrics, then skips of each group, the actor's first) passed `target_kl`."""
    if recipe.target_kl is None or "approx_kl" not in names or not len(rows):
        return False
    kl, skipped = rows[:, list(names).index("approx_kl")], rows[:, len(names)] > 0
    return bool(np.where(skipped, 0.0, kl).mean() > recipe.target_kl)


def _added(a: Sums, b: Sums) -> Sums:
    metrics = {
        name: torch.maximum(value, b[0][name]) if name == LARGEST else value + b[0][name]
        for name, value in a[0].items()
    }
    gradients = {
        name: [one.add_(other) for one, other in zip(parts, b[1][name], strict=True)]
        for name, parts in a[1].items()
    }
    return metrics, gradients
