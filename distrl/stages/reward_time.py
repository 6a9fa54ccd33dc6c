"""How many calls of reward functions may hang before a run ends, and whether their timeout leaves room for any.

A worker makes its calls one after the other, and a call that hangs takes it --reward-timeout-sec and a new process. It
must have met one too many before it counts as lost itself (--role-timeout-sec), or the run would be told of a worker that
does not answer and not of the function. The same holds in-process, so that a run ends alike wherever roles live.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from typing import TYPE_CHECKING

from distrl.clashes import Clash

if TYPE_CHECKING:
    from distrl.stages.ppo_config import PPOConfig

RESTART_SEC = 5.0  # that a function's process usually takes to be ended and made anew
PATIENCE = 0.8  # share of --role-timeout-sec that calls which hang may take


def max_timeouts(config: PPOConfig) -> int:
    """Calls for an iteration that may give no answer in time: as many as may lack a score, and as there is time for."""
    may_lack = int(config.max_unscored * config.num_responses)
    return min(may_lack, max(int(_in_time(config)) - 1, 0))


def _in_time(config: PPOConfig) -> float:
    """Calls of each function that fit into the time."""
    return PATIENCE * config.role_timeout_sec / _lost_sec(config)


def _lost_sec(config: PPOConfig) -> float:
    """By a response for which every function hangs."""
    return max(len(config.reward_function), 1) * (config.reward_timeout_sec + RESTART_SEC)


def clashes(config: PPOConfig) -> Iterator[Clash]:
    """One where not even the first call that hangs would be told."""
    if not config.reward_function or _in_time(config) >= 1.0:
        return
    count, lost = len(config.reward_function), _lost_sec(config)
    times = f"{count} functions x " if count > 1 else ""
    yield Clash(
        ("reward_timeout_sec", "role_timeout_sec", "reward_function"),
        f"--reward-timeout-sec {config.reward_timeout_sec:g}: a call that hangs takes {times}"
        f"({config.reward_timeout_sec:g} + {RESTART_SEC:g} for a new process) = {lost:g} s, of {PATIENCE:g} x "
        f"--role-timeout-sec {config.role_timeout_sec:g} = {PATIENCE * config.role_timeout_sec:g} s in which a reward "
        f"must answer; lower it, or use --role-timeout-sec {ceil(lost / PATIENCE)}",
    )
