"""`distrl show`: pictures of the mechanics, with the numbers beside them as JSON."""

from __future__ import annotations

import importlib
from pathlib import Path

import click

from distrl.errors import BadInput

PICTURES = {
    "gae": "TD errors on a real trajectory, the advantage for several lambdas, their bias and variance",
    "clip": "the clipped and unclipped objective for both signs of the advantage, and its gradient",
    "variance": "the variance of the policy gradient with and without a baseline, on the same data",
    "bellman": "a small MDP solved exactly, beside the value that a trained critic learned",
    "tokens": "responses of a language model, token by token: log-probs, KL, reward, value, advantage",
}
SHORT = {
    "gae": "advantages for several lambdas",
    "clip": "PPO's clipped objective",
    "variance": "what a baseline buys",
    "bellman": "exact values beside learned ones",
    "tokens": "a language model as an RL agent",
}


@click.group("show", short_help="Draw the mechanics: gae, clip, variance, bellman, tokens.")
def command() -> None:
    """Draw the mechanics: what GAE, the clip, a baseline and the Bellman equations do."""


def _picture(name: str, help: str) -> click.Command:
    whole = f"Draw {help}. Trains a small policy where no RUN_DIR is given."

    @click.command(name, help=whole, short_help=SHORT[name])
    @click.argument("run_dir", required=False, type=click.Path(path_type=Path))
    @click.option(
        "--out",
        type=click.Path(path_type=Path),
        default=Path(f"{name}.png"),
        show_default=True,
        help="the figure",
    )
    @click.option(
        "--seed", type=click.IntRange(min=0), default=1, show_default=True, help="seed of everything"
    )
    @click.option("--trust-run", is_flag=True, help="import code that somebody else's config.json names")
    def picture(run_dir: Path | None, out: Path, seed: int, trust_run: bool, **more: str) -> int:
        if out.suffix.lower() != ".png":
            raise BadInput(f"--out: must end in .png, got {str(out)!r}; the numbers go beside it as .json")
        if not out.absolute().parent.is_dir():
            raise BadInput(f"--out: {out.absolute().parent} is no folder; make it, or name another")
        from distrl.preflight import make_current_folder_importable

        make_current_folder_importable()
        importlib.import_module(f"distrl.show.{name}").show(run_dir, out, seed, trust_run, **more)
        return 0

    if name == "tokens":
        picture.params.append(
            click.Option(
                ["--checkpoint"],
                default="latest",
                show_default=True,
                help="latest, best or an iteration's number",
            )
        )
    return picture


for _name, _help in PICTURES.items():
    command.add_command(_picture(_name, _help))
