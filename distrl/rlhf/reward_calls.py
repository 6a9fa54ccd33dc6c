"""What a reward function may look like, how it is called, and what it may return. Imports neither torch nor a tokenizer.

    one response   f(prompt, response, **columns) -> score        `completion` is another name of `response`
    a batch        f(prompts, completions, **columns) -> scores   as TRL calls it: all by name, each column a list

The form follows from the names of the parameters. A function gets the columns of the data that it has parameters for,
or all with **columns; None where a row lacks one that it requires. It may be async. A score is a number, None (this
function does not score that response), or a dict of `score` and further numbers, which are logged.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import numbers
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

from distrl.errors import BadInput, cause, translated

ONE = ("response", "completion")
MANY = ("completions", "responses")
BATCH = ("prompts", *MANY, "completion_ids")
TRAINER = ("trainer_state", "log_extra", "log_metric")  # what TRL hands over beside the columns
FORMS = "(prompt, response, **columns) or (prompts, completions, **columns)"
WRAP = "give a function that calls it: def score(prompt, response): return judge(prompt, response)"
LARGEST = 3.4028234663852886e38  # that float32 holds


@dataclass(frozen=True)
class Row:
    """A response to be scored. `messages` are its prompt's, where it went through a chat template.

    `conversational`: the data had messages, so that a batch function gets messages for prompts and completions.
    """

    prompt: str
    response: str
    columns: Mapping[str, Any] = field(default_factory=dict)
    messages: Sequence[Mapping[str, Any]] | None = None
    conversational: bool = False
    ids: Sequence[int] = ()  # tokens of the response, its end included


@dataclass(frozen=True)
class Outcome:
    """What became of a row: a score, none because the function does not score it (`skipped`), or none because of a fault."""

    score: float = math.nan
    skipped: bool = False
    fault: str | None = None
    timed_out: bool = False
    extras: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Form:
    """How a function is called. `takes` are its parameters' names; None: any, by **columns.

    `given` are the names that a response and what belongs to it arrive under: no column of the data may have them
    but those that the prompt was read from.
    `first`: prompt and response go first, by position. `required` are the parameters that the data must have as columns.
    """

    batch: bool
    first: bool
    given: tuple[str, ...]
    takes: tuple[str, ...] | None
    required: tuple[str, ...] = ()


def form_of(function: Callable[..., Any]) -> Form:
    """Of its signature. BadInput for one that fits neither form."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # written in C
        return Form(False, True, (), ())
    parameters = [*signature.parameters.values()]
    open_ended = any(one.kind is one.VAR_KEYWORD for one in parameters)
    named = [one for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
    places = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    names = [one.name for one in named]
    first, given = False, []
    batch = any(name in BATCH for name in names) or (open_ended and len(parameters) == 1)
    if batch:
        given = [*BATCH[:2], "completion_ids", *TRAINER] if open_ended else []
        given += [name for name in (*BATCH, *TRAINER, "messages") if name in names]
    else:
        told = next((name for name in ONE if name in names), None)
        by_name = {"prompt", "messages"} & {*names} or places[:1] == [signature.parameters.get(told or "")]
        if told is not None and by_name:
            given = [told, *(["prompt"] if "prompt" in names or open_ended else [])]
        elif len(places) >= 2 or any(one.kind is one.VAR_POSITIONAL for one in parameters):
            first, given = True, [one.name for one in places[:2]]
        else:
            raise BadInput(f"must take {FORMS}, and it takes {signature}")
        given += ["messages"] if "messages" in names else []
    required = [one.name for one in named if one.default is one.empty and one.name not in given]
    return Form(
        batch, first, tuple(dict.fromkeys(given)), None if open_ended else tuple(names), tuple(required)
    )


def as_function(found: Any) -> Callable[..., Any]:
    """A class is made an object, without arguments, that is called. BadInput where it cannot be, or is not callable."""
    if not inspect.isclass(found):
        return cast("Callable[..., Any]", found)
    if "__call__" not in dir(found):
        raise BadInput(f"is the class {found.__name__}, whose objects cannot be called; give it a __call__")
    try:
        made: Any = found()
    except Exception as error:  # a user's __init__ may raise anything
        raise BadInput(
            f"is the class {found.__name__}, whose constructor fails without arguments ({cause(error)}); name an "
            "instance of it"
        ) from error
    return cast("Callable[..., Any]", made)


class Callee:
    """A function with its form. `call` never raises; calls come one at a time and from one thread."""

    def __init__(self, function: Callable[..., Any]) -> None:
        with translated("could not be inspected", WRAP):  # its attributes are code of the user's
            self.function: Callable[..., Any] = as_function(function)
            self.form = form_of(self.function)
        self._runner: asyncio.Runner | None = None

    def call(self, rows: Sequence[Row], step: int) -> tuple[list[Outcome], dict[str, float]]:
        """An outcome for each row and the metrics that it logged by itself; one row, where its form is of one."""
        logged: dict[str, float] = {}
        extras: list[dict[str, float]] = [{} for _ in rows]
        try:
            arguments, named = self._arguments(rows, step, logged, extras)
            value = self.function(*arguments, **named)
            if inspect.isawaitable(value):
                value = self._await(value)
            found = outcomes_of(value, len(rows)) if self.form.batch else [outcome_of(value)]
        except (
            BaseException
        ) as error:  # whatever a user's function raises, exits included, is its rows' fault
            return [Outcome(fault=cause(error)) for _ in rows], {}
        return [
            Outcome(one.score, one.skipped, one.fault, False, {**more, **one.extras})
            for one, more in zip(found, extras, strict=True)
        ], logged

    def _await(self, value: Any) -> Any:
        async def finish() -> Any:
            return await value

        if self._runner is None:  # one loop for all calls: sessions that a function keeps belong to it
            self._runner = asyncio.Runner()
        return self._runner.run(finish())

    def _arguments(
        self, rows: Sequence[Row], step: int, logged: dict[str, float], extras: list[dict[str, float]]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        form = self.form
        if form.batch:
            given = {
                "prompts": [list(row.messages or ()) if row.conversational else row.prompt for row in rows],
                "completions": [_completion(row) for row in rows],
                "completion_ids": [list(row.ids) for row in rows],
                "messages": [row.messages for row in rows],
                "trainer_state": SimpleNamespace(global_step=step),
                "log_metric": lambda name, value: logged.__setitem__(str(name), float(value)),
                "log_extra": lambda name, values: _log_extra(extras, str(name), values),
            }
            given["responses"] = given["completions"]
            names = dict.fromkeys(name for row in rows for name in row.columns)
            columns: dict[str, Any]
            columns = {name: [row.columns.get(name) for row in rows] for name in self._taken(names)}
            columns |= {name: [None] * len(rows) for name in form.required if name not in columns}
            return (), columns | {name: given[name] for name in form.given}
        (row,) = rows
        columns = {name: row.columns[name] for name in self._taken(row.columns)}
        columns |= {name: None for name in form.required if name not in columns}
        one = {"prompt": row.prompt, **dict.fromkeys(ONE, row.response), "messages": row.messages}
        if form.first:
            told = {"messages": row.messages} if "messages" in form.given else {}
            return (row.prompt, row.response), columns | told
        return (), columns | {name: one[name] for name in form.given}

    def _taken(self, names: Any) -> list[str]:
        """The columns that the function gets. One that it gets by a name of its own was read as the prompt."""
        form = self.form
        return [
            name for name in names if name not in form.given and (form.takes is None or name in form.takes)
        ]


def _completion(row: Row) -> Any:
    return [{"role": "assistant", "content": row.response}] if row.conversational else row.response


def _log_extra(extras: list[dict[str, float]], name: str, values: Sequence[Any]) -> None:
    for row, value in zip(extras, values, strict=True):
        if isinstance(value, numbers.Real):
            row[name] = float(value)


def outcome_of(value: Any) -> Outcome:
    """Of what a function returned for one response."""
    if value is None:
        return Outcome(skipped=True)
    if not isinstance(value, Mapping):
        return _number(value)
    if "score" not in value:
        told = ", ".join(map(repr, [*value][:5])) or "nothing"
        return Outcome(fault=f"returned a dict without 'score': it has {told}")
    found = outcome_of(value["score"])
    extras = {str(name): _number(one).score for name, one in value.items() if name != "score"}
    kept = {name: one for name, one in extras.items() if math.isfinite(one)}
    return Outcome(found.score, found.skipped, found.fault, False, {**kept, **found.extras})


def outcomes_of(value: Any, count: int) -> list[Outcome]:
    """Of what a function returned for a batch: a list, an array, or a dict of lists with `score`."""
    if isinstance(value, Mapping) and "score" in value:
        columns = {str(name): _listed(one) for name, one in value.items()}
        several = {name: one for name, one in columns.items() if one is not None and len(one) == count}
        if "score" in several:
            rows = zip(*several.values(), strict=True)
            return [outcome_of(dict(zip(several, row, strict=True))) for row in rows]
        value = value["score"]
    found = _listed(value)
    if found is None:
        fault = f"returned {_kind(value)}, not a list of {count} scores"
    elif len(found) != count:
        fault = f"returned {len(found)} scores for {count} completions"
    else:
        return [outcome_of(one) for one in found]
    return [Outcome(fault=fault)] * count


def _listed(value: Any) -> list[Any] | None:
    if type(value).__module__ != "builtins" and callable(getattr(value, "tolist", None)):
        value = value.tolist()  # an array of NumPy's or torch's
    if isinstance(value, str | bytes | Mapping) or not hasattr(value, "__iter__"):
        return None
    return list(value)


def _number(value: Any) -> Outcome:
    if type(value).__module__ != "builtins" and callable(getattr(value, "item", None)):
        value = value.item()  # a scalar of NumPy's or torch's
    if not isinstance(value, numbers.Real):
        return Outcome(fault=f"returned {_kind(value)}, not a number")
    try:
        score = float(value)
    except OverflowError:
        return Outcome(fault="returned a number that no float holds")
    if not math.isfinite(score):
        return Outcome(fault=f"returned {score}")
    if abs(score) > LARGEST:
        return Outcome(fault=f"returned {score:g}, more than float32 holds")
    return Outcome(score)


def _kind(value: Any) -> str:
    return f"{type(value).__name__} {str(value)[:40]!r}"


def clashes(
    form: Form, columns: Sequence[Mapping[str, Any]], read: Sequence[Collection[str]] = ()
) -> list[str]:
    """What is wrong between a function's parameters and the data's columns, each in a line.

    `read` are the columns that each row's prompt was read from: as such the function gets them.
    """
    names = dict.fromkeys(name for row in columns for name in row)
    free = {
        name
        for row, mine in zip(columns, read or [()] * len(columns), strict=True)
        for name in row
        if name not in mine
    }
    found = [
        f"the data's column {name!r} has the name under which the function gets what was written; rename the column"
        for name in names
        if name in form.given and name in free
    ]
    missing = [name for name in form.required if name not in names]
    if missing:
        told = ", ".join(map(repr, missing))
        has = ", ".join(map(repr, names)) or "none beside the prompt"
        found.append(f"requires {told}, and the data has no such column; it has {has}")
    return found
