"""The doctor's invariants on real models with a fault planted: each check fails, with its own message."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from distrl.doctor import Finding
from distrl.policies.lm import LanguagePolicy, TokenEvaluation
from distrl.rlhf.generation import CachedGenerator, respond
from distrl.stages.doctor import ON_RATIO, invariants
from tests.rlhf.small_models import FAMILIES, causal

CHECKS = ("ratio", "dropout", "padding", "temperature")
Fault = Callable[[LanguagePolicy], Any]


PROMPTS = [[3, 4, 5], [6, 7, 8, 9, 10], [11, 12], [1, 2, 3, 4]]


def examined(
    family: str,
    fault: Fault = lambda policy: None,
    prompts: list[list[int]] = PROMPTS,
    ends: tuple[int, ...] = (0,),
) -> dict[str, Finding]:
    """The findings on a model that is well where it writes, and has the fault where it is learned from."""
    parts = causal(family)
    writer = CachedGenerator(parts.build(), ends, temperature=0.7)
    responses = respond(writer, prompts, range(len(prompts)), 0, 0, range(len(prompts)), 12, 0)
    policy = LanguagePolicy(parts.build(), None, 0.7)
    fault(policy)
    return {finding.what: finding for finding in invariants(policy, responses)}


def looks_ahead(policy: LanguagePolicy) -> None:
    for module in cast(Any, policy.actor).modules():
        if hasattr(module, "is_causal"):
            module.is_causal = False


def is_random(policy: LanguagePolicy) -> None:
    cast(Any, policy.actor).train()


def counts_positions_from_the_right(policy: LanguagePolicy) -> None:
    """So that a text's positions depend on the pads behind it."""

    def from_the_right(module: Any, positional: Any, named: Any) -> Any:
        given = named.get("inputs_embeds")
        rows, length = (positional[0] if given is None else given).shape[:2]
        return positional, named | {"position_ids": torch.arange(64 - length, 64).expand(rows, -1)}

    cast(Any, policy.actor).base_model.register_forward_pre_hook(from_the_right, with_kwargs=True)


def is_shifted_by_one(policy: LanguagePolicy) -> None:
    """The family's own logits are those of the token before."""

    def shifted(module: Any, given: Any, found: Any) -> Any:
        found.logits = found.logits.roll(1, dims=1)
        return found

    cast(Any, policy.actor).register_forward_hook(shifted)


def is_hotter(policy: LanguagePolicy) -> None:
    policy.temperature = 1.0


def forgets_the_temperature(policy: LanguagePolicy) -> None:
    own = policy.token_log_probs

    def at_1(hidden_BH: Tensor, token_B: Tensor) -> TokenEvaluation:
        kept, policy.temperature = policy.temperature, 1.0
        try:
            return own(hidden_BH, token_B)
        finally:
            policy.temperature = kept

    policy.token_log_probs = at_1  # type: ignore[method-assign]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_that_is_well_passes_every_check(family: str) -> None:
    found = examined(family)
    assert {what: found[what].status for what in found} == dict.fromkeys(CHECKS, "pass")
    assert float(found["ratio"].found.split()[0]) <= ON_RATIO == 1e-5


@pytest.mark.parametrize(
    ("fault", "fails"),
    [
        (looks_ahead, {"ratio", "padding", "temperature"}),
        (is_random, {"ratio", "dropout", "padding", "temperature"}),
        (counts_positions_from_the_right, {"ratio", "padding", "temperature"}),
        (is_shifted_by_one, {"temperature"}),
        (is_hotter, {"ratio"}),
        (forgets_the_temperature, {"ratio", "temperature"}),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_a_planted_fault_fails_the_checks_that_see_it_and_no_other(fault: Fault, fails: set[str]) -> None:
    found = examined("gpt2", fault)
    assert {what for what in found if found[what].status == "fail"} == fails
    assert all(found[what].status == "pass" for what in found if what not in fails)
    messages = {
        "ratio": "two policies, which --exact-ratio would hide",
        "dropout": "the model is random by itself",
        "padding": "attention sees what comes later; is it a causal one?",
        "temperature": "not what the model's own forward pass says at that temperature",
    }
    for what in fails:
        assert messages[what] in found[what].found


def test_texts_of_one_length_are_padded_too() -> None:
    def sees_the_last_token(policy: LanguagePolicy) -> None:
        """Whatever it is: a pad, where there is one."""

        def seen(module: Any, positional: Any, named: Any, found: Any) -> Any:
            given = named.get("inputs_embeds")
            if given is not None:
                found.last_hidden_state = found.last_hidden_state + 0.1 * given[:, -1:]
            return found

        cast(Any, policy.actor).base_model.register_forward_hook(seen, with_kwargs=True)

    found = examined("gpt2", sees_the_last_token, [[3, 4, 5], [6, 7, 8]], ends=())
    assert found["padding"].status == "fail"


def test_a_ratio_that_is_off_by_rounding_is_a_warning_that_names_the_way_out() -> None:
    def rounds(policy: LanguagePolicy) -> None:
        with torch.no_grad():
            for parameter in cast(Any, policy.actor).parameters():
                parameter.mul_(1 + 5e-6)

    found = examined("llama", rounds)
    assert found["ratio"].status == "warn" and "--exact-ratio starts at 1" in found["ratio"].found
    assert [found[what].status for what in CHECKS[1:]] == ["pass"] * 3


def test_the_command_ends_with_1_where_the_model_is_sick(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A fault that a folder cannot hold, planted in every model that is built from it."""
    from distrl.cli.main import run
    from distrl.rlhf.models import ModelParts
    from tests.rlhf.conftest import make_model, train_tokenizer

    make_model("llama").save_pretrained(tmp_path / "model")
    train_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "the cat"}\n{"prompt": "one and two are"}\n')
    asked = ["doctor", "--model", str(tmp_path / "model"), "--data", str(tmp_path / "prompts.jsonl")]
    assert run(asked) == 0, capsys.readouterr().out
    own = ModelParts.build

    def sick(parts: ModelParts, device: str = "cpu") -> Any:
        model = own(parts, device)
        looks_ahead(LanguagePolicy(model, None))
        return model

    monkeypatch.setattr(ModelParts, "build", sick)
    assert run(asked) == 1
    told = capsys.readouterr()
    assert "fail | padding" in told.out and "is it a causal one?" in told.out
    assert "distrl doctor: 3 failed" in told.err
