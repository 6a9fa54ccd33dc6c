"""A situation: what somebody brings, the command they type, and how it must end.

    works     exit status 0, and `check` (where given) finds the right values
    refused   exit status 2 before compute is spent, in one error per problem, without a traceback
    ended     exit status 1 in one line, without a traceback: what only shows while the run goes on

Anything else is a failure. `benchmarks/wild.py` counts them by area; `tests/wild/test_wild.py` holds each.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

AREAS = ("models", "tokenizers", "data", "rewards", "environments")
Expected = Literal["works", "refused", "ended"]
STATUS = {0: "works", 2: "refused", 1: "ended"}
MOST_LINES = 6  # of a refusal: a heading, and a few problems at once


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit status and what it printed."""

    status: int
    out: str
    err: str


@dataclass(frozen=True)
class Situation:
    """`run` is given an empty folder, prepares it, and runs one command or several, the last of which counts.

    `says` are words that a refusal must contain: the field or the part that is named, not a whole sentence.
    """

    area: str
    name: str
    run: Callable[[Path], Ended]
    expected: Expected = "works"
    says: tuple[str, ...] = ()
    check: Callable[[Path, Ended], None] | None = field(default=None, compare=False)
    slow: bool = False

    @property
    def id(self) -> str:
        return f"{self.area}: {self.name}"


@dataclass(frozen=True)
class Verdict:
    """`kind` is how it ended ("works", "refused", "ended") or "fails", with the reason in `why`."""

    kind: str
    why: str = ""
    said: str = ""  # the first problem that a refusal names


def every() -> list[Situation]:
    """Those of all modules of this folder, by module and in the order in which they stand there."""
    found: list[Situation] = []
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if not path.stem.startswith("test_") and path.stem != Path(__file__).stem:
            module = importlib.import_module(f"tests.wild.{path.stem}")
            found += getattr(module, "SITUATIONS", [])
    return found


def judge(situation: Situation, folder: Path) -> Verdict:
    """Runs the situation in `folder` and says how it ended."""
    try:
        ended = situation.run(folder)
    except Exception:
        return Verdict("fails", f"raised:\n{traceback.format_exc()}")
    kind = STATUS.get(ended.status)
    if kind is None:
        return Verdict("fails", f"exit status {ended.status}:\n{ended.err[-2000:]}")
    for word in ("Traceback (most recent call last)", "unexpected error"):
        if word in ended.err or word in ended.out:
            return Verdict("fails", f"{word!r} in its output:\n{ended.err[-3000:]}")
    if kind != situation.expected:
        return Verdict("fails", f"{kind}, not {situation.expected}:\n{ended.err[-2000:]}")
    if kind == "refused" and len(ended.err.strip().splitlines()) > MOST_LINES:
        return Verdict("fails", f"a refusal of more than {MOST_LINES} lines:\n{ended.err[-3000:]}")
    missing = [word for word in situation.says if word not in ended.err]
    if missing:
        return Verdict("fails", f"does not say {missing}:\n{ended.err[-2000:]}")
    if situation.check is not None:
        try:
            situation.check(folder, ended)
        except Exception:
            return Verdict("fails", f"ended, with wrong values:\n{traceback.format_exc()}")
    return Verdict(kind, said=_first_problem(ended.err) if kind != "works" else "")


def _first_problem(err: str) -> str:
    """The first line that says what is wrong, without the heading above it."""
    lines = [line.strip().removeprefix("- ").removeprefix("distrl: ") for line in err.splitlines()]
    return next(
        (line for line in lines if line and not line.endswith("the input") and line != "bad input"), ""
    )


def distrl(folder: Path, *arguments: str) -> Ended:
    """Runs `distrl <arguments>` in `folder`, in this process."""
    from distrl.cli.main import run

    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(folder),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        status = run(arguments)
    return Ended(status, out.getvalue(), err.getvalue())
