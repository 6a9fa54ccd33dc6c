"""bfloat16 of what does not learn: the same text from any layout, rounded weights that are proved to have arrived."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from distrl.learner import digest
from distrl.policies.lm import core
from distrl.policies.protocol import load_parameters, parameters_and_buffers
from distrl.rlhf.models import LoraOptions, empty_model, read_causal, scalar_from, with_lora
from distrl.rlhf.rewards import ScoreScale, read_reward, save_reward
from distrl.rlhf.weights import Weights
from tests.rlhf.small_models import causal


def numbers(model: torch.nn.Module) -> set[torch.dtype]:
    return {one.dtype for one in model.parameters()}


def test_a_model_is_built_without_drawing_its_first_parameters_and_its_tied_ones_stay_tied(
    family_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = read_causal(family_folder)
    monkeypatch.setattr(torch.nn.init, "normal_", lambda *given, **more: pytest.fail("drawn"))
    torch.manual_seed(3)
    before = torch.get_rng_state()
    model = cast(Any, parts.build())
    assert torch.equal(torch.get_rng_state(), before)
    assert digest(parameters_and_buffers(model)) == digest(parts.arrays)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert tied == bool(parts.config.tie_word_embeddings)


def test_parameters_are_rounded_and_buffers_are_not(family_folder: Path) -> None:
    parts = read_causal(family_folder)
    plain, rounded = parts.build(), replace(parts, dtype="bfloat16").build()
    assert (numbers(plain), numbers(rounded)) == ({torch.float32}, {torch.bfloat16})
    # as its family initialises it: no state dict has the frequencies of rotary positions, so no digest sees them
    drawn = empty_model("causal", parts.config)
    load_parameters(drawn, parts.arrays)
    wanted = dict(drawn.named_buffers())
    for model in (plain, rounded):
        found = dict(model.named_buffers())
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    token = torch.arange(5, 17)[None]
    with torch.no_grad():
        exact, found = (cast(Any, model)(token).logits for model in (plain, rounded))
    apart = (exact - found.float()).abs().max()
    assert 0 < apart < 0.1 * exact.abs().max()


def test_a_rounded_reward_models_scores_are_near_its_own(gpt2_folder: Path, tmp_path: Path) -> None:
    from tests.rlhf.test_rewards import Responses

    save_reward(scalar_from(read_causal(gpt2_folder), 0.5, seed=1), ScoreScale(), tmp_path)
    source = read_reward(tmp_path)
    rounded = replace(source, parts=replace(source.parts, dtype="bfloat16")).build("cpu")
    responses = Responses.write([[5, 6], [7]], [[8, 9], [10, 2]], [[0.0] * 2] * 2, [True] * 2, [0, 1])
    exact, found = (one.score(responses, [np.arange(2)]).said for one in (source.build("cpu"), rounded))
    assert found.dtype == np.float32
    assert 0 < np.abs(exact - found).max() < 0.05


@pytest.mark.parametrize("lora", [False, True])
def test_digests_of_rounded_weights_are_those_of_who_samples_with_them(lora: bool) -> None:
    parts = causal("llama")
    parts = with_lora(parts, LoraOptions(rank=2), 0) if lora else parts
    actor, writer = parts.build(), replace(parts, dtype="bfloat16").build()
    with torch.no_grad():
        for one in actor.parameters():
            if one.requires_grad:
                one.add_(0.01)
    sampled, loaded = Weights(actor, torch.bfloat16), Weights(writer)
    before = loaded.digest(0)
    loaded.load(Weights(actor).snapshot(1))
    assert before != loaded.digest(1) == sampled.digest(1)
    assert sampled.digest(1) != Weights(actor).digest(1)
    loaded.take(replace(parts, arrays=parameters_and_buffers(actor)).build())
    assert loaded.digest(2) == sampled.digest(1), "taken from the model itself"
    with torch.no_grad():
        next(one for one in writer.parameters() if one.requires_grad)[0] += 1
    assert loaded.digest(3) != sampled.digest(1)
    assert cast(Any, core(writer)).dtype == torch.bfloat16
