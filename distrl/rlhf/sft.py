"""Supervised fine-tuning: a causal LM imitates demonstrations.

    loss = - sum over completion tokens t of log pi(x_t | x_<t) / number of completion tokens in the batch

What is in none of a row's spans, its prompt and the turns of others, is read and not learned. A batch's mean is over all its
tokens, whatever pieces it is computed in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distrl.policies.lm import LanguagePolicy, trunk_hidden
from distrl.policies.protocol import parameters_and_buffers
from distrl.rlhf.data import Demonstration
from distrl.rlhf.models import ModelParts
from distrl.rlhf.responses import Ints
from distrl.rlhf.training import Trainer, TrainOptions, padded, run


class Imitation:
    """`Objective` of demonstrations: minus the log-prob of the completions' tokens."""

    def __init__(self, model: nn.Module, rows: Sequence[Demonstration]) -> None:
        self.policy = LanguagePolicy(model, None)
        self.model = model
        self.rows = rows
        self.lengths = [len(row.tokens) for row in rows]
        self.learned = np.array([sum(end - begin for begin, end in row.learned) for row in rows])

    def count(self, rows: Ints) -> int:
        """Tokens of the completions."""
        return int(self.learned[rows].sum())

    def losses(self, rows: Ints) -> tuple[Tensor, dict[str, Tensor]]:
        """Summed over tokens, and how many of those would have been the likeliest."""
        some = [self.rows[row] for row in rows]
        token_NS, _ = padded([row.tokens for row in some], next(self.model.parameters()).device)
        told = np.zeros((len(some), token_NS.shape[1] - 1), bool)  # position t tells of token t + 1
        for n, row in enumerate(some):
            for begin, end in row.learned:
                told[n, begin - 1 : end - 1] = True
        told_NS = torch.from_numpy(told).to(token_NS.device)
        hidden_NSH = trunk_hidden(self.model, token_NS)
        said = self.policy.token_log_probs(hidden_NSH[:, :-1][told_NS], token_NS[:, 1:][told_NS])
        return -said.log_prob.sum(), {"entropy": said.entropy.detach().sum()}


def sft_trainer(
    parts: ModelParts,
    rows: Sequence[Demonstration],
    held_out: Sequence[Demonstration] = (),
    options: TrainOptions | None = None,
    device: str = "cpu",
) -> Trainer:
    """At step 0; with adapters in `parts` (`models.with_lora`) they alone are learned."""
    model = parts.build(device)
    looked_at = Imitation(model, held_out) if held_out else None
    return Trainer(model, Imitation(model, rows), looked_at, options or TrainOptions())


def train_sft(
    parts: ModelParts,
    rows: Sequence[Demonstration],
    held_out: Sequence[Demonstration] = (),
    options: TrainOptions | None = None,
    device: str = "cpu",
    on_step: Callable[[dict[str, float]], None] = lambda metrics: None,
    state: dict[str, Any] | None = None,
) -> ModelParts:
    """The model after all steps; `on_step` is told of each, `state` is a trainer's to go on from."""
    trainer = sft_trainer(parts, rows, held_out, options, device)
    if state is not None:
        trainer.load_state(state)
    run(trainer, on_step)
    return parts.with_arrays(parameters_and_buffers(trainer.model))
