"""Formats of public data: a row of any of them -> a prompt and answers, as text or as messages.

    prompt + completion           text or lists of messages
    messages                      [{"role", "content"}, ...]: the assistant's turns are learned; a prompt ends before the last
    conversations                 ShareGPT: [{"from": "human", "value": ...}, {"from": "gpt", ...}]
    instruction (+ input), output Alpaca, in its own template, or as messages with --chat
    text                          learned from beginning to end
    prompt + chosen + rejected    text or messages
    chosen + rejected             whole conversations: what both begin with is the prompt (Anthropic HH as text, or messages)

Which format a file has follows from its columns, once for the file. `docs/data.md` has an example of each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from distrl.errors import BadInput
from distrl.named import nearest
from distrl.rlhf.data_messages import (
    check_encodes,
    is_conversation,
    is_empty,
    messages_of,
    plain_text,
    require_answer,
    text_or_messages,
)
from distrl.rlhf.texts import Message, Text, UnusableText

Job = Literal["prompts", "demonstrations", "preferences"]
Fields = Mapping[str, Any]

# the columns that a format reads; `--field.NAME COLUMN` gives another name to each
COLUMNS = (
    "prompt", "completion", "messages", "conversations", "instruction", "input", "output", "text", "chosen", "rejected",
)  # fmt: skip
READ_BY = {"prompts": "rlhf ppo", "demonstrations": "rlhf sft", "preferences": "rlhf reward"}
# what others call them, so that a refusal can name the flag
OTHERS = {
    "prompt": ("question", "query", "problem", "instruction", "input", "prompts", "context", "text", "user"),
    "completion": ("answer", "response", "output", "solution", "completions", "target", "chosen", "label", "assistant"),
    "messages": ("conversation", "dialog", "dialogue", "chat", "conversations"),
    "chosen": ("chosen_response", "response_chosen", "better", "preferred", "response_j", "winner", "accepted"),
    "rejected": ("rejected_response", "response_rejected", "worse", "dispreferred", "response_k", "loser"),
}  # fmt: skip

ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a response "
    "that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
HH_TURN = "\n\nAssistant:"


@dataclass(frozen=True)
class Canonical:
    """A row as the model's texts are made of it. Without a prompt, the one answer is learned as a whole."""

    prompt: Text | None
    answers: tuple[Text, ...] = ()


@dataclass(frozen=True)
class Format:
    """Columns that make a format, and how a row of it is read for each job; `chat` as `TemplateOptions` has it."""

    name: str
    columns: tuple[str, ...]
    read: Callable[[Fields, Job, bool], Canonical]
    jobs: tuple[Job, ...]


def _prompt(fields: Fields, job: Job, chat: bool) -> Canonical:
    return Canonical(text_or_messages("prompt", fields["prompt"]))


def _prompt_completion(fields: Fields, job: Job, chat: bool) -> Canonical:
    prompt = text_or_messages("prompt", fields["prompt"])
    if job == "prompts":
        return Canonical(prompt)
    if fields.get("label") is False:
        raise UnusableText("its 'label' is false: an answer that was not wanted (unpaired preferences)")
    completion = text_or_messages("completion", fields["completion"])
    return Canonical(prompt, (require_answer("completion", prompt, completion),))


def _conversation(name: str) -> Callable[[Fields, Job, bool], Canonical]:
    def read(fields: Fields, job: Job, chat: bool) -> Canonical:
        messages = messages_of(name, fields[name])
        system = fields.get("system")
        if isinstance(system, str) and system and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": system}, *messages]
        answered = messages[-1]["role"] == "assistant"
        if job == "prompts":
            asked = messages[:-1] if answered else messages
            if not asked:
                raise UnusableText(f"{name!r} has an answer and nothing before it")
            return Canonical(asked)
        if not answered:
            raise UnusableText(
                f"{name!r} ends with the {messages[-1]['role']}'s message: there is no answer to it"
            )
        silent = [n for n, one in enumerate(messages, 1) if one["role"] == "assistant" and is_empty(one)]
        if silent:
            raise UnusableText(f"{name!r} message {silent[0]} is the assistant's, and empty")
        return Canonical(None, (messages,))

    return read


def _alpaca(fields: Fields, job: Job, chat: bool) -> Canonical:
    instruction = plain_text("instruction", fields["instruction"])
    given = fields.get("input")
    more = "" if given is None else plain_text("input", given)
    if fields.get("history"):
        raise UnusableText("its 'history' is not read: give the turns as 'messages'")
    system = fields.get("system") or ""
    prompt: Text
    if chat:
        asked: list[Message] = [
            {"role": "user", "content": f"{instruction}\n\n{more}" if more else instruction}
        ]
        prompt = [{"role": "system", "content": system}, *asked] if system else asked
    elif system:
        raise UnusableText("its 'system' has no place in Alpaca's template: give --chat")
    else:
        template = ALPACA_INPUT if more else ALPACA
        prompt = template.format(instruction=instruction, input=more)
    if job == "prompts":
        return Canonical(prompt)
    return Canonical(prompt, (require_answer("output", prompt, plain_text("output", fields["output"])),))


def _text(fields: Fields, job: Job, chat: bool) -> Canonical:
    text = plain_text("text", fields["text"])
    if not text:
        raise UnusableText("'text' is empty")
    return Canonical(None, (text,))


def _preference(fields: Fields, job: Job, chat: bool) -> Canonical:
    chosen, rejected = (text_or_messages(name, fields[name]) for name in ("chosen", "rejected"))
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise UnusableText("one of 'chosen' and 'rejected' is text and the other a list of messages")
    prompt = text_or_messages("prompt", fields["prompt"]) if fields.get("prompt") is not None else None
    if isinstance(chosen, str) or isinstance(rejected, str):
        assert isinstance(chosen, str) and isinstance(rejected, str)
        if prompt is None:
            return _hh(chosen, rejected, chat)
        return Canonical(prompt, (chosen, rejected))
    if prompt is None or is_conversation(chosen) or is_conversation(rejected):
        shared = _shared(chosen, rejected)
        if prompt is not None and not _asks(shared, prompt):
            raise UnusableText("'prompt' is not what 'chosen' and 'rejected' begin with")
        prompt, chosen, rejected = shared, chosen[len(shared) :], rejected[len(shared) :]
    answers = tuple(
        require_answer(name, prompt, answer, empty=True)
        for name, answer in (("chosen", chosen), ("rejected", rejected))
    )
    return Canonical(prompt, answers)


def _shared(chosen: list[Message], rejected: list[Message]) -> list[Message]:
    """The messages that two conversations begin with: at most all but the last."""
    most = min(len(chosen), len(rejected)) - 1
    shared = next((n for n in range(most) if chosen[n] != rejected[n]), most)
    if not shared:
        raise UnusableText("'chosen' and 'rejected' share no first message, which would be the prompt")
    if chosen[shared]["role"] != "assistant" or rejected[shared]["role"] != "assistant":
        raise UnusableText(f"'chosen' and 'rejected' differ in message {shared + 1}, which is no answer")
    return chosen[:shared]


def _asks(shared: list[Message], prompt: Text) -> bool:
    """Whether a prompt is what a conversation says too."""
    if not isinstance(prompt, str):
        return shared[-len(prompt) :] == prompt
    said = [one.get("content") for one in shared if one["role"] == "user"]
    return any(isinstance(one, str) and one.strip() == prompt.strip() for one in said)


def _hh(chosen: str, rejected: str, chat: bool) -> Canonical:
    """Two whole conversations as text, "\\n\\nHuman: ...\\n\\nAssistant: ..."."""
    same = next(
        (n for n, (a, b) in enumerate(zip(chosen, rejected)) if a != b), min(len(chosen), len(rejected))
    )
    end = chosen[:same].rfind(HH_TURN)
    if end < 0:
        raise UnusableText(
            "no field 'prompt', and 'chosen' and 'rejected' do not begin with one conversation (\"\\n\\nHuman: ... "
            '\\n\\nAssistant:")'
        )
    end += len(HH_TURN)
    prompt, answers = chosen[:end], (chosen[end:], rejected[end:])
    if not chat:
        return Canonical(prompt, answers)
    turns = _hh_messages(prompt.removesuffix(HH_TURN))
    return Canonical(turns, tuple(answer.strip() for answer in answers))


def _hh_messages(text: str) -> list[Message]:
    found: list[Message] = []
    for part in ("\n\n" + text.lstrip()).split("\n\n"):
        role = next(
            (r for sign, r in (("Human:", "user"), ("Assistant:", "assistant")) if part.startswith(sign)),
            None,
        )
        if role is not None:
            found.append({"role": role, "content": part.partition(":")[2].strip()})
        elif found:  # a blank line within a turn
            found[-1]["content"] += f"\n\n{part}"
    if not found:
        raise UnusableText('a conversation must begin with "\\n\\nHuman:"')
    return found


FORMATS = (
    Format("prompts", ("prompt",), _prompt, ("prompts",)),
    Format("demonstrations", ("prompt", "completion"), _prompt_completion, ("demonstrations", "prompts")),
    Format("preferences", ("prompt", "chosen", "rejected"), _preference, ("preferences", "prompts")),
    Format("conversations", ("messages",), _conversation("messages"), ("demonstrations", "prompts")),
    Format("ShareGPT", ("conversations",), _conversation("conversations"), ("demonstrations", "prompts")),
    Format("preferences", ("chosen", "rejected"), _preference, ("preferences", "prompts")),
    Format("Alpaca", ("instruction", "output"), _alpaca, ("demonstrations",)),
    Format("Alpaca", ("instruction",), _alpaca, ("prompts",)),
    Format("plain text", ("text",), _text, ("demonstrations",)),
)


class RowReader:
    """Reads the rows of one file for one job: all in the format of the first that has any."""

    def __init__(self, job: Job, field: Mapping[str, str | None] | None = None, chat: bool = False) -> None:
        self.job: Job = job
        self.field = dict(field or {})
        self.chat = chat
        self.format: Format | None = None
        self.unknown: tuple[str, dict[str, Any]] | None = (
            None  # the first row in no format: its place and columns
        )
        self.misnamed: str | None = None  # the first row without a column that `--field` names
        self.num_unknown = 0

    def read(self, where: str, fields: dict[str, Any]) -> Canonical:
        """Raises UnusableText with what is wrong with the row."""
        try:
            fields = renamed(fields, self.field)
        except UnusableText as error:
            self.misnamed = self.misnamed or f"{where}: {error}"
            self.num_unknown += 1
            raise
        if self.format is None or any(name not in fields for name in self.format.columns):
            found = self._recognized(fields)
            if found is None:
                self.unknown = self.unknown or (where, fields)
                self.num_unknown += 1
                raise UnusableText(_lacking(fields, self.format or self._nearest(fields)))
            if self.format is not None:
                raise UnusableText(
                    f"it is in another format ({', '.join(found.columns)}) than the rows before "
                    f"({', '.join(self.format.columns)})"
                )
            self.format = found
        return self.format.read(fields, self.job, self.chat)

    def _recognized(self, fields: Fields) -> Format | None:
        """Formats that use a column named by `--field` come first, then those without nulls."""
        here = [
            one for one in FORMATS if self.job in one.jobs and all(name in fields for name in one.columns)
        ]
        named = {name for name, column in self.field.items() if column is not None}
        here.sort(
            key=lambda one: (
                not named & set(one.columns), any(fields[name] is None for name in one.columns)
            )
        )  # fmt: skip
        return here[0] if here else None

    def _nearest(self, fields: Fields) -> Format:
        """The job's format of which the most columns are there."""
        of_job = [one for one in FORMATS if self.job in one.jobs]
        return max(of_job, key=lambda one: sum(name in fields for name in one.columns) / len(one.columns))

    def refusal(self) -> BadInput | None:
        """Why no row of the file was read, where none is in a format of the job; None otherwise."""
        if self.format is not None or (self.unknown is None and self.misnamed is None):
            return None
        if self.unknown is None:
            return BadInput(str(self.misnamed))
        where, fields = self.unknown
        wanted = f"`distrl {READ_BY[self.job]}` reads {self.job}"
        looks = self._looks_like(fields)
        if looks:
            return BadInput(f"{where} looks like {looks[0]}, and {wanted}: {looks[1]}")
        shapes = "; ".join(" + ".join(columns) for columns in self._shapes())
        advice = self._flags(fields) or " give the columns' names, such as --field.prompt question"
        has = ", ".join(map(repr, fields)) or "none"
        return BadInput(f"{where} has the columns {has}, and {wanted} ({shapes});{advice}")

    def _shapes(self) -> list[tuple[str, ...]]:
        """The columns of the job's formats, without those that another format is content with fewer of."""
        every = [one.columns for one in FORMATS if self.job in one.jobs]
        return [
            one for one in every if self.job == "preferences" or not any(set(o) < set(one) for o in every)
        ]

    def _looks_like(self, fields: Fields) -> tuple[str, str] | None:
        """Data for another stage, and what to do with it."""
        has = set(fields)
        if self.job == "demonstrations" and {"chosen", "rejected"} <= has:
            flag = (
                "--field.messages chosen"
                if isinstance(fields["chosen"], list)
                else "--field.completion chosen"
                if "prompt" in has
                else "--field.text chosen"
            )
            return (
                "preferences (chosen, rejected)",
                f"learn the better answers with {flag}, or use `distrl rlhf reward`",
            )
        if self.job == "demonstrations" and has == {"prompt"}:
            return (
                "prompts without answers (prompt)",
                "no field 'completion'; use them with `distrl rlhf ppo`",
            )
        for columns in (
            ("prompt", "completion"),
            ("messages",),
            ("conversations",),
            ("instruction", "output"),
        ):
            if self.job == "preferences" and set(columns) <= has:
                return f"demonstrations ({', '.join(columns)})", "two answers are needed, chosen and rejected"
        return None

    def _flags(self, fields: Fields) -> str:
        """` name yours: --field.prompt question`, or nothing where no column has a name that is known."""
        wanted = {
            "prompts": ("prompt",), "demonstrations": ("prompt", "completion"),
            "preferences": ("prompt", "chosen", "rejected"),
        }[self.job]  # fmt: skip
        flags, free = [], [name for name in fields if name not in wanted]
        for name in wanted:
            if name in fields:
                continue
            column = next((one for one in OTHERS[name] if one in free), None) or _near(name, free)
            if column is not None:
                free.remove(column)
                flags.append(f"--field.{name} {column}")
        if len(flags) < sum(name not in fields for name in wanted):
            column = next((one for one in OTHERS["messages"] if isinstance(fields.get(one), list)), None)
            if column is not None and self.job != "preferences":
                return f" name it with --field.messages {column}"
        return f" name yours with {' '.join(flags)}" if flags else ""


def _near(name: str, columns: list[str]) -> str | None:
    guess = nearest(name, columns)
    return guess.split("'")[1] if "'" in guess else None


def _lacking(fields: Fields, form: Format) -> str:
    missing = next(name for name in form.columns if name not in fields)
    has = ", ".join(map(repr, fields)) or "none"
    return f"no field {missing!r}; it has {has}"


def renamed(fields: dict[str, Any], names: Mapping[str, str | None]) -> dict[str, Any]:
    """The row with the columns of `--field` under the names that formats have. UnusableText for one that is not there."""
    if not names:
        return fields
    found = dict(fields)
    for name, column in names.items():
        if column is None:
            found.pop(name, None)
            continue
        value: Any = fields
        for part in [column] if column in fields else column.split("."):
            if not isinstance(value, dict) or part not in value:
                raise UnusableText(
                    f"no field {column!r}, which --field.{name} names{nearest(column, fields)}; it has "
                    f"{', '.join(map(repr, fields)) or 'none'}"
                )
            value = value[part]
        found[name] = value
    return found


def check_field(names: Mapping[str, Any]) -> None:
    """BadInput for a `--field` that no format has, or that names no column."""
    problems = []
    for name, column in names.items():
        if name not in COLUMNS:
            problems.append(
                f"--field.{name}: no such field{nearest(name, COLUMNS)}; the fields are {', '.join(COLUMNS)}"
            )
        elif column is not None and not (isinstance(column, str) and column):
            problems.append(
                f"--field.{name} must be the name of a column, got {column!r}; or none to leave it unread"
            )
    if problems:
        raise BadInput(*problems)


__all__ = ["COLUMNS", "FORMATS", "Canonical", "Job", "RowReader", "check_encodes", "check_field", "renamed"]
