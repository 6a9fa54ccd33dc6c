"""`distrl eval`: plays a run's checkpoint and reports the return."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from distrl.cli.output import others_to_stderr
from distrl.errors import BadInput
from distrl.resolve import CONFIG_FILE, read_config


@click.command("eval")
@click.argument("run_dir", type=click.Path(path_type=Path))
@click.option(
    "--episodes", type=click.IntRange(min=1), default=20, show_default=True, help="episodes to play"
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="seed of the episodes")
@click.option(
    "--checkpoint", default="latest", show_default=True, help="latest, best or an iteration's number"
)
@click.option("--stochastic", is_flag=True, help="sample actions; the most likely ones are the default")
@click.option("--video", type=click.Path(path_type=Path), help="write the first episode as a video FILE")
@click.option(
    "--max-steps",
    "--eval-max-steps",
    "max_steps",
    type=click.IntRange(min=1),
    help="maximum steps of an episode  (default: the run's)",
)
@click.option(
    "--timeout-sec",
    "--eval-timeout-sec",
    "timeout_sec",
    type=click.FloatRange(min=0, min_open=True),
    help="time limit of the evaluation in seconds  (default: the run's)",
)
@click.option("--json", "as_json", is_flag=True, help="print one JSON object on standard output")
@click.option("--trust-run", is_flag=True, help="import code that somebody else's config.json names")
def command(
    run_dir: Path,
    episodes: int,
    seed: int,
    checkpoint: str,
    stochastic: bool,
    video: Path | None,
    max_steps: int | None,
    timeout_sec: float | None,
    as_json: bool,
    trust_run: bool,
) -> int:
    """Evaluate a checkpoint of RUN_DIR. Needs no Ray."""
    if checkpoint not in ("latest", "best") and not checkpoint.isdecimal():
        raise BadInput(f"--checkpoint: must be latest, best or an iteration's number, got {checkpoint!r}")
    read_config(run_dir / CONFIG_FILE)  # the usual slip, a wrong folder, is told before torch is imported
    from distrl.preflight import make_current_folder_importable

    make_current_folder_importable()
    from distrl.evaluation import evaluate_run
    from distrl.session import warnings_told_to

    told = warnings_told_to(lambda message: click.echo(f"distrl: {message}", err=True))
    with others_to_stderr(), told:  # what the env prints
        result = evaluate_run(
            run_dir,
            episodes=episodes,
            seed=seed,
            greedy=not stochastic,
            video=video,
            checkpoint=checkpoint,
            trust_run=trust_run,
            max_steps=max_steps,
            timeout_sec=timeout_sec,
        )
    if as_json:
        click.echo(json.dumps(result))
    else:
        _print_table(result)
    return 0


def _print_table(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    table.add_column("", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_row("return", f"{result['return_mean']:.2f} +- {result['return_std']:.2f}")
    table.add_row("length", f"{result['length_mean']:.1f}")
    table.add_row("episodes", str(result["episodes"]))
    table.add_row("unfinished", f"{100 * result['unfinished_share']:.0f} %")
    table.add_row("seed", str(result["seed"]))
    console = Console(stderr=True)
    console.print(str(result["checkpoint"]), soft_wrap=True, highlight=False, markup=False)
    console.print(table)
