"""`distrl ladder`: the rungs and what each adds to the one below; with `--run`, their curves side by side."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import click

from distrl.errors import BadInput
from distrl.fields import show
from distrl.recipes import IDEAS, LADDER, Recipe


@click.command("ladder")
@click.option(
    "--run", "train_all", is_flag=True, help="train all rungs and draw their curves into one report"
)
@click.option("--env", default="CartPole-v1", show_default=True, help="env id")
@click.option("--seeds", type=click.IntRange(min=1), default=5, show_default=True, help="seeds per rung")
@click.option(
    "--total-steps",
    type=click.IntRange(min=1),
    default=2_000_000,
    show_default=True,
    help="env steps per run",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="folder of runs and report; default runs/ladder-<env>; one that was begun is gone on with",
)
@click.option(
    "--workers", type=click.IntRange(min=0), default=0, show_default=True,
    help="Ray rollout workers of each run; 0: in-process",
)  # fmt: skip
@click.option("--jobs", type=click.IntRange(min=1), help="runs that train at once; default: one a core")
def command(
    train_all: bool, env: str, seeds: int, total_steps: int, out: Path | None, workers: int, jobs: int | None
) -> int:
    """Show the ladder from REINFORCE to PPO: one idea a rung."""
    if not train_all:
        click.echo(table())
        return 0
    out = out if out is not None else Path("runs") / f"ladder-{env.replace('/', '-').replace(':', '-')}"
    if out.exists() and not out.is_dir():
        raise BadInput(f"--out: must be a folder, got the file {str(out)!r}; name another")
    from distrl.ladder import run_ladder

    report = run_ladder(env=env, seeds=seeds, total_steps=total_steps, out=out, workers=workers, jobs=jobs)
    click.echo(f"report     {report}\nnumbers    {out / 'ladder.json'}", err=True)
    return 0


def difference(below: Recipe, above: Recipe) -> dict[str, tuple[object, object]]:
    """The fields in which two recipes differ: name -> (below, above)."""
    pairs = {field.name: (getattr(below, field.name), getattr(above, field.name)) for field in fields(Recipe)}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def table() -> str:
    """One rung a block: its name and idea, and the fields that make it differ from the rung below."""
    width = max(map(len, LADDER))
    idea_width = max(map(len, IDEAS.values()))
    lines = [f"{'rung':<{width}} | {'the one idea':<{idea_width}} | differs from the rung below in"]
    below: Recipe | None = None
    for name, recipe in LADDER.items():
        changes = (
            ""
            if below is None
            else ", ".join(
                f"{field} {show(old)} -> {show(new)}"
                for field, (old, new) in difference(below, recipe).items()
            )
        )
        lines.append(f"{name:<{width}} | {IDEAS[name]:<{idea_width}} | {changes}".rstrip(" |"))
        below = recipe
    return "\n".join(lines)
