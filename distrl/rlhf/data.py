"""Data of RLHF's three stages: rows of a file, in any format of `data_formats`, as the tokens that a model reads.

    prompts         what a response answers; further columns are a reward function's
    demonstrations  a prompt and its completion, a conversation, or a text
    preferences     a prompt and two answers, of which the first is the better one

A path is a file of any kind that `data_files` reads, a folder of them or a pattern. Nothing is cut: a text that is too
long is an error, or left out and counted. Whatever is wrong is said before a model is read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Literal, TypedDict, TypeVar, Unpack

from distrl.errors import BadInput
from distrl.maths.random import stream
from distrl.rlhf.data_columns import RowReader
from distrl.rlhf.data_files import kind_of, records
from distrl.rlhf.data_formats import Canonical, Job
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
SHOWN = 3  # problems that one error tells
MOST_UNKNOWN = 1000  # rows in no known format, after which the rest of a file is not looked at


@dataclass(frozen=True)
class Prompt:
    """What a response answers. `text` is as the model reads it; `fields` are the rest of its line.

    `messages` are what the chat template rendered it from; None where it was text. `conversational`: the row itself had
    messages. `read_from` are the columns that the prompt itself was read from.
    """

    text: str
    tokens: tuple[int, ...]
    fields: dict[str, Any]
    messages: tuple[Message, ...] | None = None
    conversational: bool = field(default=False, compare=False)
    read_from: tuple[str, ...] = field(default=(), compare=False)


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
    template: TemplateOptions  # or all that is asked of the chat template, `chat` among it
    turns: Turns  # which of the assistant's turns of a demonstration are learned
    field: Mapping[str, str | None]  # the names that a format's columns have in the data


def read_prompts(path: str | Path, tokenizer: Any, **how: Unpack[Reading]) -> DataSet[Prompt]:
    """Prompts.

    Raises BadInput for a file that cannot be read or is in no known format, corrupt rows unless `skip_bad`, texts that
    are too long unless `too_long` is "drop", and where nothing is left.
    """

    def make(row: _Row, template: TemplateOptions, turns: Turns) -> tuple[Prompt, int]:
        value = row.prompt
        text, tokens = prompt_text_and_ids(tokenizer, value, template)
        rest = {name: field for name, field in row.fields.items() if name != "prompt"}
        messages = template.messages(value)
        rendered = None if messages is None else tuple(messages)
        read_from = row.canonical.read_from
        return Prompt(text, tokens, rest, rendered, not isinstance(value, str), read_from), len(tokens)

    return _read(path, "prompts", make, **how)


def read_demonstrations(path: str | Path, tokenizer: Any, **how: Unpack[Reading]) -> DataSet[Demonstration]:
    """Prompts with their completions, whose tokens count together. Errors as in `read_prompts`."""

    def make(row: _Row, template: TemplateOptions, turns: Turns) -> tuple[Demonstration, int]:
        prompt, (completion,) = row.canonical.prompt, row.canonical.answers
        tokens, spans = demonstration_ids(tokenizer, prompt, completion, template, turns)
        return Demonstration(tokens, spans[0][0], spans), len(tokens)

    return _read(path, "demonstrations", make, **how)


def read_preferences(path: str | Path, tokenizer: Any, **how: Unpack[Reading]) -> DataSet[Preference]:
    """Prompts with two answers each, either counted with its prompt. Errors as in `read_prompts`."""

    def make(row: _Row, template: TemplateOptions, turns: Turns) -> tuple[Preference, int]:
        better, worse = row.canonical.answers
        chosen, rejected, shared = preference_ids(tokenizer, row.prompt, better, worse, template)
        if chosen == rejected:
            raise UnusableText("chosen and rejected are the same text, and say nothing")
        return Preference(chosen, rejected, shared), max(len(chosen), len(rejected))

    return _read(path, "preferences", make, **how)


@dataclass(frozen=True)
class _Row:
    """What a row says, and all of its columns."""

    canonical: Canonical
    fields: dict[str, Any]

    def goes_through(self, template: TemplateOptions) -> bool:
        """Whether the chat template is used for it."""
        texts = (self.canonical.prompt, *self.canonical.answers)
        return any(isinstance(one, list) for one in texts) or (template.chat and isinstance(texts[0], str))

    @property
    def prompt(self) -> Text:
        assert self.canonical.prompt is not None, "a format of this job has a prompt"
        return self.canonical.prompt

    def template(self, template: TemplateOptions) -> TemplateOptions:
        """With the row's own `tools` and `chat_template_kwargs`. UnusableText where they are none."""
        tools = _decoded("tools", self.fields.get("tools"), list)
        arguments = _decoded("chat_template_kwargs", self.fields.get("chat_template_kwargs"), dict)
        if tools:
            template = replace(template, tools=tuple(tools))
        return replace(template, arguments={**template.arguments, **arguments}) if arguments else template


def _decoded(name: str, value: Any, kind: type) -> Any:
    """A column that a table keeps as JSON. UnusableText where it is no `kind` once it is one of messages."""
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else None
        except ValueError as error:
            raise UnusableText(f"{name!r} is no JSON: {error}") from error
    if value is not None and not isinstance(value, kind):
        raise UnusableText(f"{name!r} must be {kind_of(kind())}, this is {kind_of(value)}")
    return value


@dataclass
class _Problems:
    """The first of each kind, and how many there are."""

    count: int = 0
    first: dict[str, str] = field(default_factory=dict)  # what is wrong -> where it is first

    def add(self, where: str, problem: str) -> None:
        self.count += 1
        if len(self.first) < SHOWN:
            self.first.setdefault(problem, where)

    def told(self, advice: str) -> list[str]:
        """The first problems, how many more rows have one, and what to do."""
        more = self.count - len(self.first)
        shown = [f"{where}: {problem}" for problem, where in self.first.items()]
        return [*shown, *([f"and {more} more {'row' if more == 1 else 'rows'}"] if more > 0 else []), advice]


def _read(
    path: str | Path,
    job: Job,
    make: Callable[[_Row, TemplateOptions, Turns], tuple[Row, int]],
    max_tokens: int | None = None,
    too_long: TooLong = "error",
    skip_bad: bool = False,
    chat: bool = False,
    template: TemplateOptions | None = None,
    turns: Turns = "all",
    field: Mapping[str, str | None] | None = None,
) -> DataSet[Row]:
    """`make` makes a row's tokens, and tells the length that counts."""
    if template is None:
        template = TemplateOptions(chat=chat)
    reader = RowReader(job, field, template.chat)
    rows: list[Row] = []
    places: list[str] = []
    bad, long, unread = _Problems(), _Problems(), True
    for record in records(path):
        try:
            if record.problem is not None:
                raise UnusableText(record.problem)
            read = _Row(reader.read(record.where, record.fields), record.fields)
            row, length = make(read, read.template(template), turns)
            unread = unread and not read.goes_through(template)
        except UnusableText as error:
            bad.add(record.where, str(error))
            if reader.num_unknown >= MOST_UNKNOWN and reader.format is None:
                break
            continue
        if max_tokens is not None and length > max_tokens:
            long.add(record.where, f"{length} tokens, the limit is {max_tokens}")
            continue
        rows.append(row)
        places.append(record.where)
    if (refusal := reader.refusal()) is not None:
        raise refusal
    if bad.count and not skip_bad:
        raise BadInput(*bad.told("mend them, or leave them out and count them with --skip-bad"))
    if long.count and too_long == "error":
        raise BadInput(*long.told("raise the limit, or leave them out and count them with --too-long drop"))
    if not rows:
        raise BadInput(
            f"{path} has nothing to learn from: {bad.count} corrupt lines, {long.count} too long, none left"
        )
    if unread and template.asked:
        raise BadInput(
            f"{' and '.join(template.asked)}: {path} has text and no messages, and text goes through no chat template: give "
            "--chat, or leave it out"
        )
    return DataSet(str(path), tuple(rows), bad.count, long.count, tuple(places))
