"""What a policy is worth on held-out prompts: gold, proxy, and how far it is from the reference.

N responses, T decisions of a response, B decisions, V tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.rlhf import gold
from distrl.maths.pieces import by_length
from distrl.maths.random import stream
from distrl.policies.lm import NO_ACTION, causal_head, trunk_hidden
from distrl.rlhf.generation import CachedGenerator, respond
from distrl.rlhf.responses import Responses
from distrl.rlhf.rewards import ModelReward

Floats = NDArray[np.float64]
BATCH = 512  # texts that go through a model together
TIE = 0.5  # a tie is half a win


@dataclass(frozen=True)
class Sample:
    """Responses to prompts, [N]: the texts, what the gold and the proxy say of them, and each one's KL."""

    prompts: list[str]
    texts: list[str]
    ended: NDArray[np.bool_]
    gold: Floats
    proxy: Floats
    kl: Floats


class Judge:
    """The gold, the reward model and the reference beside each other."""

    def __init__(
        self, tokenizer: Any, reference: nn.Module, reward: ModelReward | None, max_response: int
    ) -> None:
        self.tokenizer = tokenizer
        self.reference = reference
        self.reward = None if reward is None else reward.build("cpu")
        self.max_response = max_response

    def write(self, model: nn.Module, prompts: Sequence[str], seed: int, purpose: int) -> Responses:
        """A response to each prompt at temperature 1; (seed, purpose, place) decide every token."""
        generator = CachedGenerator(model, [self.tokenizer.eos_token_id])
        tokens = [tuple(self.tokenizer(prompt)["input_ids"]) for prompt in prompts]
        parts = []
        for begin in range(0, len(tokens), BATCH):
            rows = range(begin, min(begin + BATCH, len(tokens)))
            some = tokens[rows.start : rows.stop]
            parts.append(respond(generator, some, rows, seed, purpose, rows, self.max_response, 0))
        return Responses.concatenate(parts)

    def texts(self, responses: Responses) -> list[str]:
        """What was answered, without the end of text."""
        actions = [column[column != NO_ACTION].tolist() for column in responses.action.T]
        return [self.tokenizer.decode(tokens, skip_special_tokens=True) for tokens in actions]

    def look(self, model: nn.Module, prompts: Sequence[str], responses: Responses) -> Sample:
        """Judges what `model` has written to these prompts."""
        texts = self.texts(responses)
        said = [
            gold.score(prompt, text, bool(ended))
            for prompt, text, ended in zip(prompts, texts, responses.ended, strict=True)
        ]
        return Sample(
            list(prompts), texts, responses.ended, np.array(said), self.proxy(responses),
            kl_per_response(model, self.reference, responses),
        )  # fmt: skip

    def proxy(self, responses: Responses) -> Floats:
        """The reward model's score in deviations of the reference's samples, [N]; 0 without one."""
        if self.reward is None:
            return np.zeros(responses.num_responses)
        part = self.reward.score(responses, by_length(responses.length, BATCH))
        found = np.empty(responses.num_responses)
        found[part.columns] = part.said
        return found


def kl_per_response(model: nn.Module, reference: nn.Module, responses: Responses) -> Floats:
    """Sum over a response's decisions of KL(pi(.|s_t) || pi_ref(.|s_t)) over the whole vocabulary, [N].

    Its mean over responses that pi wrote is KL(pi || pi_ref) of responses, with less variance than the log-ratios' sum.
    """
    if model is reference:
        return np.zeros(responses.num_responses)
    heads = [causal_head(one) for one in (model, reference)]
    found = np.zeros(responses.num_responses)
    with torch.no_grad():
        for piece in by_length(responses.length, BATCH):
            some = responses.take(piece)
            valid_NT = torch.from_numpy(some.valid.T.copy())
            position_NT = torch.from_numpy(some.position.T.copy())
            token_NS = torch.from_numpy(some.token[:, : int(some.length.max())].copy())
            column_B = torch.arange(len(piece)).unsqueeze(1).expand_as(valid_NT)[valid_NT]
            log_p, log_q = (
                torch.log_softmax(head(trunk_hidden(one, token_NS)[column_B, position_NT[valid_NT]]), dim=-1)
                for head, one in zip(heads, (model, reference), strict=True)
            )
            kl_B = (log_p.exp() * (log_p - log_q)).sum(-1)
            found[piece] = torch.zeros(len(piece)).index_add_(0, column_B, kl_B).double().numpy()
    return found


def win_rate(ours: Floats, theirs: Floats) -> dict[str, float]:
    """Share of prompts on which ours is better, ties half, with its 95 % bootstrap interval over prompts."""
    wins = np.where(ours == theirs, TIE, ours > theirs)
    drawn = stream(0, "win rate").choice(wins, (10_000, len(wins))).mean(axis=1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return {"mean": float(wins.mean()), "low": float(low), "high": float(high), "num_prompts": len(wins)}


def best_of(score_PN: Floats, worth_PN: Floats, n: int) -> float:
    """Mean worth of the one that scores highest of n, over prompts P and all subsets of the N drawn; no estimate's noise.

    The i-th highest of N is the best of a random n with probability C(N - i, n - 1) / C(N, n), i from 1 (Gao et al.
    2022, arXiv 2210.10760, app. I; Nakano et al. 2021, arXiv 2112.09332).
    """
    num = score_PN.shape[1]
    if not 1 <= n <= num:
        raise ValueError(f"n must lie in 1..{num}, the responses drawn for each prompt, got {n}")
    order = np.argsort(-score_PN, axis=1, kind="stable")
    ranked_PN = np.take_along_axis(worth_PN, order, axis=1)
    weight = np.zeros(num)
    weight[0] = n / num
    for i in range(1, num - n + 1):
        weight[i] = weight[i - 1] * (num - i - n + 1) / (num - i)
    return float((ranked_PN * weight).sum(axis=1).mean())


def best_of_kl(n: int) -> float:
    """KL(best of n || pi_ref) of continuous scores: log n - (n - 1) / n, nats a response."""
    return float(np.log(n) - (n - 1) / n)
