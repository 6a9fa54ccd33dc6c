"""The Python door: what the commands do, from a notebook or a script, with errors as exceptions."""

from __future__ import annotations

import os
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distrl.recipes import Recipe
from distrl.resolve import resolve, resolve_resume

if TYPE_CHECKING:
    from torch import nn

    from distrl.session import Outcome

PathLike = str | os.PathLike[str]


def train(
    env: str = "CartPole-v1",
    algo: str = "ppo",
    *,
    recipe: Recipe | None = None,
    config: PathLike | None = None,
    **fields: Any,
) -> Outcome:
    """Trains as `distrl train` does and returns the run's outcome.

    `fields` are the flags by name (`workers=0`, `learning_rate=1e-3`, `env_kwargs={...}`); `recipe` gives
    all of an algorithm's fields at once, below single ones; `config` is a TOML file. Raises BadInput with
    all that is wrong before anything starts, RunFailed where the run cannot go on.
    """
    given = (
        {} if recipe is None else {one.name: getattr(recipe, one.name) for one in dataclass_fields(Recipe)}
    )
    given |= {"env": env, "algo": algo, **fields}
    resolved = resolve(given, None if config is None else Path(config))
    from distrl.preflight import check_before_run
    from distrl.session import run_training

    check_before_run(resolved.config)
    return run_training(resolved, resume=None)


def resume(run_dir: PathLike, *, trust_run: bool = False, **fields: Any) -> Outcome:
    """Continues a run as `distrl train --resume` does; `fields` may be what may change. Raises as `train`."""
    run_dir = Path(run_dir)
    resolved = resolve_resume(run_dir, fields, trust_run)
    from distrl.preflight import check_before_run
    from distrl.session import run_training

    check_before_run(resolved.config)
    return run_training(resolved, resume=run_dir)


def evaluate(
    run_dir: PathLike,
    *,
    episodes: int = 20,
    seed: int = 0,
    greedy: bool = True,
    video: PathLike | None = None,
    checkpoint: str | int = "latest",
    trust_run: bool = False,
) -> dict[str, Any]:
    """Plays a checkpoint (`latest`, `best` or an iteration) and returns what `distrl eval --json` prints."""
    from distrl.evaluation import evaluate_run

    return evaluate_run(
        Path(run_dir),
        episodes=episodes,
        seed=seed,
        greedy=greedy,
        video=None if video is None else Path(video),
        checkpoint=str(checkpoint),
        trust_run=trust_run,
    )


def load(run_dir: PathLike, checkpoint: str | int = "latest", *, trust_run: bool = False) -> nn.Module:
    """The policy of a checkpoint, ready to act; its observation moments are in it. Raises BadInput."""
    from distrl.evaluation import load_run

    return load_run(Path(run_dir), str(checkpoint), trust_run).policy
