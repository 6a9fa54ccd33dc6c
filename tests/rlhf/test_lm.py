"""The language model as a policy: log-probs as each family's own logits have them, at the sampling temperature, without
the logits of a whole batch ever being there."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from distrl.policies import lm
from distrl.policies.lm import LanguagePolicy, ScalarHead, ScalarModel, causal_head, trunk_hidden
from distrl.rlhf.responses import Responses
from tests import reference
from tests.rlhf.small_models import (
    FAMILIES,
    VOCABULARY,
    causal,
    decisions,
    evaluated,
    own_logits,
    policy_of,
    scalar,
    text_of,
    texts,
)

CAPPED = {"gemma2": {"final_logit_softcapping": None}, "cohere": {"logit_scale": 1.0}, "granite": {"logits_scaling": 1.0}}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.5])
def test_log_probs_and_entropy_are_those_of_the_family_s_own_logits_at_the_temperature(family, temperature):
    parts, responses = causal(family), texts()
    found = evaluated(policy_of(parts, temperature), responses)
    logits = [own_logits(parts, text_of(responses, n)) for n in range(responses.num_responses)]
    late, cold = [], []
    for t, n in decisions(responses):
        position, token = int(responses.position[t, n]), int(responses.action[t, n])
        log_softmax = reference.log_softmax(logits[n][position], temperature)
        np.testing.assert_allclose(found.log_prob[t, n].item(), log_softmax[token], rtol=2e-5, atol=2e-5)
        entropy = -(np.exp(log_softmax) * log_softmax).sum()
        np.testing.assert_allclose(found.entropy[t, n].item(), entropy, rtol=2e-5, atol=2e-5)
        after = reference.log_softmax(logits[n][position + 1], temperature)[token]
        late.append(abs(after - log_softmax[token]))
        cold.append(abs(reference.log_softmax(logits[n][position])[token] - log_softmax[token]))
    assert max(late) > 0.1, "a shift by one would be seen"
    assert temperature == 1.0 or max(cold) > 0.05, "so would a temperature left out"
    no_decision = torch.from_numpy(~responses.valid)
    assert not found.log_prob[no_decision].any() and not found.entropy[no_decision].any()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_alone_gives_the_family_s_logits_to_the_bit(family):
    model: Any = causal(family).build()
    token = torch.from_numpy(texts().token)
    with torch.no_grad():
        hidden = trunk_hidden(model, token)
        found = causal_head(model)(hidden.reshape(-1, hidden.shape[-1]))
        own = model(input_ids=token, use_cache=False).logits
    assert torch.equal(found.reshape(own.shape), own)


@pytest.mark.parametrize("family", CAPPED)
def test_a_soft_cap_or_a_scale_after_the_head_counts(family):
    """Without it these families' log-probs would be others, so the tests above can fail."""
    responses = texts()
    capped, bare = (
        evaluated(policy_of(causal(family, **changed)), responses).log_prob
        for changed in ({}, CAPPED[family])
    )
    assert (capped - bare).abs().max() > 0.1


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "cohere"])
def test_log_probs_in_parts_and_their_gradient_are_those_of_the_whole(family, monkeypatch):
    responses = texts()

    def found():
        policy = policy_of(causal(family))
        told = evaluated(policy, responses)
        (told.log_prob.sum() + 0.3 * told.entropy.sum()).backward()
        return told, [parameter.grad for parameter in policy.parameters()]

    whole, gradient = found()
    monkeypatch.setattr(lm, "LOGITS_AT_A_TIME", 5 * VOCABULARY)
    parted, parted_gradient = found()
    torch.testing.assert_close(parted.log_prob, whole.log_prob, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(parted.entropy, whole.entropy, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(parted_gradient, gradient, rtol=1e-4, atol=1e-5)


class Largest(TorchDispatchMode):
    """The most numbers that one tensor had."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(one, torch.Tensor):
                self.numbers = max(self.numbers, one.numel())
        return made


@pytest.mark.parametrize("learning", [False, True])
def test_no_tensor_of_batch_times_length_times_vocabulary_is_ever_there(learning, monkeypatch):
    vocabulary, lengths = 3000, ((2, 30),) * 8
    monkeypatch.setattr(lm, "LOGITS_AT_A_TIME", 16 * vocabulary)
    policy = policy_of(causal("gpt2", vocab_size=vocabulary))
    responses = texts(lengths=lengths)
    all_logits = 8 * 30 * vocabulary
    with Largest() as seen, torch.set_grad_enabled(learning):
        told = evaluated(policy, responses)
        if learning:
            told.log_prob.sum().backward()
    assert seen.numbers <= 16 * vocabulary < all_logits / 10, "parameters are [vocabulary, 16] themselves"
    with Largest() as seen, torch.no_grad():
        causal("gpt2", vocab_size=vocabulary).build()(torch.from_numpy(responses.token))
    assert seen.numbers >= all_logits, "the family's own forward has them: the watch works"


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_on_the_right_changes_no_log_prob_and_no_value(family):
    responses = texts()
    critic = family if family not in ("cohere", "granite") else "llama"  # these have no sequence classifier
    policy = LanguagePolicy(causal(family).build(), ScalarModel(scalar(critic).build()))
    whole = evaluated(policy, responses)
    for n in range(responses.num_responses):
        alone = responses.take(np.array([n]))
        count, length = int(alone.num_actions[0]), int(alone.length[0])
        for pads, filler in ((0, 0), (3, 0), (5, VOCABULARY - 1)):
            token = np.full((1, length + pads), filler, np.int64)
            token[:, :length] = alone.token[:, :length]
            padded = Responses(token, alone.length, alone.prompt, *(
                column[:count] for column in (alone.position, alone.action, alone.log_prob)
            ), alone.ended)  # fmt: skip
            found = evaluated(policy, padded)
            for own, among in ((found.log_prob, whole.log_prob), (found.value, whole.value)):
                torch.testing.assert_close(own[:, 0], among[:count, n], rtol=1e-5, atol=1e-5)
    assert (whole.value[responses.valid] != 0).all()


def test_texts_that_end_alike_but_begin_otherwise_are_told_apart():
    """What padding must not do, a prompt must: the test above would pass for a model that sees one token."""
    responses = texts(lengths=((3, 2), (3, 2)))
    responses.token[1, 1:] = responses.token[0, 1:]
    responses.action[:, 1] = responses.action[:, 0]
    found = evaluated(policy_of(causal()), responses).log_prob
    assert (found[:, 0] - found[:, 1]).abs().min() > 1e-3


@pytest.mark.parametrize("kind", ["actor", "critic"])
def test_two_forwards_of_a_model_with_dropout_in_its_configuration_are_equal(kind):
    parts = causal() if kind == "actor" else scalar()
    assert parts.config.resid_pdrop == 0.1
    model = parts.build()
    policy = LanguagePolicy(model, None) if kind == "actor" else LanguagePolicy(None, ScalarModel(model))

    def both() -> Any:
        first, second = (evaluated(policy, texts()) for _ in range(2))
        return [(getattr(first, name), getattr(second, name)) for name in ("log_prob", "value")]

    assert all(torch.equal(*pair) for pair in both())
    policy.train()
    assert not all(torch.equal(*pair) for pair in both()), "dropout would be seen"


def test_values_of_a_head_on_the_trunk_start_at_zero_and_move_the_trunk_when_they_learn():
    policy = LanguagePolicy(causal().build(), ScalarHead(16))
    assert not evaluated(policy, texts()).value.any()
    torch.nn.init.normal_(policy.critic.score.weight)
    evaluated(policy, texts()).value.sum().backward()
    assert policy.actor.get_input_embeddings().weight.grad.abs().sum() > 0
    assert [*policy.optimiser_groups()] == ["actor"]
    assert len(policy.optimiser_groups()["actor"]) == len([*policy.parameters()])


def test_actor_and_critic_with_trunks_of_their_own_step_apart_and_share_no_parameter():
    policy = LanguagePolicy(causal().build(), ScalarModel(scalar().build()))
    groups = policy.optimiser_groups()
    assert [*groups] == ["actor", "critic"]
    numbers = [{id(parameter) for parameter in group} for group in groups.values()]
    assert not numbers[0] & numbers[1]
    assert len(numbers[0] | numbers[1]) == len([*policy.parameters()]), "the head that evaluates adds none"


def test_the_head_reads_the_weights_that_the_model_has_now():
    model = causal().build()
    head, hidden = causal_head(model), torch.randn(2, 16)
    before = head(hidden)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(2)
    torch.testing.assert_close(head(hidden), 2 * before)
    assert copy.deepcopy(model).state_dict().keys() == model.state_dict().keys(), (
        "the model itself is untouched"
    )


def test_a_temperature_that_is_not_positive_is_refused():
    for temperature in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="temperature must be positive"):
            LanguagePolicy(None, None, temperature)
