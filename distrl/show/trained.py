"""A trained policy to look at: a run directory's, or that of a small run trained here and now."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from distrl.checkpoint.reading import checkpoint_folders
from distrl.errors import BadInput
from distrl.evaluation import Loaded, load_run
from distrl.telemetry.sinks.jsonl import read_jsonl

METRICS_FILE = "metrics.jsonl"


@contextmanager
def run_directory(run_dir: Path | None, seed: int, **fields: Any) -> Iterator[Path]:
    """`run_dir` as it is, or else a temporary one trained in-process with these flags; gone at the end."""
    if run_dir is not None:
        yield run_dir
        return
    from distrl.resolve import resolve
    from distrl.session import run_training

    with tempfile.TemporaryDirectory(prefix="distrl-show-") as folder:
        path = Path(folder) / "run"
        flags = {
            "workers": 0, "seed": seed, "run_dir": str(path), "eval_episodes": 0, "tensorboard": False, **fields,
        }  # fmt: skip
        resolved = resolve(flags)
        config = resolved.config
        print(
            f"training {config.algo} on {config.env} for {config.total_steps:,} env steps; give a RUN_DIR to show that one",
            file=sys.stderr,
        )
        started = time.monotonic()
        outcome = run_training(resolved, quiet=True)
        if outcome.exit_status:
            raise KeyboardInterrupt
        print(f"trained in {time.monotonic() - started:.0f} s", file=sys.stderr)
        yield path


def load_with_critic(run_dir: Path, trust_run: bool, checkpoint: str = "latest") -> Loaded:
    """The policy and its critic. BadInput where the run trained no value function."""
    loaded = load_run(run_dir, checkpoint, trust_run)
    if not loaded.config.recipe.trains_value:
        raise BadInput(
            f"{run_dir} was trained by {loaded.config.algo}, which has no critic; give a run of reinforce-baseline or up"
        )
    return loaded


def kept_checkpoints(run_dir: Path, count: int) -> list[int]:
    """Iterations of at most `count` of a run's checkpoints, from the first to the last evenly spread over env steps."""
    kept = sorted(checkpoint_folders(run_dir / "checkpoints"))
    if not kept:
        raise BadInput(f"{run_dir / 'checkpoints'} has no checkpoint; is {run_dir} a run directory?")
    if len(kept) <= count:
        return kept
    steps = {0: 0} | {one["iteration"]: one["env_steps"] for one in read_jsonl(run_dir / METRICS_FILE)}
    reached = np.array([steps.get(iteration, iteration) for iteration in kept])
    wanted = np.linspace(reached[0], reached[-1], count)
    return [kept[index] for index in sorted({int(np.argmin(np.abs(reached - at))) for at in wanted})]


def env_steps_of(loaded: Loaded) -> int:
    """Env steps that the checkpoint's policy was trained for."""
    return int(loaded.checkpoint.trees["run"]["env_steps"])


def describe(loaded: Loaded, run_dir: Path | None) -> str:
    """What was looked at, for a subtitle."""
    config = loaded.config
    what = f"{config.algo} on {config.env} after {env_steps_of(loaded):,} env steps"
    return what if run_dir is None else f"{what}, run {os.path.basename(os.path.abspath(run_dir))}"
