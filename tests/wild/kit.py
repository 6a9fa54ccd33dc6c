"""Tiny models and tokenizers of real families, made on the spot, and the files that commands read.

    save(folder, byte_level(), "llama")                           a causal LM and its tokenizer, as save_pretrained writes them
    save(folder, words(["a", "b"]), "mixtral", dtype=torch.bfloat16)
    jsonl(folder / "prompts.jsonl", [{"prompt": "hello"}])

Models are drawn from a seed and have a few thousand parameters; configurations are the family's own but for their sizes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

CORPUS = [
    "the cat sat on the mat , and the dog ran .",
    "what is two plus two ? the answer is four .",
    "def f ( x ) : return x + 1",
    "hello there , how are you ?",
    "I am fine , thank you !",
    "Übergröße naïve café 東京 Привет",
]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONTEXT = 256  # tokens that every model here reads, where its family has a limit

_ATTENTION = {"num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": CONTEXT}
_SQUARE = {"hidden_size": 32, "intermediate_size": 64, **_ATTENTION}
_SIZES = {**_SQUARE, "num_key_value_heads": 2}
_GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_GEMMA = {**_SIZES, "head_dim": 8, "sliding_window": 16, "query_pre_attn_scalar": 8}
# what makes a family's model tiny; `_SIZES` where a family is not named
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": _SQUARE,
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "codegen": {**_GPT, "rotary_dim": 4},
    "falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    "gemma": {**_SIZES, "head_dim": 8},
    "gemma2": _GEMMA,
    "gemma3_text": {**_GEMMA, "num_hidden_layers": 6},
    "gpt2": _GPT,
    "gpt_bigcode": _GPT,
    "gpt_neo": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 8,
        "max_position_embeddings": CONTEXT,
    },
    "gpt_neox": _SQUARE,
    "gptj": {**_GPT, "rotary_dim": 4},
    "llama": _SIZES,
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8},
    "mistral": _SIZES,
    "mixtral": {**_SIZES, "num_local_experts": 4, "num_experts_per_tok": 2},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "expansion_ratio": 2, "max_seq_len": CONTEXT},
    "olmoe": {**_SIZES, "num_experts": 4, "num_experts_per_tok": 2},
    "opt": {"hidden_size": 32, "ffn_dim": 64, "word_embed_proj_dim": 32, **_ATTENTION},
    "phi": _SQUARE,
    "phi3": _SIZES,
    "qwen2_moe": {**_SIZES, **_EXPERTS, "shared_expert_intermediate_size": 32},
    "qwen3": {**_SIZES, "head_dim": 8},
    "qwen3_moe": {**_SIZES, **_EXPERTS, "head_dim": 8},
    "qwen3_next": {**_SIZES, **_EXPERTS, **_LINEAR, "head_dim": 8, "shared_expert_intermediate_size": 32},
    "rwkv": {"hidden_size": 32, "num_hidden_layers": 2, "context_length": CONTEXT},
    "t5": {"d_model": 32, "d_ff": 64, "num_layers": 2, "num_heads": 4, "d_kv": 8},
}


def byte_level(
    special: Sequence[str] = ("<|endoftext|>",),
    eos: str | None = "<|endoftext|>",
    bos: str | None = None,
    pad: str | None = None,
    template: str | None = None,
    size: int = 400,
    prefix: bool = False,
    **more: Any,
) -> Any:
    """A byte-level BPE tokenizer (GPT-2's, Llama-3's and Qwen's kind): it writes any text."""
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)  # type: ignore[assignment]
    inner.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(CORPUS * 20, trainer)
    tokenizer: Any = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token=eos, bos_token=bos, pad_token=pad, **more
    )
    if template is not None:
        tokenizer.chat_template = template
    return tokenizer


def words(vocabulary: Sequence[str], eos: str | None = "</s>", **more: Any) -> Any:
    """A tokenizer of whole words."""
    from transformers import PreTrainedTokenizerFast

    ids = {word: i for i, word in enumerate(["</s>", "<unk>", *vocabulary])}
    inner = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=eos, unk_token="<unk>", **more)


def config_of(family: str, tokenizer: Any, **more: Any) -> Any:
    """A tiny model's configuration, for that tokenizer; `more` are further fields."""
    from transformers import AutoConfig

    given = {
        **FAMILIES.get(family, _SIZES),
        "vocab_size": max(tokenizer.get_vocab().values()) + 1,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return AutoConfig.for_model(family, **(given | more))


def save(
    folder: str | Path,
    tokenizer: Any,
    family: str = "llama",
    seed: int = 0,
    std: float | None = None,
    dtype: torch.dtype | None = None,
    **more: Any,
) -> Any:
    """Saves a causal LM (T5: its encoder and decoder) and its tokenizer in `folder`; returns the model.

    `std`: the deviation that its matrices are drawn with, instead of the family's own, so that its texts differ.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    config = config_of(family, tokenizer, **more)
    auto: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = auto.from_config(config)
        if std is not None:
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.dim() > 1:
                        parameter.normal_(0, std)
    if dtype is not None:
        model = model.to(dtype)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def jsonl(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> str:
    """Writes rows, one JSON object a line; returns the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)
