"""Columns of a data file: which format they make, what `--field` calls them, and what to say where they make none."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from distrl.errors import BadInput
from distrl.named import nearest
from distrl.rlhf.data_formats import FORMATS, HH_TURN, Canonical, Fields, Format, Job
from distrl.rlhf.texts import UnusableText

# the columns that a format reads; `--field.NAME COLUMN` gives another name to each
COLUMNS = (
    "prompt", "completion", "messages", "conversations", "instruction", "input", "output", "text", "chosen", "rejected",
)  # fmt: skip
PROMPTS = ("prompt", "messages", "conversations", "instruction")  # of them, those that hold a prompt
READ_BY = {"prompts": "rlhf ppo", "demonstrations": "rlhf sft", "preferences": "rlhf reward"}
# what others call them, so that a refusal can name the flag
OTHERS = {
    "prompt": ("question", "query", "problem", "instruction", "input", "prompts", "context", "text", "user"),
    "completion": ("answer", "response", "output", "solution", "completions", "target", "chosen", "label", "assistant"),
    "messages": ("conversation", "dialog", "dialogue", "chat", "conversations"),
    "output": ("response", "answer", "completion", "target"),
    "input": ("context",),
    "chosen": ("chosen_response", "response_chosen", "better", "preferred", "response_j", "winner", "accepted"),
    "rejected": ("rejected_response", "response_rejected", "worse", "dispreferred", "response_k", "loser"),
}  # fmt: skip


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
            if found is None or self._lacks_its_prompt(found, fields):
                self.unknown = self.unknown or (where, fields)
                self.num_unknown += 1
                raise UnusableText(_lacking(fields, self.format or self._nearest(fields)))
            if self.format is not None:
                raise UnusableText(
                    f"it is in another format ({', '.join(found.columns)}) than the rows before "
                    f"({', '.join(self.format.columns)})"
                )
            self.format = found
        row = self.format.read(fields, self.job, self.chat)
        asked = (*row.read_from, *(name for name in self.format.columns if name in PROMPTS))
        return replace(row, read_from=tuple(self.field.get(name) or name for name in asked))

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

    def _lacks_its_prompt(self, found: Format, fields: Fields) -> bool:
        """Whether two answers are no conversations, and a column that may be their prompt stands beside them."""
        return (
            found.columns == ("chosen", "rejected")
            and isinstance(fields["chosen"], str)
            and HH_TURN not in fields["chosen"]
            and any(name in fields for name in OTHERS["prompt"])
        )

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
        if "input_ids" in has:
            return "tokenized data (input_ids)", "give the texts, which the model's own tokenizer reads"
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
        if self.job == "demonstrations" and "instruction" in fields:
            wanted = ("output", "input")  # Alpaca's, but for names
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
    """A column of that name but for a slip."""
    return next(iter(difflib.get_close_matches(name, columns, n=1, cutoff=0.8)), None)


def _lacking(fields: Fields, form: Format) -> str:
    missing = next((name for name in form.columns if name not in fields), "prompt")
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
