"""Situations: models as people bring them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file

from distrl.rlhf.adapters import without_adapter
from tests.wild import kit
from tests.wild.folders import VARIANTS, Change, both, cut, settings
from tests.wild.situation import Ended, Situation, distrl

ROWS = 4
COMMANDS = ("sft", "reward", "ppo", "doctor")


@cache
def tokenizer() -> Any:
    """That of every model here."""
    return kit.byte_level()


def files(folder: Path) -> None:
    """The data of every command."""
    texts = ["what is two plus two ?", "hello there ,", "the cat sat", "def f ( x ) :"]
    kit.jsonl(folder / "sft.jsonl", [{"prompt": text, "completion": " four ."} for text in texts])
    kit.jsonl(
        folder / "pairs.jsonl", [{"prompt": text, "chosen": " four .", "rejected": " mat"} for text in texts]
    )
    kit.jsonl(folder / "prompts.jsonl", [{"prompt": text} for text in texts])


def command(folder: Path, name: str, *more: str, model: str = "model") -> Ended:
    """One iteration of a command with the model of that name."""
    train = ("--run-dir", f"{name}-run", "--no-tensorboard", "--device", "cpu", "--model", model)
    if name == "sft":
        return distrl(folder, "rlhf", "sft", *train, "--data", "sft.jsonl", "--batch-size", str(ROWS), *more)
    if name == "reward":
        small = ("--batch-size", str(ROWS), "--max-response", "4", "--normalize-responses", "8")
        return distrl(folder, "rlhf", "reward", *train, "--data", "pairs.jsonl", *small, *more)
    reward = ("--reward-function", "tests.rlhf.reward_functions:letters")
    if name == "ppo":
        small = ("--num-prompts", str(ROWS), "--iterations", "1", "--max-response", "4", "--minibatches", "1")
        return distrl(
            folder,
            "rlhf",
            "ppo",
            *train,
            "--prompts",
            "prompts.jsonl",
            *reward,
            *small,
            "--value-head",
            *more,
        )
    if name == "eval":
        return distrl(
            folder,
            "rlhf",
            "eval",
            model,
            "--prompts",
            "prompts.jsonl",
            "--max-response",
            "4",
            *reward,
            "--json",
            *more,
        )
    return distrl(folder, "doctor", "--model", model, "--data", "prompts.jsonl", *more)


def made(
    name: str, family: str, change: Change | None = None, *more: str, **settings: Any
) -> Callable[[Path], Ended]:
    """A family's folder, changed, and a command on it."""

    def run(folder: Path) -> Ended:
        files(folder)
        kit.save(folder / "model", tokenizer(), family, **settings)
        if change is not None:
            change(folder / "model")
        return command(folder, name, *more)

    return run


def variants() -> list[Situation]:
    """Every variant of a Llama folder."""
    return [
        Situation(
            "models",
            f"a folder: {name}",
            made("sft", "llama", change, tie_word_embeddings=False),
            "works" if says is None else "refused",
            says or (),
        )
        for name, (change, says) in VARIANTS.items()
    ]


NO_CLASSIFIER = ("sequence classifier",)
FAILS = {  # families and commands that are refused, with words that the refusal has
    **{("bert", name): ("bert", "causality") for name in COMMANDS},
    **{("t5", name): ("t5", "causal LM") for name in COMMANDS},
    **{(family, "reward"): NO_CLASSIFIER for family in ("codegen", "llama4_text", "mamba", "olmoe", "rwkv")},
}
QUICK = ("bert", "gemma3_text", "gpt2", "llama", "mixtral", "olmoe", "opt", "t5")


def families() -> list[Situation]:
    """Every family of the kit through every command."""
    return [_family(family, name) for family in sorted(kit.FAMILIES) for name in COMMANDS]


def _family(family: str, name: str) -> Situation:
    says = FAILS.get((family, name), ())
    refused: Any = "ended" if name == "doctor" else "refused"  # the doctor's findings are its output
    check = None
    if says and name == "doctor":

        def check(folder: Path, ended: Ended) -> None:
            assert all(word in ended.out + ended.err for word in says)

    return Situation(
        "models",
        f"{family} x {name}",
        made(name, family),
        refused if says else "works",
        () if name == "doctor" else says,
        check or (_saved if name == "sft" and not says else None),
        slow=family not in QUICK,
    )


def _saved(folder: Path, ended: Ended) -> None:
    """The model that was trained has the arrays of the one it began with, and other numbers."""
    before, after = (load_file(folder / one / "model.safetensors") for one in ("model", "sft-run/model"))
    assert before.keys() == after.keys()
    assert any((before[name] != after[name]).any() for name in before)


def adapter(folder: Path, base: str | None = None, place: str = "adapter", kind: str = "lora") -> None:
    """An adapter of `folder / "model"` in `folder / place`; `base`: what its configuration names instead."""
    from peft import LoraConfig, PromptTuningConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    config: Any = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    if kind == "prompt":
        config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft's way with transformers
        adapted: Any = get_peft_model(model, config)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.2)
    adapted.save_pretrained(folder / place)
    if base is not None:
        settings("adapter_config.json", base_model_name_or_path=base)(folder / place)


def with_adapter(
    change: Callable[[Path], None], name: str = "eval", *more: str, model: str = "adapter"
) -> Callable[[Path], Ended]:
    """A command on what `change` made beside a Llama's folder."""

    def run(folder: Path) -> Ended:
        files(folder)
        kit.save(folder / "model", tokenizer(), "llama")
        change(folder)
        return command(folder, name, *more, model=model)

    return run


def merges(folder: Path, ended: Ended) -> None:
    """What is read of the adapter's folder is what peft computes with it."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from distrl.rlhf.models import read_causal

    place = next(
        path for path in (folder / "adapter", folder / "model") if (path / "adapter_config.json").is_file()
    )
    token = torch.arange(3, 11).unsqueeze(0)
    with without_adapter(folder / "model") as plain:
        base = AutoModelForCausalLM.from_pretrained(plain)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        wanted = PeftModel.from_pretrained(base, str(place)).eval()(token).logits
        found = read_causal(place).build()(token).logits
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def beside(base: str) -> Callable[[Path], None]:
    """An adapter beside whole weights."""
    return lambda folder: adapter(folder, base, "model")


def keeps_adapter(folder: Path, ended: Ended) -> None:
    """The merged model of a run is what peft makes of the adapter that was kept beside it."""
    from distrl.rlhf.models import read_causal

    run = next(path for path in folder.iterdir() if path.name.endswith("-run"))
    merged, kept = (read_causal(run / name).arrays for name in ("model", "adapter"))
    begun = read_causal(folder / "model").arrays
    assert merged.keys() == kept.keys()
    for name in merged:
        np.testing.assert_allclose(merged[name], kept[name], atol=1e-6)
    assert any((merged[name] != begun[name]).any() for name in merged)


def adapters() -> list[Situation]:
    """Folders with adapters, and adapters kept."""
    lora = ("--lora-rank", "2", "--save-adapter")

    def situation(name: str, run: Callable[[Path], Ended], *says: str, check: Any = None) -> Situation:
        return Situation("models", f"an adapter: {name}", run, "refused" if says else "works", says, check)

    return [
        situation("alone", with_adapter(adapter), check=merges),
        situation("alone, trained on", with_adapter(adapter, "sft"), check=merges),
        situation("alone, its base by a path from it", with_adapter(lambda one: adapter(one, "../model")), check=merges),
        situation("beside its base's weights", with_adapter(beside("."), model="model"), check=merges),
        situation("beside weights, its base elsewhere", with_adapter(beside("meta-llama/Base"), model="model"), "adapter_config.json"),
        situation("its base on a hub", with_adapter(lambda one: adapter(one, "meta-llama/Base")), "meta-llama/Base", "not downloaded"),
        situation("of an adapter", with_adapter(adapter_of_an_adapter), check=merges_both),
        situation("of itself", with_adapter(lambda one: adapter(one, "../adapter")), "leads back"),
        situation("of a reward model on another", reward_on_adapter),
        situation("with a tokenizer of its own", with_adapter(with_its_tokenizer), check=its_tokenizer_is_used),
        Situation("models", "a run's directory for its model", _run_directory, "refused", ("is a run directory", "model")),
        situation("of prompts", with_adapter(lambda one: adapter(one, kind="prompt")), "PROMPT_TUNING"),
        situation("cut short", with_adapter(both(adapter, cut("adapter/adapter_model.safetensors", 500))), "adapter_model.safetensors"),
        situation("pickled", with_adapter(_pickled_adapter), "pickled"),
        situation("of another model", with_adapter(_other_base), "does not fit"),
        situation("kept by sft", with_adapter(lambda one: None, "sft", *lora, model="model"), check=keeps_adapter),
        situation("kept by ppo", with_adapter(lambda one: None, "ppo", *lora, model="model"), check=keeps_adapter),
        situation("kept, without one", with_adapter(lambda one: None, "sft", "--save-adapter", model="model"), "--lora-rank"),
    ]  # fmt: skip


def adapter_of_an_adapter(folder: Path) -> None:
    """In `folder / "adapter"`, of one in `folder / "below"` that has a model as its base, as two runs with adapters leave them."""
    adapter(folder, place="below")
    adapter(folder, "../below")


def merges_both(folder: Path, ended: Ended) -> None:
    """What is read of the upper folder has the weights with both adapters added."""
    from distrl.rlhf.models import read_causal

    plain, below, both_of = (read_causal(folder / name).arrays for name in ("model", "below", "adapter"))
    for name, one in both_of.items():
        # the two adapters have the same numbers, so that each adds the same
        np.testing.assert_allclose(one - below[name], below[name] - plain[name], atol=1e-5)
    assert any((below[name] != plain[name]).any() for name in plain)


def reward_on_adapter(folder: Path) -> Ended:
    """A reward model trained from an adapter's folder with adapters of its own, read from the adapter that it keeps."""
    from distrl.rlhf.models import read_scalar

    files(folder)
    kit.save(folder / "model", tokenizer(), "llama")
    adapter(folder)
    ended = command(folder, "reward", "--lora-rank", "2", "--save-adapter", model="adapter")
    if ended.status == 0:
        run = next(path for path in folder.iterdir() if path.name.endswith("-run"))
        merged, kept = (read_scalar(run / name).arrays for name in ("model", "adapter"))
        for name in merged:
            np.testing.assert_allclose(merged[name], kept[name], atol=1e-6)
    return ended


def with_its_tokenizer(folder: Path) -> None:
    """An adapter's folder with a tokenizer of its own, as TRL saves them, whose end of text is another token."""
    adapter(folder)
    own = tokenizer()
    own.eos_token = own.convert_ids_to_tokens(7)
    own.save_pretrained(folder / "adapter")


def its_tokenizer_is_used(folder: Path, ended: Ended) -> None:
    """And not its base's."""
    from distrl.rlhf.tokenizers import read_tokenizer

    assert read_tokenizer(folder / "adapter").eos_token_id == 7
    assert read_tokenizer(folder / "model").eos_token_id != 7


def _run_directory(folder: Path) -> Ended:
    """What sft left, given to it whole."""
    files(folder)
    kit.save(folder / "model", tokenizer(), "llama")
    command(folder, "sft")
    return command(
        folder, "sft", model=next(one.name for one in folder.iterdir() if one.name.endswith("-run"))
    )


def _pickled_adapter(folder: Path) -> None:
    adapter(folder)
    (folder / "adapter" / "adapter_model.safetensors").rename(folder / "adapter" / "adapter_model.bin")


def _other_base(folder: Path) -> None:
    kit.save(folder / "other", tokenizer(), "llama", hidden_size=64)
    adapter(folder, "../other")


def router_loss(folder: Path, ended: Ended) -> None:
    """It is said, and is a metric."""
    record = json.loads((folder / "sft-run" / "metrics.jsonl").read_text().splitlines()[0])
    assert "auxiliary loss" in ended.err and "added" in ended.err
    assert record["router_loss"] > 1.0


def router_loss_is_not_used(folder: Path, ended: Ended) -> None:
    assert "auxiliary loss" in ended.err and "not used" in ended.err


def mixtures() -> list[Situation]:
    """Mixtures of experts whose configuration asks for the router's loss."""
    asked = {"output_router_logits": True, "router_aux_loss_coef": 0.5}
    return [
        Situation("models", "a router's loss in sft", made("sft", "mixtral", **asked), check=router_loss),
        Situation(
            "models", "a router's loss in ppo", made("ppo", "mixtral", **asked), check=router_loss_is_not_used
        ),
    ]


_PICTURES = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "image_size": 28,
    "patch_size": 14, "num_heads": 4, "depth": 1, "out_hidden_size": 32, "vision_output_dim": 32,
    "projector_input_dim": 32, "projector_output_dim": 32,
}  # fmt: skip
COMPOSITES = {
    "gemma3": "gemma3_text",
    "llama4": "llama4_text",
    "mistral3": "mistral",
    "qwen3_5": "qwen3_5_text",
}


def composite(family: str, name: str) -> Callable[[Path], Ended]:
    """A model that reads pictures too, and a command on it."""

    def run(folder: Path) -> Ended:
        from transformers import AutoConfig, AutoModelForImageTextToText

        files(folder)
        text = kit.config_of(COMPOSITES[family], tokenizer())
        config = AutoConfig.for_model(family, text_config=text.to_dict(), vision_config=_PICTURES)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            AutoModelForImageTextToText.from_config(config).save_pretrained(folder / "model")
        tokenizer().save_pretrained(folder / "model")
        return command(folder, name)

    return run


def text_part_is_saved(folder: Path, ended: Ended) -> None:
    """The saved model is the text part alone, and says so."""
    found = json.loads((folder / "sft-run" / "model" / "config.json").read_text())
    assert found["model_type"] in COMPOSITES.values() and "text part alone" in ended.err


def composites() -> list[Situation]:
    """Models of pictures and text through every command."""
    return [
        Situation(
            "models",
            f"{family} with pictures x {name}",
            composite(family, name),
            "refused" if (family, name) == ("llama4", "reward") else "works",
            check=text_part_is_saved if name == "sft" else None,
            slow=family != "gemma3",
        )
        for family in COMPOSITES
        for name in (*COMMANDS, "eval")
    ]


SITUATIONS: list[Situation] = [*variants(), *composites(), *families(), *adapters(), *mixtures()]
