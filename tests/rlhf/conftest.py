"""Tiny language models of five families with random weights, and a tokenizer trained here, as folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

FAMILIES = ("gpt2", "llama", "qwen3", "gpt_neox", "gemma2")
VOCABULARY = 320  # 256 bytes, four special tokens, merges; models have some rows more

SENTENCES = [
    "the cat sat on the mat", "a dog ran in the park", "the bird sang a song", "the fish swam in the sea",
    "one and two are three", "the sun is warm and the moon is cold", "say it again and again", "good morning to all",
]  # fmt: skip
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def train_tokenizer(pad: bool = True) -> Any:
    """Byte-level BPE of VOCABULARY tokens with `<pad>`, `<s>`, `</s>` and a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(SENTENCES * 4, trainer)
    names = {"bos_token": "<s>", "eos_token": "</s>"} | ({"pad_token": "<pad>"} if pad else {})
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, **names)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def family_config(family: str, vocabulary: int = VOCABULARY, **more: Any) -> Any:
    """The configuration of a model of width 32 and 2 layers."""
    import transformers

    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    if family == "gpt2":
        return transformers.GPT2Config(
            vocab_size=vocabulary, n_positions=128, n_embd=32, n_layer=2, n_head=2, **ids, **more
        )
    shape = {
        "vocab_size": vocabulary, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 64, "max_position_embeddings": 128,
    }  # fmt: skip
    if family == "gpt_neox":
        return transformers.GPTNeoXConfig(**shape, **ids, **more)
    classes = {
        "llama": transformers.LlamaConfig,
        "qwen3": transformers.Qwen3Config,
        "gemma2": transformers.Gemma2Config,
    }
    shape |= {"num_key_value_heads": 2, "head_dim": 8}
    if family == "gemma2":
        # soft caps low enough to bend these models' logits, and a window that short texts leave
        shape |= {"final_logit_softcapping": 2.0, "attn_logit_softcapping": 5.0, "sliding_window": 8}
        shape |= {"query_pre_attn_scalar": 8}
    return classes[family](**shape, **ids, **more)


def make_model(family: str, seed: int = 0, spread: float = 0.2, **more: Any) -> Any:
    """A model of random weights, `spread` of them: wide enough that its distributions are far from uniform."""
    from transformers import AutoModelForCausalLM

    config = family_config(family, initializer_range=spread, **more)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return train_tokenizer()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Callable[[str], Path]:
    """Family -> a folder that `save_pretrained` wrote, made when first asked for; not to be written to."""
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp("models") / family
            make_model(family).save_pretrained(made[family])
            tokenizer.save_pretrained(made[family])
        return made[family]

    return folder


@pytest.fixture(scope="session")
def gpt2_folder(model_folder: Callable[[str], Path]) -> Path:
    return model_folder("gpt2")


@pytest.fixture(params=FAMILIES)
def family_folder(request: pytest.FixtureRequest, model_folder: Callable[[str], Path]) -> Path:
    """Of each family in turn."""
    return model_folder(request.param)
