"""The ladder: five algorithms as values of one frozen `Recipe`, each one idea from the rung below.

    reinforce           weight log-prob by the return to go         whole episodes
    reinforce-baseline  subtract V(s)                               whole episodes
    actor-critic        bootstrap: GAE(lambda), not the return      fixed steps, one env
    a2c                 many envs in parallel                       fixed steps
    ppo                 reuse a batch safely: clips, epochs, minibatches of normalized advantages

Read a rung as its `replace` call: what stands there is the whole difference. Optimiser and learning rate
are alike in all, so a difference between two curves is the idea's. Advantages are normalized from ppo on,
over rows of many envs' episodes: over one episode, a reward at its end would be learned backwards. The
gradient's norm is clipped from there on too: a step of one episode would weigh as much whatever its return.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal


def option(default: Any, help: str, **rules: float) -> Any:
    """A field with its one-line help and its bounds (`gt`, `ge`, `lt`, `le`), both read by the command line."""
    return field(default=default, metadata={"help": help, **rules})


@dataclass(frozen=True)
class Recipe:
    """What an algorithm is: how it collects, how it gives credit, and how it steps.

    The learner reads these fields and nothing else: no rung's name appears in its code.
    """

    # what is collected
    collects: Literal["episodes", "steps"] = option(
        "episodes", "whole episodes, one per env and iteration, or a fixed number of steps"
    )
    num_envs: int = option(1, "environments in all", ge=1)
    num_steps: int = option(128, "steps per env and iteration (where steps are collected)", ge=1)

    # how credit is given
    gamma: float = option(0.99, "discount", ge=0, le=1)
    credit: Literal["return", "gae", "vtrace"] = option(
        "return", "weight of log-prob: the return to go, GAE(lambda), or V-trace for an older policy's data"
    )
    baseline: bool = option(False, "subtract V(s) from the return to go and train V")
    lam: float = option(0.95, "GAE's lambda: 0 is the TD error, 1 the return minus V(s)", ge=0, le=1)
    normalize_advantage: bool = option(
        False, "advantages to mean 0 and deviation 1 per minibatch; one of a single episode is left as it is"
    )

    # how a batch is used
    clip: float | None = option(
        None, "PPO's clip of the probability ratio; none: the plain policy gradient", gt=0
    )
    epochs: int = option(1, "passes over a batch", ge=1)
    minibatches: int = option(1, "minibatches per epoch", ge=1)
    clip_value: float | None = option(
        None, "clip of the value's move from its old prediction, in units of the return", gt=0
    )
    target_kl: float | None = option(None, "stop the epochs once the approximate KL passes this", gt=0)
    value_coef: float = option(0.5, "weight of the value loss", ge=0)
    entropy_coef: float = option(0.0, "weight of the entropy bonus", ge=0)

    # the optimiser: Adam
    learning_rate: float = option(1e-3, "Adam's learning rate", gt=0)
    learning_rate_schedule: Literal["linear", "constant"] = option(
        "linear", "to 0 at the last step, or constant"
    )
    clip_schedule: Literal["linear", "constant"] = option("constant", "schedule of `clip`")
    adam_eps: float = option(1e-5, "Adam's epsilon", gt=0)
    max_grad_norm: float | None = option(None, "clip of the gradient's global norm; none: not clipped", gt=0)

    @property
    def trains_value(self) -> bool:
        """Whether a value function is learned at all."""
        return self.baseline or self.credit != "return"

    @property
    def normalizes_batch(self) -> bool:
        """Whether advantages are normalised once over a whole batch instead of in each minibatch."""
        return False


REINFORCE = Recipe()
REINFORCE_BASELINE = replace(REINFORCE, baseline=True)
ACTOR_CRITIC = replace(REINFORCE_BASELINE, credit="gae", collects="steps")
A2C = replace(ACTOR_CRITIC, num_envs=8)
# 10 as in RLlib: without it the value's gradient takes all of `max_grad_norm` where returns are large (CartPole's are 100)
PPO = replace(
    A2C, clip=0.2, clip_value=10.0, epochs=4, minibatches=4, normalize_advantage=True, max_grad_norm=0.5
)

LADDER: dict[str, Recipe] = {
    "reinforce": REINFORCE,
    "reinforce-baseline": REINFORCE_BASELINE,
    "actor-critic": ACTOR_CRITIC,
    "a2c": A2C,
    "ppo": PPO,
}

IDEAS: dict[str, str] = {
    "reinforce": "weight log-prob by the return to go",
    "reinforce-baseline": "subtract V(s)",
    "actor-critic": "bootstrap: GAE(lambda) instead of the return",
    "a2c": "many envs in parallel",
    "ppo": "reuse a batch safely: clips, epochs, minibatches of normalized advantages",
}
