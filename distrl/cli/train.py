"""`distrl train`: resolves the configuration, checks what it can before Ray starts, and trains."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from distrl.cli.config_command import ConfigCommand, resolve_command_line_as
from distrl.cli.parsing import Parsed
from distrl.config import TRAIN
from distrl.resolve import Resolved

CONFIG_OPTION = click.Option(
    ["--config"], metavar="FILE.toml", help="read fields from a TOML file; flags win over it"
)
TRUST_OPTION = click.Option(
    ["--trust-run"], is_flag=True, help="import code that somebody else's config.json or TOML file names"
)
OPTIONS = [
    CONFIG_OPTION,
    click.Option(["--resume"], metavar="RUN_DIR", help="continue a run; only what may change can be given"),
    click.Option(["--dry-run"], is_flag=True, help="show every value and where it came from, and do nothing"),
    TRUST_OPTION,
]


@click.command("train", cls=ConfigCommand, own_options=OPTIONS)
def command(parsed: Parsed) -> int:
    """Train a policy. Without any flag: PPO on CartPole-v1.

    A value is the flag's, else the TOML file's, else the algorithm's preset, else the default.
    """
    resolved, resume = resolve_command_line(parsed)
    if parsed.options.get("dry_run"):
        for warning in resolved.warnings:  # a run's session tells them itself
            print(f"warning: {warning}", file=sys.stderr)
        from distrl.cli.dry_run import table

        print(table(resolved))
        return 0
    from distrl.preflight import check_before_run

    check_before_run(resolved.config)
    from distrl.session import run_training

    return run_training(resolved, resume=resume).exit_status


def resolve_command_line(parsed: Parsed) -> tuple[Resolved, Path | None]:
    """The configuration of a new run or of the one resumed, and that run's directory."""
    return resolve_command_line_as(TRAIN, parsed)
