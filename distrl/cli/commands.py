"""A click group whose commands are imported when they are asked for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import click

from distrl.errors import BadInput
from distrl.fields import nearest


class Commands(click.Group):
    """`table` maps a command to the module that holds it as `command`."""

    def __init__(self, *args: Any, table: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.table = table

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of the table."""
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, or None where there is none of that name."""
        module = self.table.get(cmd_name)
        return importlib.import_module(module).command if module else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Suggests the nearest command for an unknown one."""
        if args and args[0] not in self.table and not args[0].startswith("-"):
            guess = nearest(args[0], self.table) or f" the commands are {', '.join(self.table)}"
            raise BadInput(f"{args[0]!r}: no such command;{guess}")
        return super().resolve_command(ctx, args)
