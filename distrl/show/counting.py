"""A small language model that learns to count, for `distrl show tokens` without a run: seconds of a CPU, nothing fetched.

one two -> three four five .     from demonstrations with slips (SFT), then PPO on `score`
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distrl.maths.random import stream

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
END = "."
SLIPS = 0.25  # share of the demonstrations' words that are any word
DEMONSTRATIONS, ITERATIONS, LONGEST = 2_000, 10, 10


def score(prompt: str, response: str) -> float:
    """A point for each word that counts on from the one before, minus a point for one that does not."""
    words = prompt.split() + response.replace(END, "").split()
    follows = [_next(one) == other for one, other in zip(words[1:], words[2:], strict=False)]
    return float(sum(1 if right else -1 for right in follows))


def _next(word: str) -> str:
    """After the last comes the first."""
    return WORDS[(WORDS.index(word) + 1) % len(WORDS)]


@contextmanager
def run_directory(seed: int) -> Iterator[Path]:
    """A temporary run of `distrl rlhf ppo`, trained in-process; gone at the end."""
    from distrl.resolve import resolve_as
    from distrl.stages.ppo import PPOStage
    from distrl.stages.ppo_config import PPO
    from distrl.stages.session import run_stage

    print("training a small language model to count; give a RUN_DIR to show a run of yours", file=sys.stderr)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="distrl-show-") as folder:
        place = Path(folder)
        _write_model(place / "model", seed)
        prompts = [{"prompt": f"{one} {_next(one)}"} for one in WORDS]
        (place / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
        flags = {
            "model": str(place / "model"), "prompts": str(place / "prompts.jsonl"), "run_dir": str(place / "counting"),
            "reward_function": f"{__name__}:score", "iterations": ITERATIONS, "num_prompts": 96, "max_response": LONGEST,
            "learning_rate": 1e-3, "value_coef": 0.5, "clip_value": None, "critic_rate": 5.0, "beta": 0.1, "seed": seed, "device": "cpu", "tensorboard": False,
            "checkpoint_every": ITERATIONS,
        }  # fmt: skip
        resolved = resolve_as(PPO, flags)
        stage: Any = PPOStage(resolved.config)
        if run_stage(stage, resolved, quiet=True).exit_status:
            raise KeyboardInterrupt
        print(f"trained in {time.monotonic() - started:.0f} s", file=sys.stderr)
        yield place / "counting"


def _write_model(folder: Path, seed: int) -> None:
    """A GPT-2 of two layers after SFT on demonstrations, with its tokenizer."""
    from transformers import GPT2Config

    from distrl.rlhf.data import Demonstration
    from distrl.rlhf.models import new_causal, save
    from distrl.rlhf.options import TrainOptions
    from distrl.rlhf.sft import train_sft

    tokenizer = _tokenizer()
    rows = [Demonstration(tuple([*tokenizer(text)["input_ids"], tokenizer.eos_token_id]), 2) for text in _texts(seed)]  # fmt: skip
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=32, n_embd=32, n_layer=2, n_head=2, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, bos_token_id=tokenizer.eos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    options = TrainOptions(learning_rate=5e-3, batch_size=64, seed=seed)
    save(train_sft(new_causal(config, seed), rows, options=options), folder, tokenizer)


def _tokenizer() -> Any:
    """A token is a word."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: place for place, word in enumerate(["<unk>", "<eos>", END, *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", unk_token="<unk>")


def _texts(seed: int) -> Iterator[str]:
    """Counting on from two words for a while, with slips."""
    generator = stream(seed, "counting", 0)
    for _ in range(DEMONSTRATIONS):
        words = [str(generator.choice(WORDS))]
        for place in range(int(generator.integers(4, LONGEST))):
            slips = place > 0 and generator.random() < SLIPS
            words.append(str(generator.choice(WORDS)) if slips else _next(words[-1]))
        yield " ".join([*words, END])
