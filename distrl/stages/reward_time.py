"""Rules of rewards: their names and weights, and how many calls of functions may hang in an iteration before a run ends.

A call that hangs costs --reward-timeout-sec and a new process. The time that reward functions take is their own: a
role's worker that waits for one gives signs of life, and --role-timeout-sec does not count it (`distrl.rlhf.pulse`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from distrl.clashes import Clash, names_function
from distrl.named import must_name

if TYPE_CHECKING:
    from distrl.stages.ppo_config import PPOConfig

RESTART_SEC = 5.0  # that a function's process usually takes to be ended and started again
PATIENCE_SEC = 480.0  # that calls which hang may take of an iteration


def max_timeouts(config: PPOConfig) -> int:
    """Calls for an iteration that may give no answer in time: as many as may lack a score, and as there is patience for."""
    may_lack = int(config.max_unscored * config.num_responses)
    lost_sec = max(len(config.reward_function), 1) * (config.reward_timeout_sec + RESTART_SEC)
    return min(may_lack, max(int(PATIENCE_SEC / lost_sec) - 1, 0))


def clashes(config: PPOConfig) -> Iterator[Clash]:
    """Names that are none, and another number of weights than of rewards."""
    for function in config.reward_function:
        if not names_function(function):
            yield Clash(
                ("reward_function",),
                f"--reward-function: {must_name(function, 'score')}",
            )
    count = len(config.reward) + len(config.reward_function)
    if config.reward_weights and len(config.reward_weights) != count:
        yield Clash(
            ("reward_weights", "reward", "reward_function"),
            f"--reward-weights: {len(config.reward_weights)} for {count} rewards ({len(config.reward)} models + "
            f"{len(config.reward_function)} functions); give {count}, models first",
        )
