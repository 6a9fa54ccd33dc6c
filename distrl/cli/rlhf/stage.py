"""What the commands of all stages do with their command line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click

from distrl.cli.config_command import resolve_command_line_as
from distrl.cli.parsing import Parsed
from distrl.cli.train import CONFIG_OPTION, TRUST_OPTION
from distrl.fields import Schema

OPTIONS = [
    CONFIG_OPTION,
    click.Option(["--resume"], metavar="RUN_DIR", help="continue a run; only what may change can be given"),
    click.Option(["--dry-run"], is_flag=True, help="show every value and where it came from, and do nothing"),
    TRUST_OPTION,
]


def run(
    schema: Schema[Any],
    parsed: Parsed,
    follows: Callable[[Any], list[tuple[str, str]]],
    make: Callable[[Any], Any],
) -> int:
    """Resolves, then shows (`--dry-run`, with what `follows` from the values) or runs the stage that `make` gives."""
    resolved, resume = resolve_command_line_as(schema, parsed)
    if parsed.options.get("dry_run"):
        for warning in resolved.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        from distrl.cli.dry_run import table_as

        print(table_as(schema, resolved, follows(resolved.config)))
        return 0
    from distrl.preflight import make_current_folder_importable
    from distrl.stages.session import run_stage

    make_current_folder_importable()
    return run_stage(make(resolved.config), resolved, resume).exit_status
