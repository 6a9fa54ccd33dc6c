"""Generation: the same tokens as transformers' own when greedy, the model's distribution when sampled, and log-probs that
a full forward repeats; padding, company and batch size change no token."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from distrl.maths.pieces import by_length
from distrl.policies.lm import core
from distrl.rlhf.generation import CachedGenerator, pick, respond, uniforms
from distrl.rlhf.opinions import log_probs
from distrl.rlhf.ways import Way
from tests import reference
from tests.rlhf.small_models import FAMILIES, VOCABULARY, causal, own_logits, policy_of

PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5], [3, 5]]
LIMIT = 8
RANDOM = uniforms(0, 0, range(len(PROMPTS)), LIMIT)


def ends_that_some_reach(family: str, **options: Any) -> list[int]:
    """A token that one response holds in its middle: with it for an end, rows end at different times."""
    free = CachedGenerator(causal(family).build(), [], **options).generate(PROMPTS, RANDOM)
    return [free[1].tokens[LIMIT // 2]]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_generation_equals_that_of_transformers_token_for_token(family):
    model: Any = causal(family).build()
    ends = ends_that_some_reach(family, greedy=True)
    written = CachedGenerator(model, ends, greedy=True).generate(PROMPTS, RANDOM)
    for prompt, one in zip(PROMPTS, written, strict=True):
        ids = torch.tensor([prompt])
        found = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=LIMIT,
            eos_token_id=ends,
            pad_token_id=0,
        )
        assert one.tokens == found[0, len(prompt) :].tolist()
        assert one.ended == (one.tokens[-1] in ends)
    lengths = [len(one.tokens) for one in written]
    assert lengths[1] <= LIMIT // 2 + 1 and min(lengths) < max(lengths), "some rows left the batch early"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("temperature", [0.5, 1.5])
def test_log_probs_of_sampling_are_those_of_a_full_forward_at_the_temperature(family, temperature):
    """The fast mode's promise: within 1e-5 of what `evaluate` says, rows that leave and left padding included."""
    parts = causal(family)
    ends = ends_that_some_reach(family, temperature=temperature)
    generator = CachedGenerator(parts.build(), ends, temperature)
    responses = respond(generator, PROMPTS, range(len(PROMPTS)), 0, 0, range(len(PROMPTS)), LIMIT, 7)
    assert responses.version == 7 and len(set(responses.num_actions)) > 1
    part = log_probs(policy_of(parts, temperature), responses, by_length(responses.length, 8))
    said = np.empty_like(part.said)
    said[:, part.columns] = part.said
    ratio = np.exp(said - responses.log_prob)[responses.valid]
    assert np.abs(ratio - 1).max() < 1e-5
    for n, prompt in enumerate(PROMPTS):
        count = int(responses.num_actions[n])
        assert responses.token[n, : len(prompt)].tolist() == prompt
        logits = own_logits(parts, responses.token[n, : len(prompt) + count].tolist())
        for t in range(count):
            position, token = len(prompt) - 1 + t, int(responses.action[t, n])
            expected = reference.log_softmax(logits[position], temperature)[token]
            np.testing.assert_allclose(responses.log_prob[t, n], expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_left_padding_and_company_change_no_token_and_hardly_a_log_prob(family):
    generator = CachedGenerator(causal(family).build(), ends_that_some_reach(family))
    together = generator.generate(PROMPTS, RANDOM)
    for n, prompt in enumerate(PROMPTS):
        for company in (0, 2, 6):  # pads on the left of this prompt
            prompts = [prompt, *([[1] * (len(prompt) + company)] if company else [])]
            rows = [n, *[0] * (len(prompts) - 1)]
            found = generator.generate(prompts, RANDOM[rows])[0]
            assert found.tokens == together[n].tokens and found.ended == together[n].ended
            np.testing.assert_allclose(found.log_probs, together[n].log_probs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_positions_count_from_a_text_s_own_first_token(family):
    """Positions of the padded row as they lie would be other ones, and give other log-probs."""
    model: Any = causal(family).build()
    written = CachedGenerator(model, []).generate([PROMPTS[1], PROMPTS[0]], RANDOM[:2])[0]
    pads = len(PROMPTS[0]) - 1
    token = torch.tensor([[0] * pads + PROMPTS[1]])
    mask = torch.cat([torch.zeros(1, pads), torch.ones(1, 1)], dim=1).long()
    with torch.no_grad():
        wrong = model(input_ids=token, attention_mask=mask, position_ids=torch.arange(pads + 1)[None]).logits[
            0, -1
        ]
        right = model(
            input_ids=token, attention_mask=mask, position_ids=torch.tensor([[0] * (pads + 1)])
        ).logits[0, -1]
    first = written.tokens[0]
    log_probs_of = [torch.log_softmax(logits, -1)[first].item() for logits in (right, wrong)]
    assert abs(log_probs_of[0] - written.log_probs[0]) < 1e-5
    if family == "gpt2":  # Llama's rotary positions are relative: one token alone sees no difference
        assert abs(log_probs_of[1] - written.log_probs[0]) > 1e-3


def test_rows_that_have_ended_leave_the_batch():
    model = causal().build()
    ends = ends_that_some_reach("gpt2")
    rows: list[int] = []
    core(model).base_model.register_forward_pre_hook(
        lambda _, args, given: rows.append(len(given["inputs_embeds"])), with_kwargs=True
    )
    written = CachedGenerator(model, ends, way=Way()).generate(PROMPTS, RANDOM)
    lengths = [len(one.tokens) for one in written]
    expected = [sum(length > t for length in lengths) for t in range(max(lengths))]
    expected[0] = len(PROMPTS)
    assert rows == expected[: len(rows)] and len(rows) == max(lengths) and rows[-1] < len(PROMPTS)


def test_generation_stops_where_all_rows_have_ended_and_an_end_belongs_to_its_response():
    model = causal().build()
    passes: list[int] = []
    core(model).base_model.register_forward_pre_hook(lambda _, args: passes.append(1))
    written = CachedGenerator(model, range(VOCABULARY), way=Way()).generate(PROMPTS, RANDOM)
    assert len(passes) == 1
    assert [(len(one.tokens), one.ended) for one in written] == [(1, True)] * len(PROMPTS)


def test_an_end_at_the_very_limit_is_an_end_and_a_cut_is_none():
    model = causal().build()
    free = CachedGenerator(model, []).generate(PROMPTS, RANDOM)
    assert not any(one.ended for one in free)
    last = free[0].tokens[-1]
    if last not in free[0].tokens[:-1]:
        assert CachedGenerator(model, [last]).generate(PROMPTS, RANDOM)[0].ended


# picking


def test_picked_tokens_follow_the_distribution():
    """Chi-squared over 22 degrees of freedom: 49 is passed once in a thousand; the temperature left out gives thousands."""
    parts, draws = causal(), 20_000
    expected, cold = (
        np.exp(reference.log_softmax(own_logits(parts, PROMPTS[0])[-1], t)) * draws for t in (1.5, 1.0)
    )
    generator = CachedGenerator(parts.build(), [], temperature=1.5)
    random = np.random.default_rng(0).random((draws, 1), np.float32)
    token = [one.tokens[0] for one in generator.generate([PROMPTS[0]] * draws, random)]
    counted = np.bincount(token, minlength=VOCABULARY)
    often = expected > 5
    chi = (((counted - expected) ** 2 / expected)[often]).sum()
    assert chi < 49 and often.sum() > 10
    assert ((counted - cold) ** 2 / cold)[often].sum() > 500


def test_a_uniform_number_picks_the_token_whose_share_of_the_unit_interval_holds_it():
    log_probs_NV = torch.log(torch.tensor([[0.25, 0.5, 0.25]])).repeat(6, 1)
    uniform = torch.tensor([0.0, 0.2499, 0.25, 0.7499, 0.7501, 0.99999994])
    assert pick(log_probs_NV, uniform).tolist() == [0, 0, 1, 1, 2, 2]


def test_a_token_without_probability_is_never_picked_not_even_by_rounding():
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.standard_normal((20_000, 9)).astype(np.float32))
    logits[:, [0, 4, 7, 8]] = -torch.inf
    log_probs_NV = torch.log_softmax(logits, -1)
    for uniform in (0.0, 1 - 2**-24):  # the ends of what a float32 draw can be
        chosen = pick(log_probs_NV, torch.full((len(logits),), uniform))
        assert set(chosen.tolist()) <= {1, 2, 3, 5, 6}
    assert set(chosen.tolist()) == {6}


def test_random_numbers_belong_to_a_place_in_the_run_and_not_to_a_batch():
    whole = uniforms(3, 5, range(6), LIMIT)
    np.testing.assert_array_equal(uniforms(3, 5, [4, 2], LIMIT), whole[[4, 2]])
    for other in (uniforms(4, 5, range(6), LIMIT), uniforms(3, 6, range(6), LIMIT)):
        assert not np.isin(other, whole).any()
    assert len(np.unique(whole)) == whole.size and whole.min() >= 0 and whole.max() < 1


def test_a_response_is_the_same_bits_each_time_it_is_written():
    generator = CachedGenerator(causal().build(), ends_that_some_reach("gpt2"))
    first, second = (generator.generate(PROMPTS, RANDOM) for _ in range(2))
    assert first == second
