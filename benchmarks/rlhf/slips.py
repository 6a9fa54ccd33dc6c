"""Which of the writer's slips a reward model sees: stories with one slip each, beside stories without any.

A slip that costs gold and no proxy is one that PPO has no reason to mend.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.rlhf import gold
from benchmarks.rlhf.grammar import FLAWS, Story, stories
from distrl.policies.lm import ScalarModel
from distrl.rlhf.rewards import ModelReward
from distrl.rlhf.training import padded


def slips(seed: int, source: ModelReward, tokenizer: Any, count: int = 200) -> list[dict[str, Any]]:
    """For each kind of slip what it costs on average: gold in points, and proxy in deviations of the SFT model's samples."""
    model = ScalarModel(source.parts.build())
    without = stories(seed, "slips", count, {})
    whole_gold, whole_proxy = _worth(without, model, source, tokenizer)
    told = []
    for name in FLAWS:
        its_gold, its_proxy = _worth(stories(seed, "slips", count, {name: 1.0}), model, source, tokenizer)
        told.append({"slip": name, "gold": whole_gold - its_gold, "proxy": whole_proxy - its_proxy})
    return told


def _worth(some: list[Story], model: nn.Module, source: ModelReward, tokenizer: Any) -> tuple[float, float]:
    """Mean gold and mean proxy."""
    said: list[NDArray[np.float64]] = []
    with torch.no_grad():
        for begin in range(0, len(some), 100):
            texts = [one.plot.prompt + one.completion for one in some[begin : begin + 100]]
            token_NS, length_N = padded(
                [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in texts],
                torch.device("cpu"),
            )
            score_NS = model(token_NS)
            said.append(score_NS[torch.arange(len(texts)), length_N - 1].double().numpy())
    proxy = (np.concatenate(said) - source.scale.mean) / source.scale.deviation
    return float(np.mean([gold.score(one.plot.prompt, one.completion) for one in some])), float(proxy.mean())
