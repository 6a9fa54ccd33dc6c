"""The `distrl` command: exit status 0 done, 1 failed, 2 bad input, 130 interrupted."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import click

from distrl.errors import BadInput, RunFailed
from distrl.fields import nearest

# command -> module that holds it as `command`
COMMANDS = {
    "train": "distrl.cli.train",
    "eval": "distrl.cli.evaluate",
    "ladder": "distrl.cli.ladder",
    "show": "distrl.cli.show",
    "profile": "distrl.cli.profile",
    "doctor": "distrl.cli.doctor",
}
INTERRUPTED = 130


class Commands(click.Group):
    """Subcommands imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of `COMMANDS`."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, or None where there is none of that name."""
        module = COMMANDS.get(cmd_name)
        return importlib.import_module(module).command if module else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Suggests the nearest command for an unknown one."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            guess = nearest(args[0], COMMANDS) or f" the commands are {', '.join(COMMANDS)}"
            raise BadInput(f"{args[0]!r}: no such command;{guess}")
        return super().resolve_command(ctx, args)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
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
