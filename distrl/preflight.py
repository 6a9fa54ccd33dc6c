"""What can be known about the machine and the env before Ray starts. Imports torch and gymnasium."""

from __future__ import annotations

from distrl.config import TrainConfig
from distrl.errors import BadInput


def check_before_run(config: TrainConfig) -> None:
    """`check_machine` and `check_env` together. Raises one BadInput with all problems."""
    found: list[str] = []
    for check in (check_machine, check_env):
        try:
            check(config)
        except BadInput as error:
            found += error.problems
    if found:
        raise BadInput(*found)


def check_machine(config: TrainConfig) -> None:
    """Raises BadInput where the device asked for is not there."""
    if config.device != "cuda":
        return
    import torch

    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if available < 1:
        raise BadInput(
            f"--device cuda needs 1 GPU and {available} are available (torch {torch.__version__}, built for "
            f"{'CUDA ' + torch.version.cuda if torch.version.cuda else 'the CPU alone'}); use --device auto or cpu"
        )


def check_env(config: TrainConfig) -> None:
    """Raises BadInput where the env, wrapper or policy named does not exist or its module cannot be imported."""
