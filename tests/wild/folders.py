"""Variants of a model's folder, as they lie on disks: what is missing, damaged, quantised, or asked for of a library.

Each takes a folder that `kit.save` wrote and changes it in place.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Change = Callable[[Path], None]
WEIGHTS = "model.safetensors"


def settings(name: str = "config.json", **more: Any) -> Change:
    """Changes fields of a JSON file; None removes one."""

    def change(folder: Path) -> None:
        found = json.loads((folder / name).read_text()) | more
        (folder / name).write_text(
            json.dumps({key: value for key, value in found.items() if value is not None})
        )

    return change


def both(first: Change, second: Change) -> Change:
    """One after the other."""

    def change(folder: Path) -> None:
        first(folder)
        second(folder)

    return change


def text(name: str, content: str) -> Change:
    """Replaces a file's content."""

    def change(folder: Path) -> None:
        (folder / name).write_text(content)

    return change


def without(*names: str) -> Change:
    """Removes files."""

    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink(missing_ok=True)

    return change


def cut(name: str, size: int) -> Change:
    """Truncates a file."""

    def change(folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:size])

    return change


def arrays(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Change:
    """Changes the weights."""

    def changed(folder: Path) -> None:
        save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})

    return changed


def pickled(folder: Path) -> None:
    """Weights as a pickle alone."""
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def sharded(folder: Path, lost: bool = False) -> None:
    """Two shards with their index; `lost`: without the second."""
    found = load_file(folder / WEIGHTS)
    names = sorted(found)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, some in parts.items():
        save_file({name: found[name] for name in some}, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, some in parts.items() for name in some}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / WEIGHTS).unlink()
    if lost:
        (folder / "model-00002-of-00002.safetensors").unlink()


def quantised(method: str, **more: Any) -> Change:
    """As a quantiser's library marks a folder."""
    return settings(quantization_config={"quant_method": method, **more})


def flipped(folder: Path) -> None:
    """Bytes of the header overwritten."""
    found = bytearray((folder / WEIGHTS).read_bytes())
    found[8:40] = b"\xff" * 32
    (folder / WEIGHTS).write_bytes(bytes(found))


def newer_tokenizer(folder: Path) -> None:
    """A tokenizer.json with a model that this version of tokenizers does not have."""
    found = json.loads((folder / "tokenizer.json").read_text())
    found["model"]["type"] = "BPE2"
    (folder / "tokenizer.json").write_text(json.dumps(found))


NO_HEAD = arrays(lambda found: {name: one for name, one in found.items() if name != "lm_head.weight"})

# of a Llama folder: the change, and words that its refusal has; None: it works
VARIANTS: dict[str, tuple[Change, tuple[str, ...] | None]] = {
    "as it is": (lambda folder: None, None),
    "two shards": (sharded, None),
    "a shard missing": (lambda folder: sharded(folder, lost=True), ("model-00002-of-00002.safetensors",)),
    "an index without shards": (
        both(sharded, without("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")),
        ("no *.safetensors",),
    ),
    "a broken index": (both(sharded, text("model.safetensors.index.json", "{")), ("JSON",)),
    "a pickle alone": (pickled, ("pickled weights are not read",)),
    "no weights": (without(WEIGHTS), ("no *.safetensors",)),
    "no config.json": (without("config.json"), ("config.json",)),
    "config.json is no JSON": (text("config.json", "{'model_type': 'llama'"), ("config.json", "JSON")),
    "config.json is a list": (text("config.json", "[]"), ("config.json", "JSON object")),
    "config.json is empty": (text("config.json", ""), ("config.json", "JSON")),
    "weights cut short": (cut(WEIGHTS, 1000), ("cannot be read",)),
    "weights cut in the data": (cut(WEIGHTS, 100_000), ("cannot be read",)),
    "weights empty": (cut(WEIGHTS, 0), ("cannot be read",)),
    "weights' header damaged": (flipped, ("cannot be read",)),
    "weights are text": (text(WEIGHTS, "version https://git-lfs.github.com/spec/v1\n"), ("cannot be read",)),
    "no head": (NO_HEAD, ("lm_head.weight",)),
    "no head, tied": (both(NO_HEAD, settings(tie_word_embeddings=True)), None),
    "a layer missing": (
        arrays(lambda found: {name: one for name, one in found.items() if "layers.1." not in name}),
        ("lacks parameters",),
    ),
    "an array too many": (arrays(lambda found: found | {"model.extra.weight": torch.zeros(2)}), None),
    "wrong shapes": (settings(intermediate_size=48), ("down_proj",)),
    "wrong width": (settings(hidden_size=64), ("cannot be read",)),
    "more layers": (settings(num_hidden_layers=3), ("lacks parameters",)),
    "names of another family": (settings(model_type="gpt_neox"), ("lacks parameters",)),
    "bfloat16": (arrays(lambda found: {name: one.bfloat16() for name, one in found.items()}), None),
    "float16": (arrays(lambda found: {name: one.half() for name, one in found.items()}), None),
    "not finite": (
        arrays(lambda found: {name: one * float("nan") for name, one in found.items()}),
        ("forward", "not finite"),
    ),
    "bitsandbytes 4 bit": (quantised("bitsandbytes", load_in_4bit=True), ("quantised", "bitsandbytes")),
    "bitsandbytes 8 bit": (quantised("bitsandbytes", load_in_8bit=True), ("quantised", "bitsandbytes")),
    "GPTQ": (quantised("gptq", bits=4, group_size=128), ("quantised", "gptq")),
    "AWQ": (quantised("awq", bits=4), ("quantised", "awq")),
    "compressed-tensors": (
        quantised("compressed-tensors", format="pack-quantized"),
        ("quantised", "compressed-tensors"),
    ),
    "torchao": (quantised("torchao", quant_type="int4_weight_only"), ("quantised", "torchao")),
    "fp8": (quantised("fp8", activation_scheme="dynamic"), ("quantised", "fp8")),
    "mxfp4": (quantised("mxfp4"), ("quantised", "mxfp4")),
    "hqq": (quantised("hqq"), ("quantised", "hqq")),
    "quantised somehow": (settings(quantization_config={"bits": 4}), ("quantised",)),
    "flash-attention asked for": (settings(_attn_implementation="flash_attention_2"), None),
    "flash-attention asked for by its new name": (settings(attn_implementation="flash_attention_2"), None),
    "an unknown attention": (settings(attn_implementation="mine"), None),
    "an unknown rope": (
        settings(rope_parameters={"rope_type": "spiral", "rope_theta": 1e4}),
        ("config.json", "spiral"),
    ),
    "an unknown rope of old": (
        settings(rope_parameters=None, rope_scaling={"type": "spiral", "factor": 2.0}),
        ("config.json", "spiral"),
    ),
    "an unknown activation": (settings(hidden_act="swoosh"), ("config.json", "swoosh")),
    "an unknown family": (settings(model_type="llama9"), ("model_type", "llama9")),
    "no family": (settings(model_type=None), ("model_type",)),
    "a width that is text": (settings(hidden_size="32"), ("hidden_size",)),
    "heads that do not divide": (settings(num_attention_heads=5), ("config.json",)),
    "fewer layers": (settings(num_hidden_layers=1), ("more layers",)),
    "rows that are text": (settings(vocab_size="many"), ("vocab_size",)),
    "fewer rows than weights": (settings(vocab_size=100), ("cannot be read",)),
    "an unknown dtype": (settings(dtype="float7"), ("float7",)),
    "an unknown field": (settings(mine=3), None),
    "code of its own": (
        settings(model_type="mine", auto_map={"AutoConfig": "mine.Config"}),
        ("code of its own",),
    ),
    "generation_config.json is no JSON": (text("generation_config.json", "{"), ("generation_config.json",)),
    "no tokenizer": (without("tokenizer.json", "tokenizer_config.json"), ("tokenizer",)),
    "tokenizer.json is no JSON": (text("tokenizer.json", "{"), ("tokenizer",)),
    "tokenizer.json of a newer library": (newer_tokenizer, ("tokenizer",)),
    "tokenizer.json empty": (text("tokenizer.json", ""), ("tokenizer",)),
    "tokenizer_config.json is no JSON": (text("tokenizer_config.json", "{"), ("tokenizer",)),
    "an unknown tokenizer": (settings("tokenizer_config.json", tokenizer_class="MineTokenizer"), None),
}
