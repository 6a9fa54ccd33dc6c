"""A model is tried when it is read: what is wrong with it is named, and what is right with it stays to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn

from distrl.errors import BadInput
from distrl.policies.lm import CausalHead, hidden_and_router_loss, trunk_hidden
from distrl.rlhf.data import Demonstration
from distrl.rlhf.models import ModelParts, read_causal, read_scalar
from distrl.rlhf.sft import Imitation
from distrl.rlhf.trial import try_causal
from tests.rlhf.small_models import FAMILIES, causal
from tests.wild import kit
from tests.wild.every_family import causal_families, tiny


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_that_is_well_is_read(family: str) -> None:
    try_causal(causal(family).build(), "here", writes=True)


def looks_ahead(model: Any) -> None:
    for module in model.modules():
        if hasattr(module, "is_causal"):
            module.is_causal = False


def scales_the_logits_of_ids(model: Any) -> None:
    def scaled(module: Any, given: Any, named: Any, found: Any) -> Any:
        if "input_ids" in named:
            found.logits = found.logits * 1.5
        return found

    model.register_forward_hook(scaled, with_kwargs=True)


def counts_positions_from_the_right(model: Any) -> None:
    def from_the_right(module: Any, positional: Any, named: Any) -> Any:
        given = positional[0] if positional else named.get("inputs_embeds")
        rows, length = (named["input_ids"] if given is None else given).shape[:2]
        return positional, named | {"position_ids": torch.arange(64 - length, 64).expand(rows, -1)}

    model.base_model.register_forward_pre_hook(from_the_right, with_kwargs=True)


def is_not_finite(model: Any) -> None:
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))


def has_no_head(model: Any) -> None:
    model.get_output_embeddings = lambda: None


def raises(model: Any) -> None:
    def fail(*given: Any) -> None:
        raise KeyError("language")

    model.register_forward_pre_hook(fail)


@pytest.mark.parametrize(
    ("fault", "part"),
    [
        (looks_ahead, "causality"),
        (scales_the_logits_of_ids, "head: log-probs are"),
        (counts_positions_from_the_right, "padding"),
        (is_not_finite, "forward: its logits are not finite"),
        (has_no_head, "head: it has no output embeddings"),
        (raises, "KeyError: 'language'"),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_a_fault_is_refused_by_the_name_of_the_family_and_the_part(fault: Any, part: str) -> None:
    model = causal("gpt2").build()
    fault(model)
    with pytest.raises(BadInput, match=f"here: a gpt2 model cannot be used here: {part}"):
        try_causal(model, "here")


def test_a_classifier_that_reads_its_first_token_is_no_reward_model(tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    config = kit.config_of("bert", kit.byte_level(), num_labels=1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(
        BadInput, match="bert model cannot be used here: head: its classifier has no `score` layer"
    ):
        read_scalar(tmp_path)


def check_head(model: Any) -> None:
    """The trunk's hidden states through `CausalHead` are the family's own logits, to the bit."""
    token = torch.arange(3, 19).view(2, 8)
    with torch.no_grad():
        wanted = model(input_ids=token, use_cache=False).logits
        found = CausalHead(model)(trunk_hidden(model, token).flatten(0, 1)).view_as(wanted)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize(
    "family", ["opt", "mixtral", "gpt_oss", "gemma3n_text", "gemma4_text", "llama4_text", "rwkv"]
)
def test_the_head_of_a_family_gives_its_own_logits(family: str) -> None:
    check_head(tiny(family))


@pytest.mark.slow
@pytest.mark.parametrize("family", causal_families())
def test_the_head_of_every_family_gives_its_own_logits(family: str) -> None:
    check_head(tiny(family))


def mixture(**more: Any) -> nn.Module:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config = kit.config_of("mixtral", kit.byte_level(), router_aux_loss_coef=0.5, **more)
    return cast(nn.Module, AutoModelForCausalLM.from_config(config).eval())


def test_the_routers_loss_is_the_familys_own_over_tokens_that_are_no_padding() -> None:
    model = cast(Any, mixture(output_router_logits=True))
    token, length = torch.arange(3, 19).view(2, 8), torch.tensor([8, 5])
    seen = (torch.arange(8) < length.unsqueeze(1)).long()
    wanted = model(input_ids=token, attention_mask=seen, labels=token.where(seen > 0, -100))
    _, found = hidden_and_router_loss(model, token, length)
    assert float(found.detach()) == pytest.approx(float(wanted.aux_loss.detach()), abs=1e-6)
    found.backward()
    assert any("gate" in name and one.grad is not None for name, one in model.named_parameters())


@pytest.mark.parametrize("asked", [True, False])
def test_sft_adds_the_routers_loss_where_the_configuration_asks_for_it(asked: bool) -> None:
    model = cast(Any, mixture(output_router_logits=asked))
    rows = [Demonstration(tuple(range(3, 11)), 1), Demonstration(tuple(range(12, 17)), 1)]
    objective = Imitation(model, rows)
    loss, sums = objective.losses(np.arange(2))
    token = torch.zeros(2, 8, dtype=torch.long)
    for n, row in enumerate(rows):
        token[n, : len(row.tokens)] = torch.tensor(row.tokens)
    seen = torch.tensor([[1] * 8, [1] * 5 + [0] * 3])
    labels = token.where(seen > 0, -100)
    wanted = model(input_ids=token, attention_mask=seen, labels=labels).loss
    assert float(loss.detach()) / objective.count(np.arange(2)) == pytest.approx(
        float(wanted.detach()), rel=1e-5
    )
    assert ("router_loss" in sums) is asked


def test_a_family_that_computes_no_routers_loss_is_refused_before_training() -> None:
    model = cast(Any, mixture())
    model.config.output_router_logits = True
    model.forward = lambda *given, **named: type("Nothing", (), {"aux_loss": None})()
    with pytest.raises(BadInput, match="output_router_logits"):
        hidden_and_router_loss(model, torch.ones(1, 4, dtype=torch.long), torch.tensor([4]))


def test_what_is_said_of_reading_travels_with_the_model(tmp_path: Path) -> None:
    from tests.wild.folders import arrays

    kit.save(tmp_path, kit.byte_level(), "llama")
    assert read_causal(tmp_path).notes == ()
    arrays(lambda found: found | {"model.extra.weight": torch.zeros(2)})(tmp_path)
    parts: ModelParts = read_causal(tmp_path)
    assert any("model.extra.weight" in note and "left out" in note for note in parts.notes)
