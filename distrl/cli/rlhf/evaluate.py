"""`distrl rlhf eval`: responses to prompts, their score, length and KL."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from distrl.cli.output import others_to_stderr

COUNT = click.IntRange(min=1)


@click.command("eval")
@click.argument("folder", metavar="RUN_DIR|FOLDER", type=click.Path(path_type=Path))
@click.option("--prompts", metavar="FILE", help="data file of prompts  (default: the run's own)")
@click.option(
    "--reward", multiple=True, metavar="FOLDER", help="a reward model; may be repeated  (default: the run's)"
)
@click.option("--reward-function", multiple=True, metavar="MODULE:NAME", help="a function; may be repeated")
@click.option("--reference", metavar="FOLDER", help="KL to this model  (default: the run's reference)")
@click.option(
    "--checkpoint",
    default="latest",
    show_default=True,
    help="of a run: latest, best or an iteration's number",
)
@click.option("--sample", is_flag=True, help="sample responses; the likeliest tokens are the default")
@click.option("--samples", type=COUNT, default=1, show_default=True, help="responses to each prompt")
@click.option("--temperature", type=click.FloatRange(min=0, min_open=True), help="default: the run's, else 1")
@click.option("--max-response", type=COUNT, help="tokens of a response  (default: the run's, else 64)")
@click.option("--limit", type=COUNT, help="the first so many prompts alone")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="of what is sampled")
@click.option("--batch", type=COUNT, default=64, show_default=True, help="responses written together")
@click.option("--chat", is_flag=True, help="put prompts that are text into the chat template")
@click.option("--chat-kwargs", metavar="JSON", help="arguments of the chat template  (default: the run's)")
@click.option(
    "--tools", metavar="FILE.json", help="list of tools for the chat template  (default: the run's)"
)
@click.option(
    "--system-prompt", metavar="TEXT", help="system message where there is none  (default: the run's)"
)
@click.option(
    "--field.prompt",
    "prompt_column",
    metavar="COLUMN",
    help="column of the prompts  (default: the run's, else prompt)",
)
@click.option("--skip-bad", is_flag=True, help="leave corrupt lines out")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help="default: the run's, else auto")
@click.option("--threads", type=COUNT, help="CPU threads of a model's passes  (default: the run's, else 1)")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16"]),
    help="of the policy, the reference and rewards  (default: the run's, else float32)",
)
@click.option(
    "--reward-timeout-sec",
    type=click.FloatRange(min=0, min_open=True),
    help="a call of a reward function may take this long  (default: the run's, else 60)",
)
@click.option(
    "--reward-concurrency",
    type=COUNT,
    help="concurrent calls of a function  (default: the run's, else 1)",
)
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="FILE.jsonl", help="write prompts and responses here"
)
@click.option("--json", "as_json", is_flag=True, help="print one JSON object on standard output")
@click.option("--trust-run", is_flag=True, help="import code that somebody else's config.json names")
def command(folder: Path, as_json: bool, prompt_column: str | None, **asked: Any) -> int:
    """Ask a model for responses to prompts, and score them.

    Takes a run of any stage, its newest model counts, or a model's folder. With the KL is meant log pi/pi_ref summed
    over a response's tokens, in nats: of sampled responses (--sample) its mean estimates KL(pi || pi_ref).
    """
    from distrl.preflight import make_current_folder_importable

    make_current_folder_importable()
    from distrl.stages.look import Asked, look_at

    field = None if prompt_column is None else {"prompt": prompt_column}
    with others_to_stderr():  # what a reward function prints
        told = look_at(folder, Asked(**asked, field=field))
    if as_json:
        click.echo(json.dumps(told))
        return 0
    for name, value in told.items():
        shown = f"{value:.4f}" if isinstance(value, float) else value
        click.echo(f"{name:<22} {shown}", err=True)
    return 0
