"""The two ways a run ends badly, each with the exit status of the command line."""

from __future__ import annotations


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
