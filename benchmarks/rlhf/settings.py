"""The sizes of a run. Every one is in the results; `TINY` is the test's."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from distrl.rlhf.recipes import RLHF_PPO, ResponseRecipe


@dataclass(frozen=True)
class Settings:
    """Scores of the proxy count in deviations of the SFT model's samples; so does beta."""

    seed: int = 1
    threads: int = 2
    # the language and the SFT model
    layers: int = 3
    width: int = 64
    num_stories: int = 12_000
    sft_epochs: int = 3
    sft_rate: float = 4e-3
    sft_batch: int = 32
    max_response: int = 64
    # the preferences
    num_pairs: int = 24_000
    pairs_used: int = 24_000  # that the reward model sees
    noise: float = 0.0  # share of the labels flipped at random
    label_temperature: float = 0.25  # points of gold
    reward_epochs: int = 5
    reward_rate: float = 1.5e-3
    reward_batch: int = 32
    # PPO
    betas: tuple[float, ...] = (0.1, 0.05, 0.01)
    iterations: int = 200
    num_prompts: int = 4_000  # to train on
    batch: int = 128  # responses of an iteration
    ppo_rate: float = 2e-4
    critic_rate: float = 5.0  # times that
    ppo_epochs: int = 2
    minibatches: int = 4
    # evaluation, on held-out prompts alone
    num_curve_prompts: int = 256  # on which runs are compared on the way
    num_final_prompts: int = 256  # on which the best one is judged
    evaluate_every: int = 20
    pairs_per_prompt: int = 4  # held out
    best_of: int = 64

    @property
    def recipe(self) -> ResponseRecipe:
        """PPO's; beta comes with each run."""
        return replace(
            RLHF_PPO, learning_rate=self.ppo_rate, epochs=self.ppo_epochs, minibatches=self.minibatches,
            max_response=self.max_response, value_coef=0.5, clip_value=None, lam=0.95,
        )  # fmt: skip

    def key(self, *names: str) -> str:
        """Short, the same for equal values of these fields: which results a stage may reuse."""
        mine = {name: value for name, value in asdict(self).items() if name in names}
        return hashlib.sha256(json.dumps(mine, sort_keys=True).encode()).hexdigest()[:12]

    def as_json(self) -> dict[str, Any]:
        """For the results."""
        return asdict(self)


TINY = Settings(
    threads=1, layers=1, width=32, num_stories=256, sft_epochs=1, num_pairs=64, pairs_used=64, reward_epochs=1,
    betas=(0.1, 0.02), iterations=2, num_prompts=64, batch=16, ppo_epochs=1, minibatches=2, num_curve_prompts=16,
    num_final_prompts=16, evaluate_every=1, pairs_per_prompt=1, best_of=4, max_response=32,
)  # fmt: skip
