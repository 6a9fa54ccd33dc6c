"""The roles of RLHF, and what a worker that hosts some of them is told of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from torch import nn

from distrl.rlhf.fixed import Steps
from distrl.rlhf.generation import Generator
from distrl.rlhf.models import Dtype
from distrl.rlhf.recipes import ResponseRecipe
from distrl.rlhf.scoring import RewardSource

Role = Literal["actor", "critic", "reward", "reference", "generator"]
ROLES: tuple[Role, ...] = ("generator", "actor", "critic", "reference", "reward")


@dataclass(frozen=True)
class RoleSpec:
    """All that a role's worker needs to know of a run; travels to each once, the models beside it."""

    recipe: ResponseRecipe
    seed: int
    prompts: tuple[tuple[int, ...], ...]  # tokens of each
    num_prompts: int  # of an iteration
    end_tokens: tuple[int, ...]
    reward: RewardSource
    vocabulary: int | None = None  # ids of the tokenizer, where models have more rows
    value_head: bool = False  # the critic is a head on the actor's trunk
    critic_rate: float = 1.0  # the critic's learning rate as a multiple of the actor's
    generation_batch: int = 64  # responses that are written together
    forward_batch: int = 64  # texts that go through a model together where nothing is learned
    micro_batch: int | None = None  # texts that go through it together where something is
    fast_paths: bool = True  # `distrl.rlhf.fast_paths`
    generation: Steps = "plain"
    # makes one's own; a module's function, so that it travels
    generator: Callable[[nn.Module, RoleSpec], Generator] | None = None
    dtype: Dtype = "float32"  # of what does not learn: the reference, and the generator's copy of the actor
    threads: int = 1
    devices: dict[str, str] = field(default_factory=dict)
    max_skipped_updates: int = 10
    record_events: bool = False
    samples: int = 0  # prompts, from the first, whose responses are shown from time to time

    def device(self, role: str) -> str:
        """Where a role computes."""
        return self.devices.get(role, "cpu")

    @property
    def num_responses(self) -> int:
        """Of an iteration."""
        return self.num_prompts * self.recipe.group_size
