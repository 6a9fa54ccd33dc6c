"""What the four roles say of responses: read at the right token, alike from any worker, by models that stay as they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from distrl.learner import digest
from distrl.policies.lm import LanguagePolicy, ScalarModel
from distrl.policies.protocol import parameters_and_buffers
from distrl.rlhf.models import scalar_from
from distrl.rlhf.opinions import Part, join, log_probs, pieces, scores, values
from distrl.rlhf.responses import Responses
from tests import reference
from tests.rlhf.small_models import (
    VOCABULARY,
    causal,
    decisions,
    own_logits,
    policy_of,
    scalar,
    text_of,
    texts,
)


def whole(look: Any, model: Any, responses: Responses, size: int = 64, num_shares: int = 1) -> Any:
    """What all workers said together."""
    parts = [
        look(model, responses, pieces(responses, size, share, num_shares)) for share in range(num_shares)
    ]
    return join(parts, responses.num_responses)


def own_scalars(parts: Any, tokens: list[int]) -> np.ndarray:
    """The number at every place of one text, alone, from the family's own trunk and head."""
    model = parts.build()
    with torch.no_grad():
        hidden = model.base_model(input_ids=torch.tensor([tokens]), use_cache=False).last_hidden_state
        return np.asarray(model.score(hidden)[0, :, 0].double().numpy())


def critic_of(parts: Any) -> LanguagePolicy:
    return LanguagePolicy(None, ScalarModel(parts.build()))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.5])
def test_the_reference_is_asked_at_the_sampling_temperature(temperature):
    parts, responses = causal("llama", seed=1), texts()
    said = whole(log_probs, policy_of(parts, temperature), responses)
    for t, n in decisions(responses):
        logits = own_logits(parts, text_of(responses, n))[responses.position[t, n]]
        expected = reference.log_softmax(logits, temperature)[responses.action[t, n]]
        np.testing.assert_allclose(said[t, n], expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt-neox", "gemma2"])
def test_values_are_read_where_a_decision_is_made_and_once_more_at_the_end_of_the_text(family):
    parts, responses = scalar(family), texts()
    said = whole(values, critic_of(parts), responses)
    assert said.shape == (len(responses.action) + 1, responses.num_responses)
    for n in range(responses.num_responses):
        own, count = own_scalars(parts, text_of(responses, n)), int(responses.num_actions[n])
        prompt = len(own) - count
        np.testing.assert_allclose(said[: count + 1, n], own[prompt - 1 :], rtol=1e-4, atol=1e-5)
        assert not said[count + 1 :, n].any()
        assert not np.allclose(said[:count, n], own[prompt:]), "a place later would be seen"


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt-neox", "gemma2"])
def test_a_text_is_scored_at_its_last_token_whatever_stands_behind_or_in_it(family):
    parts, responses = scalar(family), texts()
    responses.token[0, int(responses.length[0]) - 1] = 0  # a last token that looks like padding
    said = whole(scores, ScalarModel(parts.build()), responses)
    for n in range(responses.num_responses):
        own = own_scalars(parts, text_of(responses, n))
        np.testing.assert_allclose(said[n], own[-1], rtol=1e-4, atol=1e-5)
        assert abs(own[-2] - own[-1]) > 1e-3
    token = np.where(np.arange(responses.token.shape[1]) < responses.length[:, None], responses.token, 5)
    other = Responses(**{**vars(responses), "token": token})
    np.testing.assert_array_equal(whole(scores, ScalarModel(parts.build()), other), said)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_who_looks_at_which_piece_changes_no_bit(size):
    responses = texts(lengths=((3, 5), (1, 2), (4, 1), (2, 4), (2, 2), (1, 5), (3, 3)))
    for look, model in (
        (log_probs, policy_of(causal())),
        (values, critic_of(scalar())),
        (scores, ScalarModel(scalar().build())),
    ):
        alone, *shared = (whole(look, model, responses, size, count) for count in (1, 2, 3, 5))
        for one in shared:
            np.testing.assert_array_equal(one, alone)
        np.testing.assert_allclose(whole(look, model, responses), alone, rtol=1e-4, atol=1e-5)


def test_a_response_that_is_missing_or_told_twice_is_refused():
    for columns in ([0, 1], [0, 1, 1], [0, 1, 2, 2]):
        parts = [Part(np.array([column]), np.zeros(1)) for column in columns]
        with pytest.raises(ValueError, match="3 responses once each"):
            join(parts, 3)


def test_a_critic_starts_at_zero_and_a_reward_model_at_its_deviation():
    responses = texts()
    assert not whole(values, critic_of(scalar(initial_std=0.0)), responses).any()
    width = 512
    config = {"n_embd": width, "n_layer": 1}
    std = 1 / np.sqrt(width + 1)
    head = scalar_from(causal("gpt2", **config), std).arrays["score.weight"]
    assert abs(head.std() / std - 1) < 0.1 and abs(head.mean()) < 3 * std / np.sqrt(width)
    wrong = 1 / (width + 1)
    assert abs(head.std() / wrong - 1) > 10


def test_a_critic_has_the_trunk_of_the_model_it_is_made_from():
    parts = causal("gpt2", seed=4)
    critic = scalar_from(parts)
    shared = [name for name in critic.arrays if name in parts.arrays]
    assert len(shared) > 20 and all((critic.arrays[name] == parts.arrays[name]).all() for name in shared)


def test_opinions_change_no_parameter_and_ask_no_gradient():
    model = causal().build()
    before = digest(parameters_and_buffers(model))
    whole(log_probs, LanguagePolicy(model, None), texts())
    assert digest(parameters_and_buffers(model)) == before
    assert all(parameter.grad is None for parameter in model.parameters())


def test_token_zero_and_the_last_of_the_vocabulary_are_tokens_like_any_other():
    """Padding is 0 in arrays and no model is told of it: a text full of 0 has log-probs of its own."""
    responses = Responses.write(
        [[0, 0], [0]],
        [[0, VOCABULARY - 1, 0], [0]],
        [[0.0] * 3, [0.0]],
        [True, True],
        [0, 1],
    )
    parts = causal()
    said = whole(log_probs, policy_of(parts), responses)
    for t, n in decisions(responses):
        logits = own_logits(parts, text_of(responses, n))[responses.position[t, n]]
        expected = reference.log_softmax(logits)[responses.action[t, n]]
        np.testing.assert_allclose(said[t, n], expected, rtol=2e-5, atol=2e-5)
    assert responses.valid.sum() == 4
