"""The `distrl` command: exit status 0 done, 1 failed, 2 bad input, 130 interrupted."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from distrl.cli.commands import Commands
from distrl.errors import BadInput, RunFailed

# command -> module that holds it as `command`
COMMANDS = {
    "train": "distrl.cli.train",
    "eval": "distrl.cli.evaluate",
    "ladder": "distrl.cli.ladder",
    "show": "distrl.cli.show",
    "profile": "distrl.cli.profile",
    "doctor": "distrl.cli.doctor",
    "rlhf": "distrl.cli.rlhf",
}
INTERRUPTED = 130


@click.group(
    cls=Commands,
    table=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(package_name="distrl", message="%(prog)s %(version)s")
def group() -> None:
    """Train a policy on any Gymnasium env with PPO on Ray workers, and see how REINFORCE becomes PPO."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command and exits with its status."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status; what a person did wrong is told without a traceback."""
    try:
        status = group.main(
            args=None if arguments is None else list(arguments), prog_name="distrl", standalone_mode=False
        )
    except BadInput as error:
        _tell(error.problems)
        return BadInput.exit_status
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return BadInput.exit_status
    except click.UsageError as error:
        _tell([error.format_message()])
        return BadInput.exit_status
    except RunFailed as error:
        print(f"distrl: {error}", file=sys.stderr)
        return RunFailed.exit_status
    except (KeyboardInterrupt, click.Abort):
        print("distrl: interrupted", file=sys.stderr)
        return INTERRUPTED
    return status if isinstance(status, int) else 0


def _tell(problems: Sequence[str]) -> None:
    """The problems as a list, one to a line."""
    head = "bad input" if len(problems) == 1 else f"{len(problems)} problems with the input"
    print(f"distrl: {head}", file=sys.stderr)
    for problem in problems:
        print("  - " + problem.replace("\n", "\n    "), file=sys.stderr)
