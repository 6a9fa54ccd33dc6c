"""How a model is written with: whatever its cache, log-probs of sampling are those of a full forward; what does not fit is
not taken."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from distrl.policies.lm import causal_head, trunk_hidden
from distrl.rlhf import fast_paths
from distrl.rlhf.generation import CachedGenerator, uniforms
from distrl.rlhf.models import ModelParts
from distrl.rlhf.ways import Way, way_of
from distrl.stages.paths import proved
from tests.rlhf.small_models import causal
from tests.wild.hybrids import HYBRIDS
from tests.wild.kit import FAMILIES, config_of, words

PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5], [3, 5], [7, 8]]
LIMIT = 8
RANDOM = uniforms(0, 0, range(len(PROMPTS)), LIMIT)
TOKENIZER = words([chr(97 + n) for n in range(26)])


def model_of(family: str, sizes: dict[str, Any], std: float = 0.2) -> Any:
    """With matrices wide enough that no distribution is near uniform."""
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = AutoModelForCausalLM.from_config(config_of(family, TOKENIZER, **sizes))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 2:
                    parameter.normal_(0, std)
    return model.float().eval()


@torch.no_grad()
def off(model: Any, generator: CachedGenerator) -> float:
    """The largest difference of a sampled token's log-prob from that of a full forward of its text alone."""
    head, worst = causal_head(model), 0.0
    written = generator.generate(PROMPTS, RANDOM)
    for prompt, one in zip(PROMPTS, written, strict=True):
        text = torch.tensor([prompt + one.tokens])
        told = torch.log_softmax(head(trunk_hidden(model, text)[0, len(prompt) - 1 : -1]), -1)
        found = told.gather(-1, text[0, len(prompt) :, None])[:, 0].numpy()
        worst = max(worst, float(np.abs(found - np.array(one.log_probs)).max()))
    assert len({len(one.tokens) for one in written}) > 1, "rows end at different times"
    return worst


@pytest.mark.parametrize("family", HYBRIDS)
def test_a_hybrid_cache_writes_what_a_full_forward_gives(family: str) -> None:
    reading, sizes = HYBRIDS[family]
    model = model_of(family, sizes)
    free = CachedGenerator(model, [], way=Way("recomputed", False)).generate(PROMPTS, RANDOM)
    generator = CachedGenerator(model, [free[1].tokens[LIMIT // 2]])
    assert generator.way.reading == reading
    assert off(model, generator) < 1e-5


@pytest.mark.parametrize("reading", ["padded", "joined", "by length", "staying", "recomputed"])
def test_every_way_gives_the_same_where_it_fits(reading: Any) -> None:
    model = causal("gpt2").build()
    end = CachedGenerator(model, []).generate(PROMPTS, RANDOM)[1].tokens[LIMIT // 2]
    assert off(model, CachedGenerator(model, [end], way=Way(reading, False))) < 1e-5


@pytest.mark.parametrize("alibi", [False, True])
def test_falcon_does_not_take_the_attention_that_its_code_does_not_ask_for(alibi: bool) -> None:
    model = model_of("falcon", {**FAMILIES["falcon"], "alibi": alibi})
    end = CachedGenerator(model, [], way=Way("stored", False)).generate(PROMPTS, RANDOM)[1].tokens[4]
    taken = CachedGenerator(model, [end])
    assert taken.way == Way("stored", False, taken.way.notes) and "falcon" in taken.way.notes[0]
    assert off(model, taken) < 1e-5
    assert off(model, CachedGenerator(model, [end], way=Way("stored", True))) > 1e-2


def test_a_fast_path_with_a_fault_is_not_taken_and_the_others_are(monkeypatch: pytest.MonkeyPatch) -> None:
    model, right = causal("llama").build(), fast_paths.few_queries
    assert way_of(model) == Way()
    monkeypatch.setattr(fast_paths, "few_queries", lambda *given: right(*given) * 1.1)
    way = way_of(model)
    assert not way.fast and way.reading == "stored" and "llama" in way.notes[0]


def test_a_model_that_sees_what_comes_later_cannot_be_written_with() -> None:
    from distrl.errors import BadInput

    with pytest.raises(BadInput, match="a bert model.*is it a causal LM"):
        way_of(model_of("bert", FAMILIES["bert"]), required=True)


def test_a_run_s_paths_are_a_function_of_its_model_and_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    from distrl.errors import BadInput

    gpt2 = causal("gpt2")
    assert proved(gpt2, True, "compiled", None).record == {
        "generation": "stored, one-query attention", "activations": "fused"
    }  # fmt: skip
    assert proved(gpt2, False, "plain", None).record == {"generation": "stored", "activations": "as they are"}
    falcon = ModelParts.of(model_of("falcon", FAMILIES["falcon"]), "causal")
    with pytest.raises(BadInput, match="--generation compiled.*falcon.*--generation plain"):
        proved(falcon, True, "compiled", None)
