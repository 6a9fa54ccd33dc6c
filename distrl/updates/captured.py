"""The update in torch with nothing left to the host: the twin of `distrl.updates.torch` for a GPU.

    host     pack columns -> |one pinned copy|  one copy of all permutations          wait: metrics, targets
    device                    GAE (numba.cuda)   minibatch: gather, loss, step  x epochs x minibatches

All tensors that a minibatch reads or writes stay where they are, so its kernels are captured once for each size of
a minibatch and replayed as one launch. The learning rate, the clip and the rows of the minibatch are tensors that
change between replays. The host waits once an iteration, at its end; once an epoch more where `target_kl` is set.

Capture is off on a CPU, where the same steps run one by one, to the bits of `TorchUpdate`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distrl.errors import BadInput
from distrl.maths.advantage import gae
from distrl.recipes import Recipe
from distrl.trajectory import Trajectory
from distrl.trees import tree_leaves, tree_map
from distrl.updates.protocol import Index, Rates
from distrl.updates.staging import Staging
from distrl.updates.torch import Batch, TorchUpdate, channels_last

WARM_UP = 3  # steps before a capture, for what is made at first use: Adam's state, cuBLAS's workspace, cuDNN's plans
MAX_GRAPHS = 4  # sizes of minibatches; more, as rows come and go, are run without a graph
CREDIT = ("reward", "value", "next_value", "terminated", "done")  # what GAE reads


@dataclass
class _Step:
    """A minibatch of one size: the rows to take, its metrics, and the graph where it is captured."""

    index: Tensor  # [n]
    row: Tensor
    graph: torch.cuda.CUDAGraph | None


class CapturedUpdate(TorchUpdate):
    """`Update` for a policy without memory; BadInput for one with. `capture` None: on a GPU.

    It can also compute GAE, on the device: `batch_by_gae` instead of `batch`, and `target` afterwards.
    """

    def __init__(self, policy: nn.Module, recipe: Recipe, capture: bool | None = None) -> None:
        if getattr(policy, "recurrent", False):
            raise BadInput(
                "--learner captured: a policy with memory has steps whose number its data decides; give --learner torch"
            )
        super().__init__(policy, recipe)
        on_gpu = self.device.type == "cuda"
        self.capture = on_gpu if capture is None else capture
        if self.capture and not on_gpu:
            raise BadInput(
                f"--learner captured wants a CUDA device, the policy is on {self.device}; give --learner torch"
            )
        # fused Adam reads a float32 on a GPU, and any type on a CPU, where float64 is what a Python number is
        kind = torch.float32 if on_gpu else torch.float64
        self.learning_rate = torch.zeros((), dtype=kind, device=self.device)
        self.clip = torch.zeros((), dtype=torch.float64, device=self.device)
        self.held = torch.zeros((), device=self.device)  # 1 while steps must change nothing
        self.steps: dict[int, _Step] = {}
        self.met: set[int] = set()  # sizes of minibatches since the shapes are what they are
        self.names: list[str] = []
        self.columns: Staging | None = None
        self.order: Staging | None = None
        self.table = torch.zeros(0, device=self.device)
        self._own_optimiser()

    def _own_optimiser(self) -> None:
        for group in self.group.optimiser.param_groups:
            group["lr"] = self.learning_rate

    def batch(self, trajectory: Trajectory, advantage: NDArray[Any], target: NDArray[Any]) -> Batch:
        return self._send(trajectory, {"advantage": advantage, "target": target})

    def batch_by_gae(self, trajectory: Trajectory, reward: NDArray[np.float32]) -> Batch:
        """`batch` with the recipe's GAE of `reward` [T, N], computed where the batch is."""
        given = {name: getattr(trajectory, name) for name in CREDIT} | {"reward": reward}
        batch = self._send(trajectory, given)
        columns: list[Any] = [self.sent[name] for name in CREDIT]
        rates = (self.recipe.gamma, self.recipe.lam)
        if self.device.type == "cuda":
            from numba import cuda

            from distrl.maths.advantage_cuda import gae_cuda

            reward_, value, next_value, terminated, done = map(cuda.as_cuda_array, columns)
            out = cuda.as_cuda_array(batch.advantage.view(reward.shape))
            gae_cuda(reward_, value, next_value, terminated, done, *rates, out=out)
        else:
            reward_, value, next_value, terminated, done = (column.numpy() for column in columns)
            credit = gae(reward_, value, next_value, terminated, done, *rates)
            batch.advantage.copy_(torch.from_numpy(credit).flatten())
        torch.add(batch.advantage, batch.value, out=batch.target)
        return batch

    def _send(self, trajectory: Trajectory, more: dict[str, NDArray[Any]]) -> Batch:
        """The columns on the device, in one copy, in buffers that stay where they are while shapes do."""
        observation = tree_leaves(trajectory.observation)
        mask = trajectory.extra.get("action_mask")
        named = {
            "action": trajectory.action,
            "log_prob": trajectory.log_prob,
            "value": trajectory.value,
            **more,
        }
        if mask is not None:
            named["action_mask"] = mask
        if self.recipe.normalize_advantage:
            named["episode"] = trajectory.episode
        arrays = [*observation, *named.values()]
        if self.columns is None or not self.columns.fits(arrays):
            self.columns = Staging(arrays, self.device)
            self.steps.clear()
            self.met.clear()
            self._lay_out(trajectory, [*named])
        self.columns.send(arrays)
        for sent, laid_out in self.moved:
            laid_out.copy_(sent)
        return self.static

    def _lay_out(self, trajectory: Trajectory, names: list[str]) -> None:
        """The flat batch over the columns' places; images get one of their own, channels last."""
        assert self.columns is not None
        tensors = iter(self.columns.tensors)
        self.moved: list[tuple[Tensor, Tensor]] = []

        def observed(_: Any) -> Tensor:
            flat = next(tensors).flatten(0, 1)
            laid_out = channels_last(flat)
            if laid_out is not flat:
                self.moved.append((flat, laid_out))
            return laid_out

        observation = tree_map(observed, trajectory.observation)
        self.sent = dict(zip(names, tensors, strict=True))
        flat = {name: tensor.flatten(0, 1) for name, tensor in self.sent.items()}
        for name in ("advantage", "target"):
            if name not in flat:
                flat[name] = torch.zeros_like(flat["value"])
        self.static = Batch(
            observation=observation,
            action=flat["action"],
            action_mask=flat.get("action_mask"),
            log_prob=flat["log_prob"],
            value=flat["value"],
            advantage=flat["advantage"],
            target=flat["target"],
            valid=None,
            episode_start=None,
            initial_state=None,
            episode=flat.get("episode"),
        )
        self.shape = trajectory.reward.shape

    def optimise(
        self, batch: Batch, epochs: Iterable[list[Index]], rates: Rates
    ) -> tuple[list[str], NDArray[np.float64]]:
        self.learning_rate.fill_(rates.learning_rate)
        self.clip.fill_(rates.clip or 0.0)
        plan = [list(parts) for parts in epochs]
        order = np.concatenate([np.zeros(0, np.int64), *(part for parts in plan for part in parts)])
        if self.order is None or not self.order.fits([order]):
            self.order = Staging([order], self.device)
        self.order.send([order])
        (there,) = self.order.tensors
        rows = begin = 0
        for parts in plan:
            first = rows
            for part in parts:
                row = self._run(there[begin : begin + len(part)], rates.clip is not None)
                if len(self.table) < sum(map(len, plan)) or self.table.shape[1:] != row.shape:
                    self.table = row.new_zeros((sum(map(len, plan)), len(row)))
                self.table[rows].copy_(row)
                begin, rows = begin + len(part), rows + 1
            if self._is_far(self.table[first:rows]):
                break
        (table, self.target) = self._read(self.table[:rows], batch.target.view(self.shape))
        return self.names, table.astype(np.float64) if rows else np.zeros((0, 1))

    def _is_far(self, rows: Tensor) -> bool:
        """Whether this epoch's KL passes the recipe's target: the host must know, and waits."""
        if self.recipe.target_kl is None or "approx_kl" not in self.names or not len(rows):
            return False
        kl, skips = rows[:, [self.names.index("approx_kl"), -1]].unbind(1)
        return bool(torch.where(skips > 0, 0.0, kl).mean().item() > self.recipe.target_kl)

    def _read(self, *tensors: Tensor) -> list[NDArray[Any]]:
        """Copies on the host: the one wait of an iteration."""
        if self.device.type != "cuda":
            return [tensor.numpy().copy() for tensor in tensors]
        pinned = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in tensors]
        for mine, theirs in zip(pinned, tensors, strict=True):
            mine.copy_(theirs, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        arrived.synchronize()
        return [tensor.numpy() for tensor in pinned]

    def _run(self, index: Tensor, clipped: bool) -> Tensor:
        """One minibatch; its metrics, then whether it was skipped."""
        clip = self.clip if clipped else None
        step = self.steps.get(len(index))
        if step is None and self.capture and len(index) in self.met and len(self.steps) < MAX_GRAPHS:
            step = self.steps[len(index)] = self._capture(index, clip)
        self.met.add(len(index))  # a size that comes once, a graph would not pay for
        if step is None or step.graph is None:
            return self._minibatch(index, clip)
        step.index.copy_(index)
        step.graph.replay()
        return step.row

    def _minibatch(self, index: Tensor, clip: Tensor | None) -> Tensor:
        loss, metrics = self._loss(self.static.take(index), clip)
        skipped = self.group.step(loss, self.held)
        self.names = [*metrics]
        return torch.stack([*metrics.values(), skipped])

    def _capture(self, rows: Tensor, clip: Tensor | None) -> _Step:
        """The graph of a minibatch of as many rows. What runs before it is held: parameters and moments stay."""
        index = rows.clone()
        self.held.fill_(1.0)
        before, beside = torch.cuda.current_stream(), torch.cuda.Stream()
        beside.wait_stream(before)
        with torch.cuda.stream(beside):
            for _ in range(WARM_UP):
                self._minibatch(index, clip)
        before.wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        self.group.optimiser.zero_grad(set_to_none=True)  # gradients then live in the graph's own memory
        groups = self.group.optimiser.param_groups
        for group in groups:
            group["capturable"] = True
        # of this thread alone: another may infer for the next fragment meanwhile
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            row = self._minibatch(index, clip)
        for group in groups:
            group["capturable"] = False  # fused Adam is, but complains wherever it then runs outside a graph
        self.held.fill_(0.0)
        return _Step(index, row, graph)

    def load_optimiser_state(self, state: dict[str, Any]) -> None:
        super().load_optimiser_state(state)
        self._own_optimiser()
        self.steps.clear()  # their graphs step the state that was
