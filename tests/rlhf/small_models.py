"""Small models of real families, made from their configurations, with weights wide enough that nothing is near uniform."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import (
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    Qwen2Config,
)

from distrl.policies.lm import NO_ACTION, LanguagePolicy
from distrl.rlhf.models import ModelParts, empty_model, scalar_from
from distrl.rlhf.responses import Responses

VOCABULARY = 23
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
_NO_IDS: dict[str, Any] = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
_LLAMA: dict[str, Any] = _SIZES | _NO_IDS | {"num_key_value_heads": 1}
_GPT2: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "n_positions": 64,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
}

CONFIGS: dict[str, Any] = {
    "gpt2": GPT2Config(**_GPT2),  # dropout 0.1, as it comes
    "llama": LlamaConfig(**_LLAMA),
    "qwen2": Qwen2Config(**_LLAMA),
    "gpt-neox": GPTNeoXConfig(**_SIZES, bos_token_id=None, eos_token_id=None),
    # a soft cap after the head, another in attention, and a window shorter than the texts
    "gemma2": Gemma2Config(
        **_LLAMA,
        head_dim=8,
        query_pre_attn_scalar=8,
        final_logit_softcapping=3.0,
        attn_logit_softcapping=5.0,
        sliding_window=4,
    ),
    "cohere": CohereConfig(**_LLAMA, logit_scale=0.25),
    "granite": GraniteConfig(**_LLAMA, logits_scaling=4.0),
}
FAMILIES = tuple(CONFIGS)


def causal(family: str = "gpt2", seed: int = 0, **changed: Any) -> ModelParts:
    """A causal LM of the family; `changed` fields of its configuration."""
    config = type(CONFIGS[family]).from_dict(CONFIGS[family].to_dict() | changed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ModelParts.of(empty_model("causal", config), "causal")


def scalar(family: str = "gpt2", seed: int = 0, initial_std: float = 0.5) -> ModelParts:
    """A critic or reward model on such a trunk; its head is far from 0, so that its numbers say something."""
    return scalar_from(causal(family, seed), initial_std, seed)


def policy_of(parts: ModelParts, temperature: float = 1.0) -> LanguagePolicy:
    return LanguagePolicy(parts.build(), None, temperature)


def texts(seed: int = 0, lengths: Any = ((3, 5), (1, 2), (4, 1), (2, 4))) -> Responses:
    """Responses to prompts of (prompt, response) lengths; random tokens and log-probs, the shortest ones ended."""
    rng = np.random.default_rng(seed)
    longest = max(answer for _, answer in lengths)

    def some(count: int) -> list[int]:
        return [int(token) for token in rng.integers(0, VOCABULARY, count)]

    return Responses.write(
        [some(prompt) for prompt, _ in lengths],
        [some(answer) for _, answer in lengths],
        [(-3 * rng.random(answer)).tolist() for _, answer in lengths],
        [answer < longest for _, answer in lengths],
        range(len(lengths)),
    )


def evaluated(policy: LanguagePolicy, responses: Responses) -> Any:
    """`policy.evaluate` of responses."""
    state = {"token": torch.from_numpy(responses.token), "length": torch.from_numpy(responses.length)}
    action = torch.from_numpy(responses.action)
    return policy.evaluate(torch.from_numpy(responses.position), action, None, state, None)


def own_logits(parts: ModelParts, tokens: list[int]) -> np.ndarray:
    """What the family itself says after each token of one text, alone and unpadded, float64 [S, V]."""
    with torch.no_grad():
        found: Any = parts.build()(input_ids=torch.tensor([tokens]), use_cache=False)
    return np.asarray(found.logits[0].double().numpy())


def text_of(responses: Responses, n: int) -> list[int]:
    return [int(token) for token in responses.token[n, : responses.length[n]]]


def decisions(responses: Responses) -> list[tuple[int, int]]:
    """(t, n) of all decisions."""
    return [(int(t), int(n)) for t, n in np.argwhere(responses.action != NO_ACTION)]
