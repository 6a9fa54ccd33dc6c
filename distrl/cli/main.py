"""The `distrl` command: exit status 0 done, 1 failed, 2 bad input, 130 interrupted."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence

import click

from distrl.cli.commands import Commands
from distrl.errors import BadInput, RunFailed, cause

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
TRACEBACK = "--traceback"  # may stand anywhere on the command line


@click.group(
    cls=Commands,
    table=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(package_name="distrl", message="%(prog)s %(version)s")
@click.option(TRACEBACK, is_flag=True, help="show the Python traceback behind an error (with any command)")
def group(traceback: bool) -> None:
    """Train a policy on any Gymnasium env with PPO on Ray workers, and see how REINFORCE becomes PPO."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command and exits with its status."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status. Errors are one line each; `--traceback` adds the traceback."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    with_traceback = TRACEBACK in words
    words = [word for word in words if word != TRACEBACK]
    try:
        status = group.main(args=words, prog_name="distrl", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return BadInput.exit_status
    except click.UsageError as error:
        _tell([error.format_message()])
        return BadInput.exit_status
    except (KeyboardInterrupt, click.Abort):
        print("distrl: interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if with_traceback:
            traceback.print_exc()
        return _end(error)
    return status if isinstance(status, int) else 0


def _end(error: Exception) -> int:
    """Tells the error in one line, and returns the exit status that goes with it."""
    if isinstance(error, BadInput):
        _tell(error.problems)
        return BadInput.exit_status
    if isinstance(error, RunFailed):
        print(f"distrl: {error}", file=sys.stderr)
        return RunFailed.exit_status
    where = traceback.extract_tb(error.__traceback__)[-1]
    print(
        f"distrl: unexpected error at {where.filename}:{where.lineno}: {cause(error)}; "
        f"run again with {TRACEBACK} for the traceback",
        file=sys.stderr,
    )
    return RunFailed.exit_status


def _tell(problems: Sequence[str]) -> None:
    """The problems as a list, one to a line."""
    head = "bad input" if len(problems) == 1 else f"{len(problems)} problems with the input"
    print(f"distrl: {head}", file=sys.stderr)
    for problem in problems:
        print("  - " + problem.replace("\n", "\n    "), file=sys.stderr)
