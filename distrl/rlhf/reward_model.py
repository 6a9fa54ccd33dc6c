"""The reward model: a number for a text, learned from pairs of which one was preferred.

    P(chosen > rejected) = sigmoid(r(chosen) - r(rejected))         loss = - log of it, mean over pairs

(Bradley and Terry 1952; Christiano et al. 2017, arXiv 1706.03741; Stiennon et al. 2020, arXiv 2009.01325.) The loss
knows differences alone, so scores are brought to mean 0 and deviation 1 on samples of the policy that PPO starts from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distrl.errors import RunFailed
from distrl.maths.pieces import by_length
from distrl.maths.random import derive_seed
from distrl.policies.lm import ScalarModel
from distrl.policies.protocol import parameters_and_buffers
from distrl.rlhf.data import Preference
from distrl.rlhf.generation import CachedGenerator, respond
from distrl.rlhf.models import ModelParts, scalar_from, width
from distrl.rlhf.opinions import scores
from distrl.rlhf.responses import Ints, Responses
from distrl.rlhf.rewards import ScoreScale
from distrl.rlhf.training import Trainer, TrainOptions, padded, run


class Comparison:
    """`Objective` of preferences. Scores are read at a text's last token."""

    def __init__(self, model: nn.Module, rows: Sequence[Preference]) -> None:
        self.scalar = ScalarModel(model)
        self.rows = rows
        self.lengths = [max(len(row.chosen), len(row.rejected)) for row in rows]

    def count(self, rows: Ints) -> int:
        """Pairs."""
        return len(rows)

    def losses(self, rows: Ints) -> tuple[Tensor, dict[str, Tensor]]:
        """Summed over pairs, and how many are told right (a tie is half of one) and by how much."""
        some = [self.rows[row] for row in rows]
        texts = [row.chosen for row in some] + [row.rejected for row in some]
        token_NS, length_N = padded(texts, next(self.scalar.parameters()).device)
        score_N = self.scalar(token_NS)[torch.arange(len(texts), device=token_NS.device), length_N - 1]
        margin = score_N[: len(some)] - score_N[len(some) :]
        seen = margin.detach()
        right = (seen > 0).float() + 0.5 * (seen == 0).float()
        return nn.functional.softplus(-margin).sum(), {"accuracy": right.sum(), "margin": seen.sum()}


class RewardTrainer(Trainer):
    """A trainer that says how sure its held-out accuracy is."""

    def evaluate(self) -> dict[str, float]:
        """As `Trainer.evaluate`, and `held_out_accuracy_error`: the accuracy's standard error."""
        told = super().evaluate()
        if told:
            error = accuracy_error(told["held_out_accuracy"], int(told["held_out_count"]))
            told["held_out_accuracy_error"] = error
        return told


def new_reward_model(causal: ModelParts, seed: int) -> ModelParts:
    """On a causal LM's trunk; its head is drawn with deviation 1 / sqrt(width + 1)."""
    return scalar_from(causal, (width(causal) + 1) ** -0.5, seed)


def reward_trainer(
    parts: ModelParts,
    rows: Sequence[Preference],
    held_out: Sequence[Preference] = (),
    options: TrainOptions | None = None,
    device: str = "cpu",
) -> RewardTrainer:
    """At step 0. `parts` are a scalar model's (`new_reward_model`), with adapters or without."""
    model = parts.build(device)
    looked_at = Comparison(model, held_out) if held_out else None
    return RewardTrainer(model, Comparison(model, rows), looked_at, options or TrainOptions())


def train_reward_model(
    parts: ModelParts,
    rows: Sequence[Preference],
    held_out: Sequence[Preference] = (),
    options: TrainOptions | None = None,
    device: str = "cpu",
    on_step: Callable[[dict[str, float]], None] = lambda metrics: None,
    state: dict[str, Any] | None = None,
) -> ModelParts:
    """The model after all steps, its scores not yet normalised (`score_scale`). Arguments as `train_sft` has them."""
    trainer = reward_trainer(parts, rows, held_out, options, device)
    if state is not None:
        trainer.load_state(state)
    run(trainer, on_step)
    return parts.with_arrays(parameters_and_buffers(trainer.model))


def accuracy_error(accuracy: float, num_pairs: int) -> float:
    """Standard error of a share of pairs told right: sqrt(p (1 - p) / n)."""
    return float(np.sqrt(accuracy * (1.0 - accuracy) / num_pairs))


def score_scale(
    parts: ModelParts, samples: Responses, forward_batch: int = 64, device: str = "cpu"
) -> ScoreScale:
    """Mean and deviation of a reward model's scores on samples. RunFailed where there is no deviation to divide by."""
    with torch.no_grad():
        said = scores(
            ScalarModel(parts.build(device)), samples, by_length(samples.length, forward_batch)
        ).said.astype(np.float64)
    mean, deviation = float(said.mean()), float(said.std())
    if not (np.isfinite(mean) and deviation > 1e-8):
        raise RunFailed(
            f"the reward model's scores of {len(said)} samples have mean {mean:g} and deviation {deviation:g}: they "
            "cannot be normalised; give more and different prompts, or look at the reward model's training"
        )
    return ScoreScale(mean, deviation, len(said))


def reference_samples(
    policy: ModelParts,
    prompts: Sequence[Sequence[int]],
    end_tokens: Sequence[int],
    max_response: int,
    seed: int,
    temperature: float = 1.0,
    generation_batch: int = 64,
    device: str = "cpu",
    vocabulary: int | None = None,
) -> Responses:
    """One response of the policy, the SFT model say, to each prompt: what `score_scale` wants."""
    generator = CachedGenerator(policy.build(device), end_tokens, temperature, vocabulary=vocabulary)
    own_seed = derive_seed(seed, "reference samples")
    parts = []
    for begin in range(0, len(prompts), generation_batch):
        rows = range(begin, min(begin + generation_batch, len(prompts)))
        some = [prompts[row] for row in rows]
        parts.append(respond(generator, some, rows, own_seed, 0, rows, max_response, version=0))
    return Responses.concatenate(parts)
