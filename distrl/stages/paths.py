"""Which fast paths a run takes: each proved against the plain one on the run's own model before anything starts.

A function of the model and the configuration, computed on the CPU in float32 wherever roles live, so that neither the number
of workers nor their devices change it. It is recorded with each checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from distrl.errors import BadInput
from distrl.rlhf.fast_paths import fused_activations
from distrl.rlhf.models import ModelParts
from distrl.rlhf.ways import Trial, Trials, Way, way_of


@dataclass(frozen=True)
class Paths:
    """What was proved. `notes` are of what does not fit the model, and is not taken."""

    way: Way
    fused: bool
    notes: tuple[str, ...]

    @property
    def record(self) -> dict[str, str]:
        """By name, for checkpoints and the summary."""
        return {"generation": self.way.name, "activations": "fused" if self.fused else "as they are"}


def proved(actor: ModelParts, fast_paths: bool, generation: str, vocabulary: int | None) -> Paths:
    """The paths of a run that writes with this actor. BadInput where `generation` is asked for and does not fit it."""
    model: Any = replace(actor, fused=False, dtype="float32").build()
    notes: list[str] = []
    fused = fast_paths and _fits_fused(model, vocabulary, notes)
    if fast_paths and not fused:
        model = replace(actor, fused=False, dtype="float32").build()
    way = way_of(model, fast_paths, vocabulary, required=True)
    if generation != "plain":
        why = Trials(model, vocabulary).why_not(Way("stored", way.fast), steps="fixed")
        if why is not None:
            raise BadInput(
                f"--generation {generation}: steps in fixed shapes do not give what a full forward of a "
                f"{actor.config.model_type} model gives ({why}); give --generation plain"
            )
    return Paths(way, fused, (*notes, *way.notes))


def _fits_fused(
    model: Any, vocabulary: int | None, notes: list[str], fuse: Callable[[Any], Any] = fused_activations
) -> bool:
    """Whether the model, which is changed, gives the same with its activations fused."""
    before = Trial.of(model, vocabulary)
    after = Trial.of(fuse(model), vocabulary)
    off = float(np.abs(np.concatenate(before.expected) - np.concatenate(after.expected)).max())
    if off <= before.bound:
        return True
    notes.append(
        f"fused activations do not fit the family {model.config.model_type} (log-probs are {off:.2g} off): not taken"
    )
    return False
