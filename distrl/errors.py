"""The two ways a run ends badly, each with the exit status of the command line, and how a library's errors become one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

LONGEST_CAUSE = 300  # characters of a library's message that are shown


class BadInput(ValueError):
    """What the user asked for cannot be done. All problems at once; exit status 2.

    Each message names the field, the rule, what was given and what to do.
    """

    exit_status = 2

    def __init__(self, *problems: str) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(problems))


class RunFailed(RuntimeError):
    """The run could not go on. One line that a person can act on; exit status 1."""

    exit_status = 1


@contextmanager
def translated(
    what: str, advice: str = "", kind: type[BadInput] | type[RunFailed] = BadInput
) -> Iterator[None]:
    """Turns whatever code that is not ours raises inside into one line: `what: cause; advice`.

    The original stays as the cause, which `--traceback` shows. BadInput and RunFailed pass through unchanged.
    """
    try:
        yield
    except (BadInput, RunFailed):
        raise
    except Exception as error:  # a library, a model's code or a user's code may raise anything
        raise kind(f"{what}: {cause(error)}" + (f"; {advice}" if advice else "")) from error


def cause(error: BaseException) -> str:
    """The error's type and the first line of its message that says something, with the next where it ends in a colon."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:2]) if lines and lines[0].endswith(":") else "".join(lines[:1])
    text = text if len(text) <= LONGEST_CAUSE else f"{text[:LONGEST_CAUSE]}..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
