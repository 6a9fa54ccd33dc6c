"""Situations: models as people bring them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from tests.wild import kit
from tests.wild.folders import VARIANTS, Change
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
    return distrl(folder, "doctor", "--model", model, "--data", "prompts.jsonl", "--max-response", "4", *more)


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


SITUATIONS: list[Situation] = [*variants()]
