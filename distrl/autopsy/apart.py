"""What the compiled loop of a fused rollout spends on its parts: no span can look inside it, so they are timed apart.

The loop that trains runs again, on the shapes of the session, with one part of a step at a time; the least of some
repeats counts. The shares of these times split what the session's spans say of the whole loop, in the displays alone.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from distrl.autopsy.categories import ENV, FUSED, INFERENCE, SAMPLING
from distrl.envs import EnvGroup
from distrl.inference import make_inference
from distrl.policies import make_policy
from distrl.rollout import NOISE_BLOCK
from distrl.rollout_fused import FusedCollector
from distrl.runtime.workers import WorkSpec

MOST_REPEATS = 50


def parts_apart(spec: WorkSpec, num_envs: int, budget_sec: float = 0.05) -> dict[str, float]:
    """Category -> its share of the fused loop of one group of `num_envs`, summing to 1; empty where nothing is fused."""
    if not spec.fused:
        return {}
    group = EnvGroup(spec.env, 0, num_envs, 0, spec.seed)
    try:
        policy = make_policy(spec.policy, spec.observation_space, spec.action_space, spec.seed)
        inference = make_inference(policy, "compiled")
        collector = FusedCollector(group, policy, spec.seed, "steps", NOISE_BLOCK, inference=inference)
        group.start()
        steps = max(1, min(NOISE_BLOCK, spec.recipe.num_steps))
        least = [float("inf")] * 3
        until = time.perf_counter() + budget_sec
        for repeat in range(MOST_REPEATS):
            least = [min(pair) for pair in zip(least, collector.seconds_apart(steps), strict=True)]
            if time.perf_counter() > until and repeat > 0:
                break
    finally:
        group.close()
    return {
        kind: seconds / sum(least) for kind, seconds in zip((INFERENCE, SAMPLING, ENV), least, strict=True)
    }


def split(totals: Mapping[str, float], apart: Mapping[str, float]) -> dict[str, float]:
    """Totals by category with the fused loop's given to its parts; the same where nothing was measured apart."""
    found = dict(totals)
    if apart and FUSED in found:
        whole = found.pop(FUSED)
        for kind, share in apart.items():
            found[kind] = found.get(kind, 0.0) + whole * share
    return found


def starred(kind: str, apart: Mapping[str, float]) -> str:
    """The category as a display names it: with a star where some of its time was measured apart."""
    return f"{kind} *" if kind in apart else kind


def footnote(apart: Mapping[str, float]) -> str:
    """What the star means; empty where there is none."""
    if not apart:
        return ""
    parts = ", ".join(f"{kind} {100 * share:.0f} %" for kind, share in apart.items())
    return f"* measured apart: a fused rollout is one compiled loop, split here by what its parts take alone ({parts})"
