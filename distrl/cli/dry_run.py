"""The table of `--dry-run`: every name, its value, where it came from, and the numbers that follow."""

from __future__ import annotations

from typing import Any

from distrl.config import TRAIN, TrainConfig
from distrl.errors import BadInput, RunFailed
from distrl.fields import Schema, show
from distrl.resolve import Resolved, ResolvedAs, flat_values

Rows = list[tuple[str, str]]


def table(resolved: Resolved) -> str:
    """`table_as` for `distrl train`, and how the policy sees the env."""
    return "\n".join([table_as(TRAIN, resolved, derived(resolved.config)), "", *_spaces(resolved.config)])


def _spaces(config: TrainConfig) -> list[str]:
    """A line for each leaf of an observation and for the action."""
    from distrl.build import lines_of_spaces
    from distrl.preflight import check_env

    try:
        check_env(config)
        return lines_of_spaces(config)
    except (BadInput, RunFailed) as error:
        return [f"spaces: not known here ({' '.join(str(error).split())})"]


def table_as(schema: Schema[Any], resolved: ResolvedAs[Any], follows: Rows) -> str:
    """`name | value | source`, one line each, in the order of the help; then names and values that follow from them."""
    rows: list[tuple[str, str, str]] = []
    for name, value in flat_values(schema, resolved.config).items():
        if isinstance(value, dict) and value:
            for key, one in value.items():
                full = f"{name}.{key}"
                rows.append(
                    (full, show(one), resolved.sources.get(full, resolved.sources.get(name, "default")))
                )
            continue
        rows.append((name, show(value), resolved.sources.get(name, "default")))
    lines = _columns([("name", "value", "source"), *rows])
    if follows:
        lines += ["", *_columns([(name, value, "") for name, value in follows])]
    if resolved.changes:
        lines += ["", "changed on resume:", *(f"  {change}" for change in resolved.changes)]
    return "\n".join(lines)


def derived(config: TrainConfig) -> Rows:
    """The numbers that follow from the configuration: iterations, batch, minibatch and group sizes."""
    recipe = config.recipe
    groups = (
        "group_sizes",
        f"{', '.join(map(str, config.group_sizes))} envs in {config.num_groups} group(s)",
    )
    batch = config.steps_per_iteration
    if batch is None:
        episodes = (
            f"{recipe.num_envs} whole episode{'s' if recipe.num_envs > 1 else ''}, whatever their length"
        )
        return [("batch", episodes), groups]
    iterations = -(-config.total_steps // batch)
    return [
        (
            "iterations",
            f"{iterations} = {config.total_steps} / {batch}, rounded up: {iterations * batch} steps",
        ),
        ("batch", f"{batch} rows = {recipe.num_envs} envs x {recipe.num_steps} steps"),
        ("minibatch", f"{batch // recipe.minibatches} rows = {batch} / {recipe.minibatches}"),
        ("gradient_steps", f"{recipe.epochs * recipe.minibatches} an iteration, at most"),
        groups,
    ]


def _columns(rows: list[tuple[str, str, str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return [
        " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True) if width).rstrip()
        for row in rows
    ]
