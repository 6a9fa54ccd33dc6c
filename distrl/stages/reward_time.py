"""How many calls of reward functions may hang in an iteration before a run ends.

A call that hangs costs --reward-timeout-sec and a new process. The time that reward functions take is their own: a
role's worker that waits for one gives signs of life, and --role-timeout-sec does not count it (`distrl.rlhf.pulse`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distrl.stages.ppo_config import PPOConfig

RESTART_SEC = 5.0  # that a function's process usually takes to be ended and started again
PATIENCE_SEC = 480.0  # that calls which hang may take of an iteration


def max_timeouts(config: PPOConfig) -> int:
    """Calls for an iteration that may give no answer in time: as many as may lack a score, and as there is patience for."""
    may_lack = int(config.max_unscored * config.num_responses)
    lost_sec = max(len(config.reward_function), 1) * (config.reward_timeout_sec + RESTART_SEC)
    return min(may_lack, max(int(PATIENCE_SEC / lost_sec) - 1, 0))
