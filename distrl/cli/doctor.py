"""`distrl doctor`: checks the machine and the env before compute is spent."""

from __future__ import annotations

import sys

import click

from distrl.cli.config_command import ConfigCommand
from distrl.cli.parsing import Parsed
from distrl.cli.train import CONFIG_OPTION, TRUST_OPTION, resolve_command_line


@click.command("doctor", cls=ConfigCommand, own_options=[CONFIG_OPTION, TRUST_OPTION])
def command(parsed: Parsed) -> int:
    """Check the machine and the env with train's flags; exit status 1 where something fails.

    It steps the env, resets it twice by one seed and replays an episode; nothing is trained.
    """
    resolved, _ = resolve_command_line(parsed)
    from distrl.doctor import examine

    failed = 0
    print(f"{'':<4} | {'check':<12} | found")
    for finding in examine(resolved.config):
        print(f"{finding.status:<4} | {finding.what:<12} | {finding.found}", flush=True)
        failed += finding.status == "fail"
    for warning in resolved.warnings:
        print(f"{'warn':<4} | {'config':<12} | {warning}")
    if failed:
        print(f"distrl doctor: {failed} failed", file=sys.stderr)
    return 1 if failed else 0
