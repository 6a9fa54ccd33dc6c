"""Between text and tokens: the tokenizer of a model's folder, and what must hold between it and a model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from distrl.errors import BadInput, cause, translated
from distrl.rlhf.adapters import base_of
from distrl.rlhf.folders import CONFIG, OWN_CODE, configuration, require_model_folder

MARK = "\ue005\ue00f\ue005"  # private characters, in no text and in no template
FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "tekken.json",
)  # one of them holds it


class UnusableText(ValueError):
    """What is wrong with a row's text; a file's reader adds file:line."""


def read_tokenizer(folder: str | Path) -> Any:
    """The tokenizer of a folder that `save_pretrained` wrote. BadInput where there is none, or it has no end of text."""
    from transformers import AutoTokenizer

    path = require_model_folder(folder)
    if not _has_one(path):
        path = base_of(path)
    if not _has_one(path):
        raise BadInput(
            f"{path} has no tokenizer (none of {', '.join(FILES)}): save the model's own beside it with save_pretrained"
        )
    if (path / CONFIG).is_file():
        configuration(path)  # transformers reads it too, and would not name it
    with translated(f"{path} has no tokenizer that can be read by tokenizers {version('tokenizers')}"):
        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(
                path, local_files_only=True, trust_remote_code=False
            )
        except ValueError as error:
            if "trust_remote_code" in str(error):
                raise BadInput(f"{path}: its tokenizer {OWN_CODE}") from error
            raise
    check_end(tokenizer, str(path))
    return tokenizer


def _has_one(path: Path) -> bool:
    return any((path / name).is_file() for name in FILES)


def check_end(tokenizer: Any, where: str = "the tokenizer") -> None:
    """BadInput for a tokenizer without an end of text: no response could end."""
    if tokenizer.eos_token_id is None:
        raise BadInput(
            f"{where} must have an eos_token, which ends a response: set one with tokenizer.eos_token = ..."
        )


def check_vocabulary(tokenizer: Any, config: Any, where: str = "the model") -> None:
    """BadInput where the model lacks rows for ids of the tokenizer. More rows than ids, as padding leaves, are fine.

    So are added tokens without a row (such as an image's) that end no text: `check_rows` looks whether a text has them.
    """
    needed, rows = vocabulary_size(tokenizer), _rows(config)
    if rows >= needed:
        return
    without = {token: index for token, index in tokenizer.get_vocab().items() if index >= rows}
    if set(without.values()) <= added_ids(tokenizer) and int(tokenizer.eos_token_id) < rows:
        return
    raise BadInput(
        f"tokenizer and model differ: the tokenizer has ids up to {needed - 1} and {where} has {rows} rows; give "
        "the model's own tokenizer, or resize its embeddings"
    )


def check_rows(tokenizer: Any, config: Any, texts: Iterable[Sequence[int]], where: str = "the model") -> None:
    """BadInput where a text has a token that the model has no row for."""
    rows = _rows(config)
    if rows >= vocabulary_size(tokenizer):
        return
    for number, ids in enumerate(texts, 1):
        if (highest := max(ids, default=0)) >= rows:
            token = tokenizer.convert_ids_to_tokens(highest)
            raise BadInput(
                f"row {number} has the token {token!r}, whose id {highest} {where} with {rows} rows does not have; leave "
                "the token out, or resize the model's embeddings"
            )


def usable_ids(tokenizer: Any, config: Any) -> int:
    """Ids that a model may write: those of the tokenizer that it has rows for."""
    return min(vocabulary_size(tokenizer), _rows(config))


def _rows(config: Any) -> int:
    return int(config.get_text_config().vocab_size)


def reads_alike(one: Any, other: Any) -> bool:
    """Whether a model of the other tokenizer reads the first one's ids as the same text.

    The other may have more tokens, such as a pad. A pad that it lacks is no difference: texts are padded where no model looks.
    """
    return not _differences(one, other)


def check_same_tokenizer(one: Any, other: Any, names: tuple[str, str]) -> None:
    """BadInput where two models that read the same token ids would understand different texts."""
    first, second = one.get_vocab(), other.get_vocab()
    differ = _differences(one, other)
    if not differ:
        return
    told = ", ".join(f"{token!r} is {first.get(token)} and {second.get(token)}" for token in differ[:2])
    raise BadInput(
        f"{names[0]} and {names[1]} must have one tokenizer, theirs differ in {len(differ)} tokens ({told}): "
        f"train {names[1]} from {names[0]}'s folder"
    )


def _differences(one: Any, other: Any) -> list[str]:
    """Tokens of the first that the other reads otherwise, or not at all."""
    first, second = one.get_vocab(), other.get_vocab()
    taken = set(second.values())
    pads = {one.pad_token} - {one.eos_token, one.bos_token, one.unk_token}
    return sorted(
        token
        for token, index in first.items()
        if second.get(token) != index and not (token in pads and token not in second and index not in taken)
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
    """Ids that end a response: the tokenizer's, the chat template's, and those of a model's generation configuration.

    transformers makes the latter of generation_config.json, or of config.json where there is none. Ids beyond the
    tokenizer's, such as a family's default in a smaller vocabulary, cannot be written and are left out.
    """
    more = getattr(generation, "eos_token_id", None)
    found = [*more] if isinstance(more, list) else [] if more is None else [more]
    if tokenizer.chat_template and (end := template_end(tokenizer, str(tokenizer.chat_template))) is not None:
        found.append(end)
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
    prompt then ends with the last token that it has with and without a continuation (its first one where that is none).
    They are tokenized one by one only where that is no text the tokenizer knows: words without a space between them, to
    a tokenizer of whole words.
    """
    begun = prompt_ids(tokenizer, prompt)
    ids = whole_text(tokenizer, prompt + completion)
    if not prompt and ids[: len(begun)] != begun:
        ids = (*begun, *ids)
    apart = (*begun, *encoded(tokenizer, completion))
    unknown = tokenizer.unk_token_id
    if unknown is not None and ids.count(unknown) > apart.count(unknown):
        return apart, len(begun)
    return ids, max(shared(begun, ids), 1)


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


@lru_cache(maxsize=16)
def content_forms(tokenizer: Any, template: str) -> frozenset[str]:
    """Which forms of a message's content its chat template reads: "text", "parts" or both."""
    forms = {"text": MARK, "parts": [{"type": "text", "text": MARK}]}
    quoted = tuple(
        f"{one}text{one}:{gap}{one}" for one in "'\"" for gap in (" ", "")
    )  # a list, written as one
    found = set()
    for name, content in forms.items():
        before, mark, _ = (_shown(tokenizer, [{"role": "user", "content": content}]) or "").partition(MARK)
        if mark and not before.endswith(quoted):
            found.add(name)
    return frozenset(found or {"text"})


@lru_cache(maxsize=16)
def template_end(tokenizer: Any, template: str) -> int | None:
    """The token that its chat template ends the assistant's turn with; None where there is none."""
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": MARK},
    ]
    if "text" not in content_forms(tokenizer, template):
        messages = [{**one, "content": [{"type": "text", "text": one["content"]}]} for one in messages]
    shown = _shown(tokenizer, messages)
    if shown is None or MARK not in shown:
        return None
    special = added_ids(tokenizer)
    return next((token for token in encoded(tokenizer, shown.rpartition(MARK)[2]) if token in special), None)


def _shown(tokenizer: Any, messages: list[dict[str, Any]]) -> str | None:
    """As its chat template writes them; None where it refuses."""
    try:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False)
    except Exception:  # a template is code: it raises what it likes
        return None
    return text
