"""What a batch of responses looks like beside its scores: metrics that tell a reward that teaches from one that is gamed.

score/<name>           mean of one reward over the responses that it scores; score/<name>/<extra>: of what it
                       returned beside
groups_without_spread  share of prompts whose responses all have one score: credit within a group is 0 there
repeated_4grams        share of a response's runs of 4 tokens that occurred in it before, mean of the responses
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from distrl.rlhf.opinions import Part, named_scores
from distrl.rlhf.responses import Floats, Responses

RUN = 4  # tokens


def score_metrics(parts: Sequence[Part], num_responses: int) -> dict[str, float]:
    """`score/<name>` of each reward; NaN where it scores no response."""
    found = {name: said[np.isfinite(said)] for name, said in named_scores(parts, num_responses).items()}
    return {
        f"score/{name}": float(said.mean()) if len(said) else float("nan") for name, said in found.items()
    }


def response_metrics(responses: Responses, score_N: Floats, group_size: int) -> dict[str, float]:
    """`repeated_4grams`, and `groups_without_spread` where prompts have several responses."""
    found = {"repeated_4grams": repetition(responses)}
    if group_size > 1:
        groups = score_N.reshape(-1, group_size)
        alike = [len(np.unique(one[np.isfinite(one)])) < 2 for one in groups]
        found["groups_without_spread"] = float(np.mean(alike))
    return found


def repetition(responses: Responses) -> float:
    """Mean over responses; one with fewer than RUN tokens repeats nothing."""
    shares = []
    for n in range(responses.num_responses):
        tokens = responses.action[: int(responses.num_actions[n]), n]
        runs = sliding_window_view(tokens, RUN) if len(tokens) >= RUN else np.zeros((0, RUN))
        shares.append(1 - len(np.unique(runs, axis=0)) / len(runs) if len(runs) else 0.0)
    return float(np.mean(shares))
