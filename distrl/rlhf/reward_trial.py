"""A reward function tried on two rows of the data before a model is read.

There is no response yet, so each row's own prompt stands for one. What cannot depend on the response is refused: a
function that cannot be imported or called, a column that it requires and the data lacks, a name that is not defined,
and what is no score. Anything else that it raises, a response of another kind may not: that is a warning.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from distrl.errors import BadInput, RunFailed
from distrl.rlhf.reward_calls import Outcome, Row, clashes
from distrl.rlhf.reward_pool import Caller, ThreadCaller
from distrl.rlhf.reward_process import FunctionProcess
from distrl.rlhf.rewards import FunctionReward

NUM_ROWS = 2
WHATEVER_THE_RESPONSE = (
    "NameError",
    "UnboundLocalError",
    "ImportError",
    "ModuleNotFoundError",
    "SyntaxError",
)


def try_function(source: FunctionReward) -> list[str]:
    """Warnings. BadInput where it cannot work with this data."""
    try:
        caller = _caller(source)
    except RunFailed as error:  # it ended the process while it was imported
        raise BadInput(str(error)) from error
    try:
        prompts = source.prompts
        problems = clashes(caller.form, [one.fields for one in prompts], [one.read_from for one in prompts])
        if problems:
            raise BadInput(*(f"reward function {source.function!r}: {one}" for one in problems))
        warnings: list[str] = []
        for row, outcome in _outcomes(source, caller):
            if outcome.fault is None:
                continue
            if _is_certain(outcome.fault, row):
                raise BadInput(f"reward function {source.function!r} on a row of the data: {outcome.fault}")
            if not warnings:
                warnings.append(
                    f"reward function {source.function!r} failed where it was tried, with a prompt in the place of a "
                    f"response: {outcome.fault}"
                )
        return warnings
    finally:
        caller.close()


def _caller(source: FunctionReward) -> Caller:
    if source.given is not None:
        return ThreadCaller(source.given, source.timeout_sec)
    return FunctionProcess(source.function, source.timeout_sec)


def _outcomes(source: FunctionReward, caller: Caller) -> Iterator[tuple[Row, Outcome]]:
    rows = [
        Row(one.text, one.text, one.fields, one.messages, one.conversational, one.tokens)
        for one in source.prompts[:NUM_ROWS]
    ]
    for some in [rows] if caller.form.batch else [[row] for row in rows]:
        outcomes, _ = caller.call(some)
        yield from zip(some, outcomes, strict=True)
        if any(one.timed_out for one in outcomes):
            return


def _is_certain(fault: str, row: Row) -> bool:
    """Whether another response would have met the same."""
    kind, _, told = fault.partition(": ")
    if kind == "KeyError":  # a column that is asked for by name
        key = told.strip("'\"")
        return bool(re.fullmatch(r"\w+", key)) and key not in row.columns and key != row.response
    if kind in WHATEVER_THE_RESPONSE:
        return True
    return fault.startswith("returned") and not re.match(r"returned (nan|-?inf)", fault)
