"""Looking at a policy: its responses to held-out prompts, their score, length and KL to a reference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from distrl.maths.kl import kl_per_response
from distrl.maths.pieces import by_length
from distrl.maths.random import derive_seed
from distrl.policies.lm import LanguagePolicy
from distrl.rlhf.data import Prompt
from distrl.rlhf.diagnostics import repetition, score_metrics
from distrl.rlhf.generation import CachedGenerator, respond
from distrl.rlhf.models import Dtype, ModelParts
from distrl.rlhf.opinions import Part, first_fault, join, log_probs
from distrl.rlhf.responses import Floats, Responses
from distrl.rlhf.scoring import RewardSource, Scorer
from distrl.rlhf.written import ends_of, response_text


@dataclass(frozen=True)
class Looked:
    """`told` are means over responses; `kl_N` in nats a response, None without a reference."""

    told: dict[str, Any]
    responses: Responses
    score_N: Floats | None
    kl_N: np.ndarray | None
    fault: str | None = None  # why the first response without a score has none
    timeouts: int = 0  # calls of a reward function that gave no answer in time


@dataclass
class Evaluator:
    """What a policy is looked at with; scorer and reference are built once. Each prompt gets `samples` responses.

    Greedy responses have no temperature of their own: their log-probs, and so the KL, are those of `temperature`.
    """

    prompts: Sequence[Prompt]
    reference: ModelParts | None
    reward: RewardSource | None
    end_tokens: tuple[int, ...]
    max_response: int
    temperature: float = 1.0
    greedy: bool = True
    samples: int = 1
    seed: int = 0
    batch: int = 64
    device: str = "cpu"
    vocabulary: int | None = None
    fast_paths: bool = True  # `distrl.rlhf.fast_paths`
    dtype: Dtype = "float32"  # of the policy and the reference
    _reference: LanguagePolicy | None = field(default=None, init=False)
    _scorer: Scorer | None = field(default=None, init=False)

    def evaluate(self, parts: ModelParts) -> Looked:
        """Of the model; the run's own random numbers are not touched."""
        policy = self._policy(parts)
        responses = self.write(policy)
        told: dict[str, Any] = {"responses": responses.num_responses}
        part = self._scores(responses)
        score_N = None if part is None else join([part], responses.num_responses)
        if score_N is not None:
            told |= mean_and_error("score", score_N[np.isfinite(score_N)])
            told["unscored"] = int((~np.isfinite(score_N)).sum())
            named = score_metrics([part] if part is not None else [], responses.num_responses)
            told |= {name: value if math.isfinite(value) else None for name, value in named.items()}
        kl_N = self._kl(policy, responses)
        if kl_N is not None:
            told |= mean_and_error("kl", kl_N)
        told["response_length_mean"] = float(responses.num_actions.mean())
        told["ended_fraction"] = float(responses.ended.mean())
        told["repeated_4grams"] = repetition(responses)
        fault = first_fault([part]) if part is not None else None
        why = None if fault is None else fault[1]
        return Looked(told, responses, score_N, kl_N, why, part.timeouts if part is not None else 0)

    def _policy(self, parts: ModelParts) -> LanguagePolicy:
        return LanguagePolicy(self._built(parts), None, self.temperature, self.vocabulary)

    def write(self, policy: LanguagePolicy) -> Responses:
        """The responses, prompt by prompt."""
        assert policy.actor is not None
        generator = CachedGenerator(
            policy.actor,
            self.end_tokens,
            self.temperature,
            self.greedy,
            self.fast_paths,
            vocabulary=self.vocabulary,
        )
        numbers = np.repeat(np.arange(len(self.prompts)), self.samples)
        seed = derive_seed(self.seed, "evaluation")
        written = []
        for begin in range(0, len(numbers), self.batch):
            rows = range(begin, min(begin + self.batch, len(numbers)))
            some = [self.prompts[numbers[row]].tokens for row in rows]
            mine = numbers[rows.start : rows.stop]
            written.append(respond(generator, some, mine, seed, 0, rows, self.max_response, 0))
        return Responses.concatenate(written)

    def _built(self, parts: ModelParts) -> nn.Module:
        return replace(parts, fused=self.fast_paths, dtype=self.dtype).build(self.device)

    def _scores(self, responses: Responses) -> Part | None:
        if self.reward is None:
            return None
        if self._scorer is None:
            self._scorer = self.reward.build(self.device)
        return self._scorer.score(responses, by_length(responses.length, self.batch))

    def _kl(self, policy: LanguagePolicy, responses: Responses) -> np.ndarray | None:
        if self.reference is None:
            return None
        if self._reference is None:
            self._reference = self._policy(self.reference)
        pieces = by_length(responses.length, self.batch)
        with torch.no_grad():
            own, theirs = (
                join([log_probs(one, responses, pieces)], responses.num_responses)
                for one in (policy, self._reference)
            )
        return kl_per_response(own - theirs, responses.valid)

    def texts(self, looked: Looked, tokenizer: Any) -> list[dict[str, Any]]:
        """Each response as a line of JSONL: prompt, response, score, kl, tokens, ended."""
        found, ends = [], ends_of(tokenizer, self.end_tokens)
        for n in range(looked.responses.num_responses):
            prompt = self.prompts[int(looked.responses.prompt[n])]
            tokens = looked.responses.token[n, len(prompt.tokens) : int(looked.responses.length[n])].tolist()
            found.append(
                {
                    "prompt": prompt.text,
                    "response": response_text(tokenizer, prompt.tokens, tokens, ends),
                    "score": _number(looked.score_N, n),
                    "kl": _number(looked.kl_N, n),
                    "tokens": int(looked.responses.num_actions[n]),
                    "ended": bool(looked.responses.ended[n]),
                }
            )
        return found


def mean_and_error(name: str, values: np.ndarray) -> dict[str, Any]:
    """Mean and its standard error, deviation / sqrt(n); None where there are too few."""
    values = values.astype(np.float64)
    return {
        f"{name}_mean": float(values.mean()) if len(values) else None,
        f"{name}_error": float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None,
    }


def _number(values: np.ndarray | None, n: int) -> float | None:
    return None if values is None or not np.isfinite(values[n]) else float(values[n])
