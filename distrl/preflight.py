"""What can be known about the machine and the env before Ray starts. Imports torch and gymnasium."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from distrl.config import TrainConfig
from distrl.errors import BadInput


def check_before_run(config: TrainConfig) -> None:
    """`check_paths`, `check_machine` and `check_env`. Raises one BadInput with all problems."""
    names = partial(check_env, config)
    try:
        _all_of([partial(check_paths, config), partial(check_machine, config), names])
    except BadInput as error:
        # The session makes an env anyway, and tells what is wrong with its arguments. Here that is only
        # worth an env where there are other problems, so that the person hears of all at once.
        try:
            _all_of([names])
            _make_env(config)
        except BadInput as more:
            raise BadInput(*dict.fromkeys([*error.problems, *more.problems])) from None
        raise


def check_paths(config: TrainConfig) -> None:
    """Raises BadInput where `init_from` is no run directory."""
    if config.init_from is not None and not (Path(config.init_from) / "checkpoints").is_dir():
        raise BadInput(
            f"--init-from: must be a run directory with checkpoints, got {config.init_from!r}; "
            "give the folder that --run-dir named"
        )


CPU_INSTEAD = {
    "--device cuda": "--device auto or cpu",
    "--learner captured": "--device cpu, or --learner auto",
    "--rollout-device cuda": "--rollout-device cpu",
}


def check_machine(config: TrainConfig) -> None:
    """Raises BadInput where the device asked for is not there."""
    asked: dict[str, str] = {"device": config.device, "rollout-device": config.rollout_device}
    if config.device != "cpu":  # there the captured learner's steps run one by one
        asked["learner"] = config.learner
    flags = [f"--{flag} {value}" for flag, value in asked.items() if value in ("cuda", "captured")]
    if not flags:
        return
    import torch

    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if available < 1:
        built_for = f"CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU alone"
        raise BadInput(
            f"{flags[0]} needs 1 GPU, and {available} are available (torch {torch.__version__}, built for "
            f"{built_for}); use {CPU_INSTEAD[flags[0]]}"
        )


def check_env(config: TrainConfig) -> None:
    """Raises BadInput where the env, wrapper or policy is unknown or its module cannot be imported."""
    from distrl.build import env_spec
    from distrl.named import load_function

    make_current_folder_importable()
    checks: list[Callable[[], Any]] = [env_spec(config).registered, env_spec(config).settled]
    if config.wrapper is not None:
        checks.append(partial(load_function, config.wrapper, "wrapper"))
    if config.policy is not None:
        checks.append(partial(load_function, config.policy, "policy"))
    if config.workers:
        checks.append(partial(_check_reaches_workers, config))
    _all_of(checks, _as_flag)


def _check_reaches_workers(config: TrainConfig) -> None:
    """Raises BadInput where Ray's workers, which never ran this script, could not have its env, wrapper or policy."""
    from distrl.build import env_spec
    from distrl.envs.given import is_of_this_process
    from distrl.envs.registrations import check_travels, registrations

    problems = [
        f"{name} {value!r} is defined in this script or notebook, which Ray workers do not run: move it into a module and "
        "give module:function, or train in-process (workers 0)"
        for name, value in (("wrapper", config.wrapper), ("policy", config.policy))
        if value is not None and is_of_this_process(value)
    ]
    if problems:
        raise BadInput(*problems)
    try:
        found = registrations(env_spec(config))
    except BadInput:  # told by the other checks
        return
    check_travels(found, config.env)


def _make_env(config: TrainConfig) -> None:
    """Raises BadInput where the env cannot be made with its arguments."""
    from distrl.build import env_spec

    env_spec(config).make_one().close()


def _as_flag(problem: str) -> str:
    """`env_backend ale must be ...`, as an EnvSpec names its fields, as the command line does."""
    field, space, rest = problem.partition(" ")
    return problem if problem.startswith("--") else f"--{field.replace('_', '-')}{space}{rest}"


def _all_of(checks: list[Callable[[], Any]], told: Callable[[str], str] = str) -> None:
    """Runs all checks and raises one BadInput with what they found."""
    found: list[str] = []
    for check in checks:
        try:
            check()
        except BadInput as error:
            found += map(told, error.problems)
    if found:
        raise BadInput(*found)


def make_current_folder_importable() -> None:
    """Lets `--wrapper mine:fn` find mine.py beside the person, as `python -m` would; Ray's workers follow.

    Last in the path: a file here never hides an installed module.
    """
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
