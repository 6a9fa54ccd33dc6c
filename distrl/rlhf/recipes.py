"""The algorithms of RLHF as values of one frozen `ResponseRecipe`: a `Recipe` that collects whole responses.

    rlhf-ppo        GAE from a critic, clip, four epochs            actor, critic, reward, reference
    rlhf-reinforce  the return less the batch's mean, one pass      no critic
    rloo            the return less that of the prompt's others     no critic
    grpo            the score less its group's mean, over the group's deviation; the KL in the loss; no critic

`rlhf-ppo` is the ladder's last rung. As there, what stands in a `replace` call is the whole difference.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from distrl.recipes import Recipe, option


@dataclass(frozen=True)
class ResponseRecipe(Recipe):
    """What differs for responses: gamma 1, credit by groups too, the KL to the reference, advantages whitened once.

    Constants of PPO: "The N implementation details of RLHF with PPO" and summarize_from_feedback_details
    (gamma 1, lambda 0.95, KL 0.05, value 0.1, 4 epochs).
    """

    collects: Literal["responses"] = option("responses", "whole responses to prompts")  # type: ignore[assignment]
    gamma: float = option(1.0, "discount", ge=0, le=1)
    credit: Literal["gae", "batch", "others", "group"] = option(  # type: ignore[assignment]
        "gae",
        "weight of log-prob: GAE from a critic, or the response's return less the batch's mean (batch), less the mean of "
        "the prompt's other responses (others), or less its group's mean and over its deviation (group)",
    )
    normalize_advantage: bool = option(
        True, "advantages to mean 0 and deviation 1, once over all actions of a batch"
    )
    clip: float | None = option(
        0.2, "PPO's clip of the probability ratio; none: the plain policy gradient", gt=0
    )
    clip_value: float | None = option(
        0.2, "clip of the value's move from its old prediction, in units of the return", gt=0
    )
    epochs: int = option(4, "passes over a batch", ge=1)
    minibatches: int = option(4, "minibatches per epoch", ge=1)
    value_coef: float = option(0.1, "weight of the value loss", ge=0)
    learning_rate: float = option(1e-5, "Adam's learning rate", gt=0)
    max_grad_norm: float | None = option(1.0, "clip of the gradient's global norm", gt=0)

    # the KL to the reference
    kl_in: Literal["reward", "loss"] = option(
        "reward", "where beta * KL to the reference counts: in each token's reward (k1), or in the loss"
    )
    kl_estimator: Literal["k1", "k2", "k3"] = option(
        "k1", "its estimator; k1 where it is in the reward, and a loss of k1 pulls nowhere"
    )
    beta: float = option(0.05, "weight of the KL to the reference", ge=0)
    kl_target: float | None = option(
        None, "adapt beta so that the KL of a response, summed over its tokens, stays near this (nats)", gt=0
    )
    kl_horizon: float = option(10_000.0, "responses after which an error of 1 would double beta", gt=0)

    # responses
    temperature: float = option(1.0, "of sampling, and so of every log-prob", gt=0)
    group_size: int = option(1, "responses to each prompt", ge=1)
    max_response: int = option(64, "tokens that a response may have", ge=1)
    cut_off: Literal["score", "penalty", "bootstrap"] = option(
        "score",
        "a response that the length limit cuts is scored as it stands, gets --cut-off-penalty for a score, or none "
        "and the critic's value of what would follow",
    )
    cut_off_penalty: float = option(
        -1.0, "the score of a response that the length limit cut (--cut-off penalty)"
    )
    exact_ratio: bool = option(
        False,
        "log-probs of the policy that sampled come from a second forward pass, not from sampling itself",
    )
    importance_cap: float | None = option(
        None,
        "weigh each token by pi / pi_sampled, cut at this: where another policy than the newest sampled (overlap)",
        gt=0,
    )

    @property
    def trains_value(self) -> bool:
        """Whether there is a critic."""
        return self.credit == "gae"

    @property
    def normalizes_batch(self) -> bool:
        """Always, where they are normalised."""
        return self.normalize_advantage


RLHF_PPO = ResponseRecipe()
RLHF_REINFORCE = replace(
    RLHF_PPO, credit="batch", clip=None, clip_value=None, epochs=1, minibatches=1, normalize_advantage=False
)
RLOO = replace(RLHF_REINFORCE, credit="others", group_size=4)
GRPO = replace(
    RLOO, credit="group", group_size=8, clip=0.2, minibatches=4, kl_in="loss", kl_estimator="k3", beta=0.04
)

RECIPES: dict[str, ResponseRecipe] = {
    "rlhf-ppo": RLHF_PPO,
    "rlhf-reinforce": RLHF_REINFORCE,
    "rloo": RLOO,
    "grpo": GRPO,
}

# fields of a `Recipe` that nothing reads where responses are collected: a batch is prompts times `group_size`, and
# `credit` says whether there is a critic
UNREAD = ("num_envs", "num_steps", "baseline")

LAST_RUNG = "rlhf-ppo"  # of the ladder, after `distrl.recipes.LADDER`
LAST_IDEA = "reward = score - beta * KL to a frozen reference"
