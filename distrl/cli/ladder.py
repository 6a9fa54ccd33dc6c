"""`distrl ladder`: the rungs and what each adds to the one below; with `--run`, the curves of those on an env."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import click

from distrl.errors import BadInput
from distrl.fields import show
from distrl.recipes import IDEAS, LADDER, PPO, Recipe
from distrl.rlhf.recipes import LAST_IDEA, LAST_RUNG, RLHF_PPO, UNREAD

# what the last rung's words mean, and how it is run: it wants a model and prompts, not an env
EXPLAINED = f"""\
{LAST_RUNG}: a language model is the policy, a response an episode
  state    the prompt and the tokens so far
  action   the next token
  reward   the score at the last token, less beta * KL to the reference at every token
  batch    --num-prompts x --group-size responses; of no use here, so not compared: {", ".join(UNREAD)}
  roles    actor (writes), critic (its V), reward (scores), reference (frozen): four models, placed by --placement
  run it   distrl rlhf ppo --model FOLDER --reward FOLDER --prompts FILE.jsonl
           make rlhf: from SFT and a reward model on, a whole run offline; --run trains the rungs above"""


@click.command("ladder")
@click.option(
    "--run",
    "train_all",
    is_flag=True,
    help="train the rungs from reinforce to ppo on an env: one report of their curves",
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
    """Show the ladder from REINFORCE to RLHF with PPO: one idea a rung."""
    if not train_all:
        click.echo(f"{table()}\n\n{EXPLAINED}")
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
    """One rung a line: its name and idea, and the fields that make it differ from the rung below."""
    rows: list[tuple[str, list[str]]] = [(next(iter(LADDER)), [])]
    rows += [
        (name, _told(difference(LADDER[below], LADDER[name])))
        for below, name in zip(LADDER, list(LADDER)[1:])
    ]
    last = {name: pair for name, pair in difference(PPO, RLHF_PPO).items() if name not in UNREAD}
    rows.append((LAST_RUNG, [*_told(last), f"beta {show(RLHF_PPO.beta)}"]))
    ideas = {**IDEAS, LAST_RUNG: LAST_IDEA}
    width, idea_width = max(map(len, ideas)), max(map(len, ideas.values()))
    head = f"{'rung':<{width}} | {'the one idea':<{idea_width}} | differs from the rung below in"
    lines = [f"{name:<{width}} | {ideas[name]:<{idea_width}} | {', '.join(told)}" for name, told in rows]
    return "\n".join([head, *(line.rstrip(" |") for line in lines)])


def _told(changes: dict[str, tuple[object, object]]) -> list[str]:
    return [f"{field} {show(old)} -> {show(new)}" for field, (old, new) in changes.items()]
