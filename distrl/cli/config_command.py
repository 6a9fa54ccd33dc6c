"""A click command whose options are the configuration's fields, under their headings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from distrl.cli.parsing import Parsed, is_switch, parse
from distrl.fields import C, FlatField, Schema, canonical, train_schema
from distrl.resolve import ResolvedAs, resolve_as, resolve_resume_as
from distrl.trust import check_trust_as


class ConfigCommand(click.Command):
    """Shows and completes the fields as click options, but reads them with `distrl.cli.parsing`.

    The callback gets `parsed: Parsed`. `own_options` are the command's own, above the fields in the help; `schema`
    says which fields (default: `distrl train`'s).
    """

    def __init__(
        self,
        *args: Any,
        own_options: Sequence[click.Option] = (),
        schema: Schema[Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.own_options = list(own_options)
        self.schema = schema or train_schema()

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The command's own options and one per field: for the help and the shell's completion."""
        fields = [_option(one) for one in self.schema.fields.values()]
        help_option = self.get_help_option(ctx)
        return [*self.own_options, *fields, *([help_option] if help_option else [])]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Reads everything, whatever is wrong with it; the problems go on to be joined with later ones."""
        if any(word in ("--help", "-h") for word in args):
            click.echo(self.get_help(ctx), color=ctx.color)
            ctx.exit()
        takes_value = {canonical(one.name or ""): not one.is_flag for one in self.own_options}
        ctx.params = {"parsed": parse(args, takes_value, self.schema)}
        return []

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The options by heading."""
        own = [record for one in self.own_options if (record := one.get_help_record(ctx))]
        with formatter.section("Options"):
            formatter.write_dl(own)
        for heading in self.schema.sections:
            rows = [
                (_usage(one), _help(one)) for one in self.schema.fields.values() if one.section == heading
            ]
            with formatter.section(heading[0].upper() + heading[1:]):
                formatter.write_dl(rows, col_max=34)


def _usage(one: FlatField) -> str:
    if is_switch(one):
        return f"{one.flag} / --no-{one.flag[2:]}"
    if one.kind is dict:
        return f"{one.flag}.KEY VALUE"
    return f"{one.flag} {'WORD' if one.choices else one.metavar}"


def _help(one: FlatField) -> str:
    words = f" [{' | '.join(one.choices)}]" if one.choices and one.name != "algo" else ""
    default = "" if one.default is None or one.kind is dict else f"  (default: {one.default_text})"
    if one.in_recipe:
        default = f"  (default: {one.default_text})"
    return one.help + words + default


def _option(one: FlatField) -> click.Option:
    if is_switch(one):
        return click.Option([f"{one.flag}/--no-{one.flag[2:]}"], help=_help(one), default=None)
    kind = click.Choice(one.choices) if one.choices else click.STRING
    return click.Option([one.flag], help=_help(one), type=kind)


def resolve_command_line_as(schema: Schema[C], parsed: Parsed) -> tuple[ResolvedAs[C], Path | None]:
    """The configuration of a new run or of the one resumed, and that run's directory.

    Reads the options `config`, `resume` and `trust_run`, where the command has them.
    """
    trust = bool(parsed.options.get("trust_run"))
    toml = Path(parsed.options["config"]) if "config" in parsed.options else None
    if "resume" in parsed.options:
        run_dir = Path(parsed.options["resume"])
        return resolve_resume_as(schema, run_dir, parsed.flags, trust, toml, parsed.problems), run_dir
    resolved = resolve_as(schema, parsed.flags, toml, parsed.problems)
    if toml is not None:
        typed = frozenset(name for name, source in resolved.sources.items() if source != "toml")
        check_trust_as(schema, toml, resolved.config, trust, from_command_line=typed)
    return resolved, None
