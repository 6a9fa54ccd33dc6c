"""What the RLHF runners share: the models, the prompts, the tokenizer, and the recipe. No distrl in it.

GPT-2 of 4 layers, 128 wide, vocabulary 512 (0.88 M parameters), random weights; 64 prompts of 16 tokens an iteration,
32 new tokens to each, none of which ends a response: every contestant writes and learns from 64 x 32 tokens.
"""

from __future__ import annotations

import argparse
import json
from importlib.metadata import version
from typing import Any

import torch

VOCABULARY, WIDTH, LAYERS = 512, 128, 4
PROMPT, NEW, RESPONSES = 16, 32, 64
PAD, EOS = 510, 511
GROUP = 8  # responses to a prompt, where they are compared with one another
RECIPE = {
    "lr": 1e-5,
    "kl": 0.05,
    "gamma": 1.0,
    "lam": 0.95,
    "clip": 0.2,
    "value_coef": 0.1,
    "temperature": 1.0,
}
GRPO_BETA = 0.04


def arguments(description: str | None) -> argparse.ArgumentParser:
    """What all RLHF runners take."""
    parser = argparse.ArgumentParser(description=(description or "").split("\n")[0], allow_abbrev=False)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20.0, help="length of the measured window")
    parser.add_argument("--warmup", type=float, default=5.0, help="seconds before the window")
    parser.add_argument("--threads", type=int, default=2)
    return parser


def config() -> Any:
    """The model's."""
    from transformers import GPT2Config

    return GPT2Config(
        vocab_size=VOCABULARY, n_positions=PROMPT + NEW, n_embd=WIDTH, n_layer=LAYERS, n_head=4, num_labels=1,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, summary_first_dropout=0.0,
        pad_token_id=PAD, bos_token_id=EOS, eos_token_id=EOS,
    )  # fmt: skip


def causal(seed: int = 1) -> Any:
    """A causal LM."""
    from transformers import GPT2LMHeadModel

    torch.manual_seed(seed)
    return GPT2LMHeadModel(config())


def scalar(seed: int = 2) -> Any:
    """A sequence classifier with one label: a reward model, a critic."""
    from transformers import GPT2ForSequenceClassification

    torch.manual_seed(seed)
    return GPT2ForSequenceClassification(config())


def prompts(count: int, seed: int = 3) -> list[list[int]]:
    """Random tokens, neither pad nor end."""
    generator = torch.Generator().manual_seed(seed)
    found: list[list[int]] = torch.randint(0, PAD, (count, PROMPT), generator=generator).tolist()
    return found


def tokenizer() -> Any:
    """A word is a number, and its token is that number."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {str(number): number for number in range(PAD)} | {"<pad>": PAD, "<eos>": EOS}
    own = Tokenizer(models.WordLevel(words, unk_token="0"))
    own.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=own, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )


def small_token_share(completion: list[int]) -> float:
    """The reward where it is a function: how many of the tokens are below 100."""
    return sum(token < 100 for token in completion) / max(len(completion), 1)


def tell(peer: str, package: str, window: Any, options: argparse.Namespace) -> None:
    """The JSON line of one measurement."""
    line = {
        "peer": peer,
        "version": version(package),
        "tokens": window.env_steps,
        "seconds": round(window.seconds, 3),
        "cpu_seconds": round(window.cpu_seconds, 3),
        "tokens_per_sec": round(window.env_steps / window.seconds, 1),
        "settings": vars(options) | {"torch": version("torch"), "transformers": version("transformers")},
    }
    print(json.dumps(line), flush=True)
