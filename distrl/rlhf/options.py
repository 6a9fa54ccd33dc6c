"""How supervised stages train; apart from the training itself, so that a command line reads it without torch."""

from __future__ import annotations

from dataclasses import dataclass

from distrl.recipes import option


@dataclass(frozen=True)
class TrainOptions:
    """How to train on a data set. AdamW; the learning rate rises linearly from 0, then falls linearly to 0."""

    learning_rate: float = option(1e-5, "AdamW's highest learning rate", gt=0)
    warmup: float = option(0.05, "share of the steps in which the learning rate rises", ge=0, lt=1)
    weight_decay: float = option(0.0, "AdamW's weight decay", ge=0)
    adam_eps: float = option(1e-8, "Adam's epsilon", gt=0)
    max_grad_norm: float | None = option(1.0, "clip of the gradient's global norm", gt=0)
    epochs: int = option(1, "passes over the data", ge=1)
    batch_size: int = option(32, "rows of a step", ge=1)
    micro_batch: int | None = option(
        None, "rows that go through the model together; none: all of a step", ge=1
    )
    evaluate_every: int | None = option(
        None, "steps between looks at the held-out rows; none: before the first and after the last", ge=1
    )
    max_skipped_updates: int = option(
        10, "steps in a row with a NaN or Inf gradient after which to give up", ge=1
    )
    seed: int = option(0, "of the order of the data, and of what is drawn to begin with", ge=0)
