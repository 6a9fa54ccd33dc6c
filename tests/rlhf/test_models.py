"""Models of five families: read, saved, told apart from pickles, adapted; log-probs and generation as the family's own."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distrl.errors import BadInput
from distrl.learner import Snapshot, digest
from distrl.policies.lm import NO_ACTION, LanguagePolicy, ScalarModel, core
from distrl.policies.protocol import load_parameters, parameters_and_buffers
from distrl.recipes import PPO
from distrl.rlhf.certificate import step
from distrl.rlhf.generation import CachedGenerator
from distrl.rlhf.models import (
    LoraOptions,
    ModelParts,
    context_length,
    empty_model,
    merged,
    new_causal,
    read_causal,
    read_config,
    read_scalar,
    save,
    scalar_from,
    width,
    with_lora,
)
from distrl.rlhf.opinions import Part
from distrl.rlhf.recipes import RLHF_PPO
from distrl.rlhf.responses import Responses
from distrl.rlhf.role_spec import ROLES, RoleSpec
from distrl.rlhf.roles import RoleWorker
from distrl.rlhf.tokenizers import end_tokens, read_tokenizer, vocabulary_size
from distrl.updates.torch import OptimiserGroup
from tests.rlhf.conftest import family_config, train_tokenizer


def texts(count: int = 3, length: int = 24) -> torch.Tensor:
    """Ids in the tiny models' vocabulary, [N, S]."""
    return torch.from_numpy(np.random.default_rng(0).integers(5, 300, (count, length)))


def logits(model: Any, token_NS: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(token_NS).logits
        return found


def stirred(parts: ModelParts) -> ModelParts:
    """With adapters that change something."""
    arrays = {
        name: array + (0.3 if "lora_B" in name else 0.0) * np.ones_like(array)
        for name, array in parts.arrays.items()
    }
    return parts.with_arrays(arrays)


def test_a_folder_comes_back_with_equal_logits_tokenizer_and_chat_template(
    family_folder: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    first = AutoModelForCausalLM.from_pretrained(family_folder, dtype=torch.float32).eval()
    tokenizer = read_tokenizer(family_folder)
    save(read_causal(family_folder), tmp_path / "out", tokenizer)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    assert torch.equal(logits(again, texts()), logits(first, texts()))
    back = read_tokenizer(tmp_path / "out")
    assert back.chat_template == tokenizer.chat_template
    assert back.get_vocab() == tokenizer.get_vocab()
    assert {path.suffix for path in (tmp_path / "out").iterdir()} <= {".json", ".safetensors", ".jinja"}


def test_log_probs_of_a_policy_are_its_familys_own(family_folder: Path) -> None:
    model = read_causal(family_folder).build()
    token_NS = texts()
    for temperature in (0.5, 1.0, 1.5):
        wanted = torch.log_softmax(logits(model, token_NS).double() / temperature, dim=-1)
        wanted_NS = wanted[:, :-1].gather(-1, token_NS[:, 1:].unsqueeze(-1)).squeeze(-1)
        position_TN = torch.arange(token_NS.shape[1] - 1).unsqueeze(1).expand(-1, len(token_NS))
        state = {"token": token_NS, "length": torch.full((len(token_NS),), token_NS.shape[1])}
        said = LanguagePolicy(model, None, temperature).evaluate(
            position_TN, token_NS[:, 1:].T, None, state, None
        )
        torch.testing.assert_close(said.log_prob.T.double(), wanted_NS, atol=2e-5, rtol=0)
        assert not (token_NS == NO_ACTION).any()


def test_greedy_generation_is_transformers_own_token_for_token(family_folder: Path) -> None:
    model = read_causal(family_folder).build()
    prompts = [texts()[0, :5].tolist(), texts()[1, :9].tolist(), texts()[2, :2].tolist()]
    limit = 20  # beyond the window of the family that has one
    written = CachedGenerator(model, (), greedy=True).generate(prompts, np.zeros((3, limit), np.float32))
    for prompt, one in zip(prompts, written, strict=True):
        ids = torch.tensor([prompt])
        with torch.no_grad():
            own = model.generate(  # type: ignore[operator]
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=limit, do_sample=False, eos_token_id=None
            )  # fmt: skip
        assert one.tokens == own[0, len(prompt) :].tolist()


def test_rows_that_end_leave_the_others_tokens_alone(family_folder: Path) -> None:
    model = read_causal(family_folder).build()
    prompts = [texts()[0, :5].tolist(), texts()[1, :9].tolist(), texts()[2, :2].tolist()]
    noise = np.zeros((3, 20), np.float32)
    whole = CachedGenerator(model, (), greedy=True).generate(prompts, noise)
    end = whole[0].tokens[3]
    ended = CachedGenerator(model, (end,), greedy=True).generate(prompts, noise)
    for full, cut in zip(whole, ended, strict=True):
        until = full.tokens.index(end) + 1 if end in full.tokens else len(full.tokens)
        assert cut.tokens == full.tokens[:until]
        assert cut.ended == (end in full.tokens)
    assert len({len(one.tokens) for one in ended}) > 1


def test_adapters_alone_are_learned_and_change_nothing_at_first(family_folder: Path) -> None:
    plain = read_causal(family_folder)
    adapted = with_lora(plain, LoraOptions(rank=4), seed=1)
    model = adapted.build()
    assert torch.equal(logits(core(model), texts()), logits(plain.build(), texts()))
    policy = LanguagePolicy(model, None)
    groups = policy.optimiser_groups()
    learned = {id(parameter) for parameter in groups["actor"]}
    names = {name for name, parameter in policy.named_parameters() if id(parameter) in learned}
    assert names and all("lora_" in name for name in names)
    group = OptimiserGroup.adam(groups["actor"], PPO)
    before = parameters_and_buffers(model)
    state = {"token": texts(), "length": torch.full((3,), 24)}
    rows = torch.arange(23).unsqueeze(1).expand(-1, 3)
    group.step(-policy.evaluate(rows, texts()[:, 1:].T, None, state, None).log_prob.mean())
    after = parameters_and_buffers(model)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed and all("lora_" in name for name in changed)


def test_an_adapted_model_travels_whole_and_is_merged_when_saved(family_folder: Path, tmp_path: Path) -> None:
    adapted = stirred(with_lora(read_causal(family_folder), LoraOptions(rank=4), seed=1))
    model, other = adapted.build(), with_lora(read_causal(family_folder), LoraOptions(rank=4), seed=2).build()
    snapshot = Snapshot.of(model, 3)
    assert snapshot.digest != digest(parameters_and_buffers(other))
    load_parameters(other, snapshot.arrays)
    assert snapshot.digest == digest(parameters_and_buffers(other)) == digest(adapted.arrays)
    wanted = logits(core(model), texts())
    assert not torch.allclose(wanted, logits(read_causal(family_folder).build(), texts()), atol=1e-2)
    save(adapted, tmp_path / "out")
    torch.testing.assert_close(
        logits(read_causal(tmp_path / "out").build(), texts()), wanted, atol=1e-4, rtol=1e-4
    )
    prompt = [texts()[0, :4].tolist()]
    noise = np.zeros((1, 8), np.float32)
    by_adapters = CachedGenerator(model, (), greedy=True).generate(prompt, noise)
    by_merged = CachedGenerator(merged(adapted).build(), (), greedy=True).generate(prompt, noise)
    assert by_adapters[0].tokens == by_merged[0].tokens


def test_adapters_of_the_same_seed_are_the_same(gpt2_folder: Path) -> None:
    plain = read_causal(gpt2_folder)
    one, same, other = (with_lora(plain, LoraOptions(), seed).arrays for seed in (1, 1, 2))
    assert digest(one) == digest(same) != digest(other)


def test_a_scalar_model_adapts_its_trunk_and_learns_its_head(family_folder: Path, tmp_path: Path) -> None:
    adapted = stirred(with_lora(scalar_from(read_causal(family_folder), 0.5), LoraOptions(rank=2), seed=1))
    model = adapted.build()
    learned = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name or "score" in name for name in learned)
    assert any("score" in name for name in learned)
    with torch.no_grad():
        wanted = ScalarModel(model)(texts())
        save(adapted, tmp_path / "out")
        found = ScalarModel(read_scalar(tmp_path / "out").build())(texts())
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_a_scalar_models_trunk_is_the_causal_models_and_its_head_as_asked(family_folder: Path) -> None:
    causal = read_causal(family_folder)
    with torch.no_grad():
        assert not ScalarModel(scalar_from(causal).build())(texts()).any(), "a critic starts at 0"
        hidden = core(causal.build()).base_model(texts(), use_cache=False).last_hidden_state  # type: ignore[operator, union-attr]
        scalar = ScalarModel(scalar_from(causal, 0.5, seed=3).build())
        weight = core(scalar.model).score.weight  # type: ignore[union-attr]
        torch.testing.assert_close(scalar(texts()), (hidden @ weight.T).squeeze(-1), atol=1e-5, rtol=1e-5)


def test_a_head_drawn_with_a_deviation_has_it() -> None:
    config = family_config("gpt2", 64)
    config.n_embd, config.n_layer, config.n_positions = 1024, 1, 8
    parts = scalar_from(new_causal(config, 0), 1025**-0.5, seed=5)
    assert width(parts) == 1024
    assert np.std(parts.arrays["score.weight"]) == pytest.approx(1025**-0.5, rel=0.08)
    assert abs(np.mean(parts.arrays["score.weight"])) < 4 * 1025**-0.5 / 32


def test_a_folder_without_safetensors_is_refused(gpt2_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(gpt2_folder, tmp_path / "pickled")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(BadInput, match="pickled weights are not read"):
        read_causal(folder)


def test_a_folder_that_is_none_or_lacks_the_head_is_refused(gpt2_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no config\.json"):
        read_causal(tmp_path)
    with pytest.raises(BadInput, match=r"lacks parameters of a scalar model: score\.weight"):
        read_scalar(gpt2_folder)
    save(scalar_from(read_causal(gpt2_folder), 0.5), tmp_path / "scalar")
    with pytest.raises(BadInput, match="is a sequence classifier"):
        read_causal(tmp_path / "scalar")


def test_truncated_weights_are_refused(gpt2_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(gpt2_folder, tmp_path / "cut")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(BadInput, match="cannot be read as a causal model"):
        read_causal(folder)


def test_what_ends_a_response_is_kept_in_the_folder(gpt2_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(gpt2_folder, tmp_path / "chat")
    told = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(told | {"eos_token_id": [2, 4]}))
    save(read_causal(folder), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"] == [2, 4]


def test_a_saved_models_generation_configuration_lists_all_that_ends_a_response(
    gpt2_folder: Path, tmp_path: Path, tokenizer: Any
) -> None:
    chatting = copy.deepcopy(tokenizer)
    chatting.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    chatting.chat_template = "{% for m in messages %}{{ m['content'] + '<|im_end|>' }}{% endfor %}"
    end = chatting.convert_tokens_to_ids("<|im_end|>")
    parts = read_causal(gpt2_folder)
    save(parts, tmp_path / "plain", tokenizer)
    save(parts, tmp_path / "chat", chatting)
    before, plain, chat = (
        json.loads((folder / "generation_config.json").read_text())
        for folder in (gpt2_folder, tmp_path / "plain", tmp_path / "chat")
    )
    assert plain == before
    assert chat == before | {"eos_token_id": [before["eos_token_id"], end]}
    again = read_causal(tmp_path / "chat").generation
    assert end_tokens(chatting, again) == end_tokens(chatting, parts.generation) == tuple(again.eos_token_id)


def test_a_model_is_made_from_a_configuration_file_alike_for_a_seed(
    family_folder: Path, tmp_path: Path, tokenizer: Any
) -> None:
    config = read_config(family_folder / "config.json", tokenizer)
    assert config.vocab_size == vocabulary_size(tokenizer)
    assert context_length(config) == 128
    one, same, other = (digest(new_causal(config, seed).arrays) for seed in (1, 1, 2))
    assert one == same != other
    (tmp_path / "config.json").write_text('{"model_type": "no-such-family"}')
    with pytest.raises(BadInput, match="model_type"):
        read_config(tmp_path / "config.json", tokenizer)


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2", "gpt_neox", "gemma2"])
def test_a_new_models_special_ids_are_the_files_or_the_tokenizers_and_never_the_familys(
    family: str, tmp_path: Path, tokenizer: Any
) -> None:
    def read(**told: Any) -> list[Any]:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": family, **told}))
        config = read_config(tmp_path / "config.json", tokenizer)
        return [config.bos_token_id, config.eos_token_id, config.pad_token_id]

    own = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
    assert read() == own == [1, 2, 0]
    assert read(eos_token_id=50256, bos_token_id=None) == own, "ids that the tokenizer does not have"
    assert read(eos_token_id=[2, 7], bos_token_id=5, pad_token_id=6) == [5, [2, 7], 6]
    tokenizer = train_tokenizer(pad=False)
    assert read()[2] is None
    tokenizer.pad_token = tokenizer.eos_token
    assert read()[1:] == [tokenizer.eos_token_id, None], "an end whose embedding would not be learned"


def test_targets_that_the_model_does_not_have_are_refused(gpt2_folder: Path) -> None:
    with pytest.raises(BadInput, match="LoRA does not fit"):
        with_lora(read_causal(gpt2_folder), LoraOptions(targets=("nowhere",)), 0)


def test_a_step_of_ppo_moves_an_adapted_actors_adapters_alone(gpt2_folder: Path) -> None:
    plain = read_causal(gpt2_folder)
    actor = with_lora(plain, LoraOptions(rank=2), seed=0)
    recipe = replace(RLHF_PPO, max_response=4, learning_rate=1e-2, epochs=1, minibatches=2)
    spec = RoleSpec(
        recipe, seed=1, prompts=((5, 6), (7, 8, 9)), num_prompts=4, end_tokens=(2,), reward=ByFirstToken()
    )
    models = {"actor": actor, "reference": plain, "critic": scalar_from(actor)}
    worker = RoleWorker(spec, ROLES, models)
    told = step(worker, 0, 0.0, 0.05)
    assert told["kl"] == pytest.approx(0.0, abs=1e-5), "adapters change nothing before the first step"
    after = worker.snapshot().arrays
    changed = {name for name in after if not np.array_equal(after[name], actor.arrays[name])}
    assert changed and all("lora_" in name for name in changed)
    assert worker.load_writer(None) == worker.snapshot_name()


class ByFirstToken:
    """A `RewardSource` and its scorer: the number of the first token that was chosen, over 100."""

    def build(self, device: str) -> ByFirstToken:
        return self

    def score(self, responses: Responses, columns: Sequence[np.ndarray]) -> Part:
        mine = np.concatenate(list(columns))
        return Part(mine, (responses.action[0, mine] / 100).astype(np.float32))


def test_a_family_without_a_classifier_is_told_to_use_a_value_head() -> None:
    from transformers import CohereConfig

    config = CohereConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    actor = ModelParts.of(empty_model("causal", config), "causal")
    with pytest.raises(BadInput, match="no sequence classifier for CohereConfig.*--value-head"):
        scalar_from(actor)


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("ctrl", {"n_embd": 32, "n_layer": 1, "n_head": 2, "dff": 32}),
        ("bert", {"is_decoder": True, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}),
    ],
)
def test_a_classifier_of_another_make_than_a_head_on_the_trunk_is_refused(
    family: str, settings: dict[str, Any]
) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(family, vocab_size=16, **settings)
    causal = ModelParts.of(AutoModelForCausalLM.from_config(config), "causal")
    with pytest.raises(BadInput, match="no head named `score` on this trunk.*--value-head"):
        scalar_from(causal)


class Unwritable:
    """A tokenizer whose files find no room."""

    def save_pretrained(self, folder: Path) -> None:
        (Path(folder) / "tokenizer.json").write_text("half of")
        raise OSError(28, "No space left on device")


def test_a_model_is_saved_whole_or_not_at_all(gpt2_folder: Path, tmp_path: Path) -> None:
    parts = read_causal(gpt2_folder)
    with pytest.raises(OSError, match="No space"):
        save(parts, tmp_path / "out", Unwritable())
    assert list(tmp_path.iterdir()) == [], "no half of a model, and nothing left aside"
    save(parts, tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("the user's")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    other = parts.with_arrays({name: array + 1 for name, array in parts.arrays.items()})
    with pytest.raises(OSError, match="No space"):
        save(other, tmp_path / "out", Unwritable())
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    save(other, tmp_path / "out")
    assert digest(read_causal(tmp_path / "out").arrays) == digest(other.arrays) != digest(parts.arrays)
    assert (tmp_path / "out" / "notes.txt").read_text() == "the user's"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
