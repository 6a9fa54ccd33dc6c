"""Situations: models whose generation is no plain key-value cache, or not what a fast path takes it for; texts near a context's
limit; folders in half precision, with more rows than the tokenizer, and runs continued from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.wild import kit
from tests.wild.hybrids import HYBRIDS
from tests.wild.models import command, files, tokenizer
from tests.wild.situation import Ended, Situation, distrl

FAST = (
    "lfm2",
    "mamba2",
    "recurrent_gemma",
    "rwkv",
    "qwen3_next",
)  # one of each way that hybrids are written with
NO_CRITIC = ("--algo", "rloo", "--group-size", "2")


def ppo(family: str, *more: str, **settings: Any) -> Callable[[Path], Ended]:
    """One iteration, with wide matrices, so that no token is as good as another."""

    def run(folder: Path) -> Ended:
        files(folder)
        kit.save(folder / "model", tokenizer(), family, std=0.1, **settings)
        return grouped(folder, *more)

    return run


def grouped(folder: Path, *more: str) -> Ended:
    small = (
        "--num-prompts",
        "4",
        "--iterations",
        "1",
        "--max-response",
        "6",
        "--minibatches",
        "1",
        *NO_CRITIC,
    )
    reward = ("--reward-function", "tests.rlhf.reward_functions:letters")
    return distrl(
        folder, "rlhf", "ppo", "--model", "model", "--prompts", "prompts.jsonl", *reward, *small, "--run-dir", "run",
        "--no-tensorboard", "--device", "cpu", *more,
    )  # fmt: skip


def record(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "run" / "metrics.jsonl").read_text().splitlines()[0])
    return found


def starts_at_one(folder: Path, ended: Ended) -> None:
    assert record(folder)["first_ratio_deviation"] < 1e-5


def plain_attention(folder: Path, ended: Ended) -> None:
    starts_at_one(folder, ended)
    assert json.loads((folder / "run" / "summary.json").read_text())["paths"]["generation"] == "stored"
    assert "fast path of attention" in ended.err


def near_the_limit(name: str, *more: str, **settings: Any) -> Callable[[Path], Ended]:
    """The second text of each file leaves room for a few tokens of the 64 that the model reads."""

    def run(folder: Path) -> Ended:
        files(folder)
        kit.save(folder / "model", tokenizer(), "gpt2", n_positions=64, **settings)
        long = "x " * 50  # some 50 tokens
        kit.jsonl(folder / "prompts.jsonl", [{"prompt": "the cat"}, {"prompt": long}])
        pairs = [{"prompt": text, "chosen": " four", "rejected": " mat"} for text in ("the cat", long)]
        kit.jsonl(folder / "pairs.jsonl", pairs)
        return command(folder, name, *more)

    return run


def half(folder: Path) -> Ended:
    files(folder)
    kit.save(folder / "model", tokenizer(), "llama", dtype=torch.bfloat16)
    return command(folder, "sft")


def saved_half(folder: Path, ended: Ended) -> None:
    saved = load_file(folder / "sft-run" / "model" / "model.safetensors")
    assert {one.dtype for one in saved.values()} == {torch.bfloat16}
    assert "saved in bfloat16" in ended.err


def from_elsewhere(folder: Path) -> Ended:
    """A reward function in a module beside the data; the run is continued in another folder."""
    place, other = folder / "place", folder / "other"
    other.mkdir(parents=True)
    place.mkdir()
    files(place)
    kit.save(place / "model", tokenizer(), "llama")
    (place / "own_reward_of_place.py").write_text("def score(prompt, response):\n    return len(response)\n")
    first = grouped(place, "--reward-function", "own_reward_of_place:score")
    if first.status:
        return first
    return distrl(other, "rlhf", "ppo", "--resume", str(place / "run"), "--iterations", "2")


def moved(folder: Path) -> Ended:
    first = ppo("llama")(folder)
    if first.status:
        return first
    (folder / "model").rename(folder / "moved")
    return distrl(folder, "rlhf", "ppo", "--resume", "run", "--iterations", "2")


SITUATIONS: list[Situation] = [
    *(
        Situation(
            "models", f"{family}: one iteration of PPO", ppo(family, **HYBRIDS[family][1]), check=starts_at_one,
            slow=family not in FAST,
        )
        for family in HYBRIDS
    ),
    Situation("models", "falcon: sampled as it learns", ppo("falcon"), check=plain_attention),
    Situation(
        "models", "falcon with alibi: sampled as it learns", ppo("falcon", alibi=True), check=plain_attention
    ),
    Situation("models", "falcon: compiled generation", ppo("falcon", "--generation", "compiled"), "refused", ("--generation plain",)),
    *(
        Situation("models", f"{family}: sampled as it learns", ppo(family), check=starts_at_one, slow=True)
        for family in ("bloom", "mpt", "gptj", "codegen", "gpt_neo", "gemma3_text", "phi3")
    ),
    Situation(
        "models", "reward: a prompt near the context's limit", near_the_limit("reward", "--max-response", "64"), "refused",
        ("pairs.jsonl:2", "--max-response", "--no-normalize"),
    ),
    Situation(
        "models", "reward: near the limit, scores as they are", near_the_limit("reward", "--max-response", "64", "--no-normalize")
    ),
    Situation(
        "models", "ppo: a prompt near the context's limit", near_the_limit("ppo", "--max-response", "32"), "refused",
        ("prompts.jsonl:2", "--max-response"),
    ),
    Situation("models", "a folder in bfloat16", half, check=saved_half),
    Situation("models", "a run continued from another folder", from_elsewhere),
    Situation("models", "a run whose model was moved", moved, "refused", ("--model", "is not there")),
]  # fmt: skip
