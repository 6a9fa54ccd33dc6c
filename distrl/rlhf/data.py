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
from distrl.rlhf.tokenizers import completion_tokens, prompt_tokens, render

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
    """What a response answers. `text` is as the model reads it; `fields` are the rest of its line."""

    text: str
    tokens: tuple[int, ...]
    fields: dict[str, Any]


@dataclass(frozen=True)
class Demonstration:
    """A text to imitate, of which the first `num_prompt` tokens are the prompt."""

    tokens: tuple[int, ...]
    num_prompt: int


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
    where: tuple[str, ...] = ()  # file:line of each row; none where rows come from no file

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

        def part(held: bool) -> DataSet[Row]:
            places = [place for place in range(len(self.rows)) if (place in picked) == held]
            where = tuple(self.where[place] for place in places) if self.where else ()
            rows = tuple(self.rows[place] for place in places)
            return DataSet(self.path, rows, self.num_bad, self.num_too_long, where)

        return part(False), part(True)


class Reading(TypedDict, total=False):
    """How any of the three is read."""

    max_tokens: int | None  # of a row's longest text; default: any number
    too_long: TooLong  # what a text above it is: an error, the default, or left out and counted
    skip_bad: bool  # whether corrupt lines are left out and counted
    chat: bool  # whether prompts that are text go into the chat template, as a user's message


def read_prompts(path: str | Path, tokenizer: Any, **how: Unpack[Reading]) -> DataSet[Prompt]:
    """Prompts.

    Raises BadInput for a file that cannot be read, corrupt lines unless `skip_bad`, texts that are too long unless
    `too_long` is "drop", and where nothing is left.
    """

    def make(line: Line, text: str, tokens: tuple[int, ...]) -> tuple[Prompt, int]:
        rest = {name: value for name, value in line.fields.items() if name != "prompt"}
        return Prompt(text, tokens, rest), len(tokens)

    return _read(path, tokenizer, make, **how)


def read_demonstrations(path: str | Path, tokenizer: Any, **how: Unpack[Reading]) -> DataSet[Demonstration]:
    """Prompts with their completions, whose tokens count together. Errors as in `read_prompts`."""

    def make(line: Line, text: str, prompt: tuple[int, ...]) -> tuple[Demonstration, int]:
        tokens = (*prompt, *completion_tokens(tokenizer, _text(line, "completion")))
        return Demonstration(tokens, len(prompt)), len(tokens)

    return _read(path, tokenizer, make, **how)


def read_preferences(path: str | Path, tokenizer: Any, **how: Unpack[Reading]) -> DataSet[Preference]:
    """Prompts with two answers each, either counted with its prompt. Errors as in `read_prompts`."""

    def make(line: Line, text: str, prompt: tuple[int, ...]) -> tuple[Preference, int]:
        chosen, rejected = (
            (*prompt, *completion_tokens(tokenizer, _text(line, name))) for name in ("chosen", "rejected")
        )
        if chosen == rejected:
            raise _Corrupt("chosen and rejected are the same text, and say nothing")
        return Preference(chosen, rejected, len(prompt)), max(len(chosen), len(rejected))

    return _read(path, tokenizer, make, **how)


class _Corrupt(ValueError):
    """What is wrong with a line."""


def _read(
    path: str | Path,
    tokenizer: Any,
    make: Callable[[Line, str, tuple[int, ...]], tuple[Row, int]],
    max_tokens: int | None = None,
    too_long: TooLong = "error",
    skip_bad: bool = False,
    chat: bool = False,
) -> DataSet[Row]:
    """`make` gets a line with its prompt as text and as tokens, and tells the row and the length that counts."""
    rows: list[Row] = []
    places: list[str] = []
    bad: list[str] = []
    long: list[str] = []
    for number, raw in enumerate(_raw_lines(path), start=1):
        if not raw.strip():
            continue
        where = f"{path}:{number}"
        try:
            line = Line(where, _object(raw))
            row, length = make(line, *_prompt(line, tokenizer, chat))
        except _Corrupt as error:
            bad.append(f"{where}: {error}")
            continue
        if max_tokens is not None and length > max_tokens:
            long.append(f"{where}: {length} tokens, the limit is {max_tokens}")
            continue
        rows.append(row)
        places.append(where)
    if bad and not skip_bad:
        raise BadInput(*_some(bad, "mend them, or leave them out and count them with --skip-bad"))
    if long and too_long == "error":
        raise BadInput(*_some(long, "raise the limit, or leave them out and count them with --too-long drop"))
    if not rows:
        raise BadInput(
            f"{path} has nothing to learn from: {len(bad)} corrupt lines, {len(long)} too long, none left"
        )
    return DataSet(str(path), tuple(rows), len(bad), len(long), tuple(places))


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


def _text(line: Line, name: str) -> str:
    """A field that is a text, or one message of the assistant."""
    value = _field(line, name)
    if isinstance(value, list) and len(value) == 1 and _is_message(value[0]):
        value = value[0]["content"]
    if not isinstance(value, str):
        raise _Corrupt(f"{name!r} must be text, this is {_kind(value)}")
    _check_encodes(name, value)
    return value


def _prompt(line: Line, tokenizer: Any, chat: bool) -> tuple[str, tuple[int, ...]]:
    """As text, rendered, and as tokens: one at least."""
    value = _field(line, "prompt")
    if isinstance(value, str) and chat:
        value = [{"role": "user", "content": value}]
    templated = not isinstance(value, str)
    if templated:
        if not (isinstance(value, list) and value and all(map(_is_message, value))):
            raise _Corrupt(
                f"'prompt' must be text or a list of messages with 'role' and 'content', this is {_kind(value)}"
            )
        for message in value:
            _check_encodes("prompt", message["content"])
        text = _rendered(tokenizer, value)
    else:
        _check_encodes("prompt", value)
        text = value
    tokens = prompt_tokens(tokenizer, text, templated)
    if not tokens and tokenizer.bos_token_id is not None:
        tokens = (int(tokenizer.bos_token_id),)
    if not tokens:
        raise _Corrupt("'prompt' is empty, and the tokenizer has no bos_token to begin with")
    return text, tokens


def _rendered(tokenizer: Any, messages: list[dict[str, str]]) -> str:
    try:
        return render(tokenizer, messages)
    except BadInput:
        raise
    except Exception as error:  # a template is code: it raises what it likes
        raise _Corrupt(
            f"the chat template refuses these messages: {type(error).__name__}: {error}"
        ) from error


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
