"""Data of RLHF's three stages: JSONL, one object a line.

    prompts         {"prompt": text or messages, ...}                       further fields are a reward function's
    demonstrations  {"prompt": text or messages, "completion": text}
    preferences     {"prompt": text or messages, "chosen": text, "rejected": text}

Messages are [{"role": ..., "content": ...}, ...] and go through the tokenizer's chat template. Completions end with the
end of text. Nothing is cut: a text that is too long is an error, or left out and counted. Whatever is wrong is said
before a model is read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypedDict, TypeVar, Unpack

from distrl.errors import BadInput
from distrl.maths.random import stream
from distrl.rlhf.texts import (
    Message,
    Spans,
    TemplateOptions,
    Text,
    Turns,
    UnusableText,
    demonstration_ids,
    preference_ids,
    prompt_text_and_ids,
)

Row = TypeVar("Row")
New = TypeVar("New")
TooLong = Literal["error", "drop"]
SHOWN = 5  # problems that one error tells


@dataclass(frozen=True)
class Line:
    """An object of a file, and where it stands: file:line."""

    where: str
    fields: dict[str, Any]


@dataclass(frozen=True)
class Prompt:
    """What a response answers. `text` is as the model reads it; `fields` are the rest of its line.

    `messages` are what the chat template rendered it from; None where it was text.
    """

    text: str
    tokens: tuple[int, ...]
    fields: dict[str, Any]
    messages: tuple[Message, ...] | None = None


@dataclass(frozen=True)
class Demonstration:
    """A text to imitate, of which the first `num_prompt` tokens are the prompt.

    `spans` are the half-open ranges of tokens that are learned; none given: all behind the prompt.
    """

    tokens: tuple[int, ...]
    num_prompt: int
    spans: Spans = ()

    @property
    def learned(self) -> Spans:
        """The ranges of tokens that are learned."""
        return self.spans or ((self.num_prompt, len(self.tokens)),)


@dataclass(frozen=True)
class Preference:
    """Two whole texts, prompt and answer; `chosen` is the better one."""

    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    num_prompt: int


@dataclass(frozen=True)
class DataSet(Generic[Row]):
    """What a file gave; `num_bad` lines were corrupt and `num_too_long` too long, and are left out."""

    path: str
    rows: tuple[Row, ...]
    num_bad: int = 0
    num_too_long: int = 0

    def note(self) -> str | None:
        """What to say where something was left out."""
        if not self.num_bad + self.num_too_long:
            return None
        return f"{self.path}: {len(self.rows)} rows; left out: {self.num_bad} corrupt, {self.num_too_long} too long"

    def split(self, share: float, seed: int) -> tuple[DataSet[Row], DataSet[Row]]:
        """Without, and only, a share of the rows held out, at least one; picked by the seed alone."""
        if not 0 < share < 1 or len(self.rows) < 2:
            raise BadInput(
                f"{self.path}: a share of {share} of {len(self.rows)} rows cannot be held out: give a share between 0 "
                "and 1 and two rows or more, or a file of held-out rows"
            )
        count = min(max(round(share * len(self.rows)), 1), len(self.rows) - 1)
        picked = set(stream(seed, "held out").permutation(len(self.rows))[:count].tolist())
        parts = (
            tuple(row for i, row in enumerate(self.rows) if (i in picked) == held) for held in (False, True)
        )
        kept, held = (DataSet(self.path, rows, self.num_bad, self.num_too_long) for rows in parts)
        return kept, held


class Reading(TypedDict, total=False):
    """How any of the three is read."""

    max_tokens: int | None  # of a row's longest text; default: any number
    too_long: TooLong  # what a text above it is: an error, the default, or left out and counted
    skip_bad: bool  # whether corrupt lines are left out and counted
    chat: bool  # whether prompts that are text go into the chat template, as a user's message
    template: TemplateOptions  # or all that is asked of the chat template, `chat` among it
    turns: Turns  # which of the assistant's turns of a demonstration are learned


def read_prompts(path: str | Path, tokenizer: Any, **how: Unpack[Reading]) -> DataSet[Prompt]:
    """Prompts.

    Raises BadInput for a file that cannot be read, corrupt lines unless `skip_bad`, texts that are too long unless
    `too_long` is "drop", and where nothing is left.
    """

    def make(line: Line, template: TemplateOptions, turns: Turns) -> tuple[Prompt, int]:
        value = _prompt(line)
        text, tokens = prompt_text_and_ids(tokenizer, value, template)
        rest = {name: field for name, field in line.fields.items() if name != "prompt"}
        messages = template.messages(value)
        return Prompt(text, tokens, rest, None if messages is None else tuple(messages)), len(tokens)

    return _read(path, make, **how)


def read_demonstrations(path: str | Path, tokenizer: Any, **how: Unpack[Reading]) -> DataSet[Demonstration]:
    """Prompts with their completions, whose tokens count together. Errors as in `read_prompts`."""

    def make(line: Line, template: TemplateOptions, turns: Turns) -> tuple[Demonstration, int]:
        tokens, spans = demonstration_ids(
            tokenizer, _prompt(line), _text(line, "completion"), template, turns
        )
        return Demonstration(tokens, spans[0][0], spans), len(tokens)

    return _read(path, make, **how)


def read_preferences(path: str | Path, tokenizer: Any, **how: Unpack[Reading]) -> DataSet[Preference]:
    """Prompts with two answers each, either counted with its prompt. Errors as in `read_prompts`."""

    def make(line: Line, template: TemplateOptions, turns: Turns) -> tuple[Preference, int]:
        chosen, rejected, shared = preference_ids(
            tokenizer, _prompt(line), _text(line, "chosen"), _text(line, "rejected"), template
        )
        if chosen == rejected:
            raise _Corrupt("chosen and rejected are the same text, and say nothing")
        return Preference(chosen, rejected, shared), max(len(chosen), len(rejected))

    return _read(path, make, **how)


class _Corrupt(ValueError):
    """What is wrong with a line."""


def _read(
    path: str | Path,
    make: Callable[[Line, TemplateOptions, Turns], tuple[Row, int]],
    max_tokens: int | None = None,
    too_long: TooLong = "error",
    skip_bad: bool = False,
    chat: bool = False,
    template: TemplateOptions | None = None,
    turns: Turns = "all",
) -> DataSet[Row]:
    """`make` makes a line's row, and tells the length that counts."""
    if template is None:
        template = TemplateOptions(chat=chat)
    rows: list[Row] = []
    bad: list[str] = []
    long: list[str] = []
    for number, raw in enumerate(_raw_lines(path), start=1):
        if not raw.strip():
            continue
        where = f"{path}:{number}"
        try:
            line = Line(where, _object(raw))
            row, length = make(line, template, turns)
        except (_Corrupt, UnusableText) as error:
            bad.append(f"{where}: {error}")
            continue
        if max_tokens is not None and length > max_tokens:
            long.append(f"{where}: {length} tokens, the limit is {max_tokens}")
            continue
        rows.append(row)
    if bad and not skip_bad:
        raise BadInput(*_some(bad, "mend them, or leave them out and count them with --skip-bad"))
    if long and too_long == "error":
        raise BadInput(*_some(long, "raise the limit, or leave them out and count them with --too-long drop"))
    if not rows:
        raise BadInput(
            f"{path} has nothing to learn from: {len(bad)} corrupt lines, {len(long)} too long, none left"
        )
    return DataSet(str(path), tuple(rows), len(bad), len(long))


def _raw_lines(path: str | Path) -> list[bytes]:
    try:
        return Path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from error


def _object(raw: bytes) -> dict[str, Any]:
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise _Corrupt(f"no JSON: {error}") from error
    if not isinstance(found, dict):
        raise _Corrupt(f"a line must be a JSON object, this is {_kind(found)}")
    return found


def _text(line: Line, name: str) -> Text:
    """A field that is a text, or one message of the assistant."""
    value = _field(line, name)
    if isinstance(value, list) and len(value) == 1 and _is_message(value[0]):
        value = value[0]["content"]
    if not isinstance(value, str):
        raise _Corrupt(f"{name!r} must be text, this is {_kind(value)}")
    _check_encodes(name, value)
    return value


def _prompt(line: Line) -> Text:
    """A field that is a text or messages."""
    value = _field(line, "prompt")
    if isinstance(value, str):
        _check_encodes("prompt", value)
        return value
    if not (isinstance(value, list) and value and all(map(_is_message, value))):
        raise _Corrupt(
            f"'prompt' must be text or a list of messages with 'role' and 'content', this is {_kind(value)}"
        )
    for message in value:
        _check_encodes("prompt", message["content"])
    return value


def _field(line: Line, name: str) -> Any:
    if name not in line.fields:
        raise _Corrupt(f"no field {name!r}; it has {', '.join(map(repr, line.fields)) or 'none'}")
    return line.fields[name]


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("role", "content"))


def _check_encodes(name: str, text: str) -> None:
    """JSON may hold half a surrogate pair, which is no text."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _Corrupt(f"{name!r} is no text that can be encoded: {error.reason}") from error


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _some(problems: Sequence[str], advice: str) -> list[str]:
    """The first problems, how many more there are, and what to do."""
    more = len(problems) - SHOWN
    return [*problems[:SHOWN], *([f"and {more} more lines"] if more > 0 else []), advice]
