"""What can be known about the machine and the env before Ray starts. Imports torch and gymnasium."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distrl.config import TrainConfig
from distrl.errors import BadInput

if TYPE_CHECKING:
    from distrl.envs.spec import EnvSpec


def check_before_run(config: TrainConfig) -> None:
    """`check_machine`, `check_paths` and `check_env`. Raises one BadInput with all problems."""
    found: list[str] = []
    for check in (check_paths, check_machine, check_env):
        try:
            check(config)
        except BadInput as error:
            found += error.problems
    if found:
        raise BadInput(*found)


def check_paths(config: TrainConfig) -> None:
    """Raises BadInput where `init_from` is no run directory."""
    if config.init_from is not None and not (Path(config.init_from) / "checkpoints").is_dir():
        raise BadInput(
            f"--init-from: must be a run directory with checkpoints, got {config.init_from!r}; "
            "give the folder that --run-dir named"
        )


def check_machine(config: TrainConfig) -> None:
    """Raises BadInput where the device asked for is not there."""
    if config.device != "cuda":
        return
    import torch

    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if available < 1:
        built_for = f"CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU alone"
        raise BadInput(
            f"--device cuda needs 1 GPU, and {available} are available (torch {torch.__version__}, built for "
            f"{built_for}); use --device auto or cpu"
        )


def env_spec(config: TrainConfig) -> EnvSpec:
    """The env of `config`, for one look at it; needs no run directory."""
    from distrl.envs.spec import EnvSpec

    return EnvSpec(
        config.env,
        kwargs=config.env_kwargs,
        wrapper=config.wrapper,
        atari=config.atari,
        max_episode_steps=config.max_episode_steps,
    )


def check_env(config: TrainConfig) -> None:
    """Makes the env once. Raises BadInput for an unknown env, wrapper or policy, or a failed import."""
    from distrl.envs.spec import load_function

    make_current_folder_importable()
    spec = env_spec(config)
    checks: list[Callable[[], Any]] = [spec.registered]
    if config.wrapper is not None:
        checks.append(partial(load_function, config.wrapper, "wrapper"))
    if config.policy is not None:
        checks.append(partial(load_function, config.policy, "policy"))
    found: list[str] = []
    for check in checks:
        try:
            check()
        except BadInput as error:
            found += error.problems
    if not found:
        try:
            spec.make_one().close()
        except BadInput as error:
            found += error.problems
    if found:
        raise BadInput(*(problem if problem.startswith("--") else f"--{problem}" for problem in found))


def make_current_folder_importable() -> None:
    """Lets `--wrapper mine:fn` find mine.py beside the person, as `python -m` would; Ray's workers follow.

    Last in the path: a file here never hides an installed module.
    """
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
