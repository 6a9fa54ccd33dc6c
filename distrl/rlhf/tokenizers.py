"""Between text and tokens: the tokenizer of a model's folder, and what must hold between it and a model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from distrl.errors import BadInput, cause

FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
)  # one of them holds it


class UnusableText(ValueError):
    """What is wrong with a row's text; a file's reader adds file:line."""


def read_tokenizer(folder: str | Path) -> Any:
    """The tokenizer of a folder that `save_pretrained` wrote. BadInput where there is none, or it has no end of text."""
    from transformers import AutoTokenizer

    path = Path(folder)
    if not any((path / name).is_file() for name in FILES):
        raise BadInput(
            f"{path} has no tokenizer (none of {', '.join(FILES)}): save the model's own beside it with save_pretrained"
        )
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise BadInput(f"{path} has no tokenizer that can be read: {unread(error)}") from error
    check_end(tokenizer, str(path))
    return tokenizer


def unread(error: Exception) -> str:
    """Why transformers could not read a folder."""
    told = str(error)
    if "trust_remote_code" in told:
        return (
            "it brings code of its own, which is not run; convert it to a family that transformers has itself"
        )
    return (told.splitlines() or [type(error).__name__])[0]


def check_end(tokenizer: Any, where: str = "the tokenizer") -> None:
    """BadInput for a tokenizer without an end of text: no response could end."""
    if tokenizer.eos_token_id is None:
        raise BadInput(
            f"{where} must have an eos_token, which ends a response: set one with tokenizer.eos_token = ..."
        )


def check_vocabulary(tokenizer: Any, config: Any, where: str = "the model") -> None:
    """BadInput where the model lacks rows for ids of the tokenizer. More rows than ids, as padding leaves, are fine."""
    needed = vocabulary_size(tokenizer)
    rows = int(config.vocab_size)
    if rows < needed:
        raise BadInput(
            f"tokenizer and model differ: the tokenizer has ids up to {needed - 1} and {where} has {rows} rows; give "
            "the model's own tokenizer, or resize its embeddings"
        )


def check_same_tokenizer(one: Any, other: Any, names: tuple[str, str]) -> None:
    """BadInput where two models that read the same token ids would understand different texts."""
    first, second = one.get_vocab(), other.get_vocab()
    if first == second:
        return
    differ = sorted(token for token in first.keys() | second.keys() if first.get(token) != second.get(token))
    told = ", ".join(f"{token!r} is {first.get(token)} and {second.get(token)}" for token in differ[:2])
    raise BadInput(
        f"{names[0]} and {names[1]} must have one tokenizer, theirs differ in {len(differ)} tokens ({told}): "
        f"train {names[1]} from {names[0]}'s folder"
    )


def vocabulary_size(tokenizer: Any) -> int:
    """Rows that a model must have for it: the highest id and one."""
    return int(max(tokenizer.get_vocab().values())) + 1


def padding_note(tokenizer: Any) -> str | None:
    """What to say of a tokenizer without a pad token; None for one that has it."""
    if tokenizer.pad_token_id is not None:
        return None
    return (
        "the tokenizer has no pad token: texts are padded with id 0 behind their last token, where no model looks "
        "and nothing is learned"
    )


def end_tokens(tokenizer: Any, generation: Any = None) -> tuple[int, ...]:
    """Ids that end a response: the tokenizer's, and those of a model's generation configuration.

    transformers makes the latter of generation_config.json, or of config.json where there is none. Ids beyond the
    tokenizer's, a family's default in a smaller vocabulary say, cannot be written and are left out.
    """
    more = getattr(generation, "eos_token_id", None)
    found = more if isinstance(more, list) else [] if more is None else [more]
    size = vocabulary_size(tokenizer)
    return tuple(sorted({int(tokenizer.eos_token_id), *(token for token in found if token < size)}))


def encoded(tokenizer: Any, text: str) -> tuple[int, ...]:
    """Ids of a text, and nothing around it. UnusableText where the tokenizer has none for it."""
    try:
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    except Exception as error:  # e.g. a vocabulary of words without an unknown one
        raise UnusableText(f"the tokenizer cannot encode {text!r:.60}: {cause(error)}") from error


def whole_text(tokenizer: Any, text: str) -> tuple[int, ...]:
    """Ids of a text with the start that the tokenizer adds, where the text has none, and without the end it may add."""
    ids = encoded(tokenizer, text)
    start = _start(tokenizer)
    return ids if ids[: len(start)] == start else (*start, *ids)


def prompt_ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    """Ids of a prompt: those of the text, or the start of text where there are none. UnusableText without one."""
    ids = whole_text(tokenizer, text)
    if not ids and tokenizer.bos_token_id is not None:
        return (int(tokenizer.bos_token_id),)
    if not ids:
        raise UnusableText("'prompt' is empty, and the tokenizer has no bos_token to begin with")
    return ids


def continued(tokenizer: Any, prompt: str, completion: str) -> tuple[tuple[int, ...], int]:
    """Ids of a prompt with its continuation, and how many of them are the prompt's.

    The two are tokenized as one text. Where a token lies across the border between them, it is the continuation's: the
    prompt then ends with the last token that it has with and without a continuation. They are tokenized one by one only
    where that is no text the tokenizer knows: words without a space between them, to a tokenizer of whole words.
    """
    begun = prompt_ids(tokenizer, prompt)
    ids = whole_text(tokenizer, prompt + completion)
    if not prompt and ids[: len(begun)] != begun:
        ids = (*begun, *ids)
    common = shared(begun, ids)
    apart = (*begun, *encoded(tokenizer, completion))
    unknown = tokenizer.unk_token_id
    if not common or (unknown is not None and ids.count(unknown) > apart.count(unknown)):
        return apart, len(begun)
    return ids, common


def ended(tokenizer: Any, ids: Sequence[int], ends: Sequence[int | None] = ()) -> tuple[int, ...]:
    """The ids, and an end of text where they have no end."""
    if ids and ids[-1] in (tokenizer.eos_token_id, *ends):
        return tuple(ids)
    return (*ids, int(tokenizer.eos_token_id))


def shared(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many elements two sequences begin with alike."""
    if one == other[: len(one)]:
        return len(one)
    return next((n for n, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), len(other))


def added_ids(tokenizer: Any) -> frozenset[int]:
    """Ids of tokens that were put into a vocabulary beside the text's: ends, roles, pads."""
    try:
        return frozenset(map(int, tokenizer.added_tokens_decoder))
    except NotImplementedError:  # mistral-common's
        return frozenset(map(int, tokenizer.all_special_ids))


@lru_cache(maxsize=16)
def _start(tokenizer: Any) -> tuple[int, ...]:
    """What the tokenizer puts in front of a text."""
    inner = encoded(tokenizer, "a")
    around = tuple(tokenizer("a")["input_ids"])
    places = range(len(around) - len(inner) + 1)
    return around[: next((at for at in places if around[at : at + len(inner)] == inner), 0)]
