"""What the first ratio of a run must be: pi / pi_sampled of its first minibatch, before anything was learned from it, is 1.

    |pi(a) / pi_sampled(a) - 1|     0       rounding of other shapes     rounding of bfloat16     two functions
                                    |------------ 1e-5 ------------ 1e-3 -------- 1 ------------------->
                                     fine         a warning           an error (float32)    an error (bfloat16)

Where it is off, what writes and what learns are two policies: a fast path that does not fit the model's family, a cache
that keeps something else, a temperature that is forgotten.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from distrl.errors import RunFailed

ON_RATIO = 1e-5  # in float32, what a ratio may start off 1
# by the dtype of the sampling weights: beyond it is no rounding. Experts are chosen by a comparison, which rounding may turn
# for a token or two of thousands
BOUND = {"float32": 1e-3, "bfloat16": 1.0}
BOUND_OF_EXPERTS = 1.0
_EXPERTS = re.compile("num_.*experts$|n_routed_experts$|num_experts_.*|moe_num_experts$")


def bound_of(config: Any, dtype: str) -> float:
    """That of a model of this configuration, sampled with by weights of that dtype."""
    fields = config.get_text_config().to_dict()
    experts = any(type(value) is int and value > 1 and _EXPERTS.match(name) for name, value in fields.items())
    return max(BOUND[dtype], BOUND_OF_EXPERTS if experts else 0.0)


def check_first_ratio(metrics: Mapping[str, float], bound: float, turn_off: str) -> str | None:
    """Of the first iteration's metrics: a warning, None, or RunFailed beyond the bound.

    Responses of an older policy (`policy_lag`) say nothing. Where log-probs were computed again (`sampling_mismatch`, of
    log-probs), the ratio is 1 whatever was sampled: what is beyond the bound is then a warning.
    `bound`: see `bound_of`. `turn_off` names the flags that take what was sampled with back to the plain path.
    """
    if metrics.get("policy_lag", 0.0) > 0:
        return None
    mismatch = metrics.get("sampling_mismatch", float("nan"))
    if mismatch > bound:  # never where it is NaN: none was computed
        return (
            f"sampling and learning differ by up to {mismatch:.2g} nats a token in the first iteration, more than the "
            f"rounding ({bound:g}): what is sampled is another policy, which log-probs that are computed again "
            f"hide; {turn_off}, and `distrl doctor --model` says where it comes from"
        )
    off = metrics.get("first_ratio_deviation", 0.0)
    if off > bound:
        raise RunFailed(
            f"the first ratio must be 1 within {bound:g}, it is {off:.2g} off: sampling and learning compute two "
            f"policies; start a new run with {turn_off}, or --exact-ratio, which computes log-probs again and hides it; "
            "`distrl doctor --model` says where it comes from"
        )
    if off > ON_RATIO and bound < BOUND["bfloat16"]:
        return (
            f"the first ratio is {off:.1e} off 1, more than {ON_RATIO:g}: sampling and learning round differently; "
            "--exact-ratio starts at 1"
        )
    return None


def turn_off(fast_paths: bool, generation: str, dtype: str) -> str:
    """The flags that take sampling back to the plain path, of those that are not given already."""
    flags = [
        "--generation plain" if generation != "plain" else "",
        "--no-fast-paths" if fast_paths else "",
        "--dtype float32" if dtype != "float32" else "",
    ]
    return " ".join(flag for flag in flags if flag) or "another model: no fast path is on"
