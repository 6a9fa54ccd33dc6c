"""A tokenizer trained on the stories and a small GPT of random weights, as a model folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from distrl.maths.random import derive_seed
from distrl.rlhf.models import ModelParts, empty_model, save

PAD, BOS, EOS, UNKNOWN = "<pad>", "<bos>", "<eos>", "<unk>"
LONGEST = 96  # tokens of a text


def train_tokenizer(texts: Iterable[str], max_words: int = 512) -> Any:
    """A token is a word with the space before it, or a full stop: some 300 of them, and text comes back as it was."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    words.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?[A-Za-z]+|[^A-Za-z ]| "), behavior="isolated")
    words.decoder = decoders.Fuse()
    special = [PAD, BOS, EOS, UNKNOWN]
    words.train_from_iterator(
        texts, trainers.WordLevelTrainer(vocab_size=max_words, special_tokens=special, show_progress=False)
    )
    words.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, words.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token=PAD, bos_token=BOS, eos_token=EOS, unk_token=UNKNOWN
    )


def make_folder(folder: Path, tokenizer: Any, layers: int, width: int, seed: int) -> None:
    """A GPT-2 of that size with random weights, and the tokenizer, in transformers' layout."""
    from transformers import GPT2Config

    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=LONGEST, n_embd=width, n_layer=layers, n_head=max(1, width // 16),
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, "weights"))
        save(ModelParts.of(empty_model("causal", config), "causal"), folder, tokenizer)
