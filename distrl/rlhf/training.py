"""Supervised training, of the actor's start and of the reward model alike: batches, one optimiser, a resumable state.

    step s  ->  batch s of its epoch's order  ->  pieces of about one length  ->  sum of losses / count  ->  AdamW

A step is a function of (state, seed, data): a trainer that was put back goes on with the same bits. Models stay in
evaluation mode: without dropout there is nothing random in a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distrl.errors import BadInput, RunFailed
from distrl.maths.pieces import by_length
from distrl.maths.random import stream
from distrl.policies.protocol import load_parameters, parameters_and_buffers
from distrl.rlhf.options import TrainOptions
from distrl.rlhf.responses import Ints
from distrl.updates.torch import OptimiserGroup

POOL = 32  # batches whose rows are sorted by length together


class Objective(Protocol):
    """What is learned from some rows of a data set."""

    @property
    def lengths(self) -> Sequence[int]:
        """Tokens of each row, [n]."""
        ...

    def count(self, rows: Ints) -> int:
        """What the losses of these rows are a mean over: tokens, or pairs."""
        ...

    def losses(self, rows: Ints) -> tuple[Tensor, dict[str, Tensor]]:
        """Their sum, and sums for metrics: means over the same count."""
        ...


class Trainer:
    """Learns `objective` by changing those parameters of `model` that are learned; looks at `held_out` now and then."""

    def __init__(
        self, model: nn.Module, objective: Objective, held_out: Objective | None, options: TrainOptions
    ) -> None:
        self.model, self.objective, self.held_out, self.options = model, objective, held_out, options
        self.num_rows = len(objective.lengths)
        if not self.num_rows:
            raise BadInput("there must be a row to train on, got none")
        self.steps_per_epoch = -(-self.num_rows // options.batch_size)
        self.num_steps = options.epochs * self.steps_per_epoch
        learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
        adam = torch.optim.AdamW(
            learned,
            lr=options.learning_rate,
            eps=options.adam_eps,
            weight_decay=options.weight_decay,
            fused=True,
        )
        self.group = OptimiserGroup(learned, adam, options.max_grad_norm)
        self.taken = 0  # steps
        self.skipped = 0
        self.streak = 0  # steps skipped in a row, the last ones first
        self.unevaluated: Exception | None = (
            None  # why the held-out rows were not looked at after the last step
        )
        self._order: tuple[int, list[Ints]] = (-1, [])

    @property
    def finished(self) -> bool:
        """All steps are taken."""
        return self.taken >= self.num_steps

    def step(self) -> dict[str, float]:
        """The next step; its metrics. RunFailed where too many in a row had a gradient that is not finite."""
        epoch, place = divmod(self.taken, self.steps_per_epoch)
        rows = self._batches(epoch)[place]
        count = self.objective.count(rows)
        rate = learning_rate(self.options, self.taken, self.num_steps)
        self.group.optimiser.zero_grad(set_to_none=True)
        means: dict[str, float] = {}
        for piece in self._pieces(self.objective, rows):
            loss, sums = self.objective.losses(piece)
            (loss / count).backward()  # type: ignore[no-untyped-call]
            _add(means, {"loss": loss.detach(), **sums}, count)
        for options in self.group.optimiser.param_groups:
            options["lr"] = rate
        skipped = bool(self.group.step_gradients())
        self.group.optimiser.zero_grad(set_to_none=True)
        self._count_skipped(skipped)
        self.taken += 1
        metrics = {"step": float(self.taken), "epoch": self.taken / self.steps_per_epoch, **means}
        metrics |= {"learning_rate": rate, "count": float(count), "skipped_updates": float(self.skipped)}
        every = self.options.evaluate_every
        if self.finished:
            metrics |= self._last_evaluation()
        elif every is not None and self.taken % every == 0:
            metrics |= self.evaluate()
        return metrics

    def _last_evaluation(self) -> dict[str, float]:
        """What was trained is not lost to it: an error is kept, for the time when the model is saved."""
        try:
            return self.evaluate()
        except Exception as error:
            self.unevaluated = error
            return {}

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """The held-out rows' means, `held_out_loss` among them; nothing where no rows are held out."""
        if self.held_out is None:
            return {}
        every = np.arange(len(self.held_out.lengths))
        count = self.held_out.count(every)
        means: dict[str, float] = {}
        for piece in self._pieces(self.held_out, every):
            loss, sums = self.held_out.losses(piece)
            _add(means, {"loss": loss, **sums}, count)
        return {f"held_out_{name}": mean for name, mean in means.items()} | {"held_out_count": float(count)}

    def _batches(self, epoch: int) -> list[Ints]:
        if self._order[0] != epoch:
            options = self.options
            self._order = epoch, batches(self.objective.lengths, options.batch_size, options.seed, epoch)
        return self._order[1]

    def _pieces(self, objective: Objective, rows: Ints) -> list[Ints]:
        """Rows that go through the model together, the longest first."""
        size = self.options.micro_batch or self.options.batch_size
        length = np.asarray(objective.lengths)[rows]
        device = next(self.model.parameters()).device.type
        return [rows[piece] for piece in by_length(length, size, device)]

    def _count_skipped(self, skipped: bool) -> None:
        self.skipped += skipped
        self.streak = self.streak + 1 if skipped else 0
        if self.streak >= self.options.max_skipped_updates:
            raise RunFailed(
                f"{self.streak} steps in a row had a NaN or Inf gradient (--max-skipped-updates "
                f"{self.options.max_skipped_updates}): lower --learning-rate, or look at the model's weights"
            )

    def state(self) -> dict[str, Any]:
        """State tree of all that a later step depends on."""
        return {
            "parameters": parameters_and_buffers(self.model),
            "optimiser": self.group.state(),
            "taken": self.taken,
            "skipped": self.skipped,
            "streak": self.streak,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Puts back what `state` gave."""
        load_parameters(self.model, state["parameters"])
        self.group.load_state(state["optimiser"])
        self.taken, self.skipped, self.streak = (int(state[name]) for name in ("taken", "skipped", "streak"))


def run(trainer: Trainer, on_step: Callable[[dict[str, float]], None] = lambda metrics: None) -> None:
    """All steps that are left. `on_step` is told of each, and first of the held-out rows as they stand."""
    for metrics in steps(trainer):
        on_step(metrics)


def steps(trainer: Trainer) -> Iterator[dict[str, float]]:
    """Metrics of each step as it is taken; before the first, of the held-out rows."""
    if not trainer.taken and (stands := trainer.evaluate()):
        yield {"step": 0.0, "epoch": 0.0, **stands}
    while not trainer.finished:
        yield trainer.step()


def learning_rate(options: TrainOptions, step: int, num_steps: int) -> float:
    """Of step 0..num_steps-1: linearly up over the warm-up, then linearly down to 0 where the next step would be."""
    warmup = round(options.warmup * num_steps)
    if step < warmup:
        return options.learning_rate * (step + 1) / warmup
    return options.learning_rate * (num_steps - step) / (num_steps - warmup)


def batches(length_N: Sequence[int], size: int, seed: int, epoch: int) -> list[NDArray[np.int64]]:
    """An epoch's batches: every row once, rows of about one length together; a function of (seed, epoch) alone.

    Rows are drawn into pools, sorted by length within a pool, and the batches come in a random order.
    """
    length = np.asarray(length_N)
    generator = stream(seed, "data order", epoch)
    order = generator.permutation(len(length))
    made = []
    for begin in range(0, len(order), POOL * size):
        pool = order[begin : begin + POOL * size]
        rows = pool[np.argsort(length[pool], kind="stable")]
        made += [rows[start : start + size] for start in range(0, len(rows), size)]
    return [made[place] for place in generator.permutation(len(made))]


def padded(texts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Texts right-padded, [N, S], and their lengths, [N]."""
    length = torch.tensor([len(text) for text in texts])
    token = torch.zeros((len(texts), int(length.max())), dtype=torch.long)
    for n, text in enumerate(texts):
        token[n, : len(text)] = torch.tensor(text)
    return token.to(device), length.to(device)


def _add(means: dict[str, float], sums: dict[str, Tensor], count: int) -> None:
    for name, total in sums.items():
        means[name] = means.get(name, 0.0) + float(total) / count
