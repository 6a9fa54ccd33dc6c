"""A model with more rows than the tokenizer has ids: those rows are no tokens, wherever a distribution is made."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from distrl.maths.pieces import by_length
from distrl.policies.lm import LanguagePolicy, causal_head
from distrl.rlhf.generation import CachedGenerator, respond
from distrl.rlhf.models import ModelParts
from distrl.rlhf.opinions import join, log_probs
from tests.rlhf.small_models import VOCABULARY, causal, own_logits, text_of

PROMPTS = [[3, 1, 4], [1], [5, 2, 6, 5], [3, 5]] * 4
PADDED = VOCABULARY + 64
FAMILIES = ["gpt2", "gemma2"]  # whose head is called itself, and where a soft cap comes after it


def padded(family: str) -> ModelParts:
    return causal(family, vocab_size=PADDED)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_beyond_the_tokenizer_are_never_sampled(family: str) -> None:
    model = padded(family).build()
    rows = range(len(PROMPTS))
    free, bounded = (
        respond(CachedGenerator(model, (), vocabulary=ids), PROMPTS, rows, 0, 0, rows, 8, 0)
        for ids in (None, VOCABULARY)
    )
    assert free.action.max() >= VOCABULARY, "without the bound they are"
    assert bounded.action.max() < VOCABULARY


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probs_are_over_the_tokenizers_ids_alone_and_those_of_sampling(family: str) -> None:
    parts, rows = padded(family), range(len(PROMPTS))
    policy = LanguagePolicy(parts.build(), None, 0.7, VOCABULARY)
    generator = CachedGenerator(policy.actor, (), 0.7, vocabulary=VOCABULARY)  # type: ignore[arg-type]
    responses = respond(generator, PROMPTS, rows, 0, 0, rows, 5, 0)
    again = join([log_probs(policy, responses, by_length(responses.length, 4))], len(PROMPTS))
    assert np.abs(again - responses.log_prob)[responses.valid].max() < 1e-5
    logits = torch.from_numpy(own_logits(parts, text_of(responses, 0)))[:, :VOCABULARY] / 0.7
    own = torch.log_softmax(logits, -1).numpy()
    for t in range(5):
        expected = own[responses.position[t, 0], responses.action[t, 0]]
        assert again[t, 0] == pytest.approx(expected, abs=1e-5)
    every = policy.token_log_probs(torch.zeros(VOCABULARY, 16), torch.arange(VOCABULARY)).log_prob
    assert float(every.detach().exp().sum()) == pytest.approx(1.0, abs=1e-5)


def test_padding_rows_learn_nothing() -> None:
    model: Any = causal("llama", vocab_size=PADDED, tie_word_embeddings=False).build()
    head = causal_head(model, VOCABULARY)
    torch.log_softmax(head(torch.ones(2, 16)), -1)[:, 3].sum().backward()
    gradient = model.get_output_embeddings().weight.grad
    assert gradient[:VOCABULARY].any() and not gradient[VOCABULARY:].any()


@pytest.mark.parametrize("vocabulary", [0, VOCABULARY + 1])
def test_a_vocabulary_that_the_model_has_no_rows_for_is_refused(vocabulary: int) -> None:
    with pytest.raises(ValueError, match=f"1 to the model's {VOCABULARY} rows"):
        causal_head(causal().build(), vocabulary)
