"""`distrl rlhf reward`."""

from __future__ import annotations

from typing import Any

import click

from distrl.cli.config_command import ConfigCommand
from distrl.cli.parsing import Parsed
from distrl.cli.rlhf.stage import OPTIONS, run
from distrl.stages.supervised_config import REWARD, RewardConfig


@click.command("reward", cls=ConfigCommand, own_options=OPTIONS, schema=REWARD)
def command(parsed: Parsed) -> int:
    """Train a reward model on preferences: {"prompt": ..., "chosen": ..., "rejected": ...} a line.

    A value is the flag's, else the TOML file's, else the default. The model is left in RUN_DIR/model.
    """
    return run(REWARD, parsed, lambda config: [], _stage)


def _stage(config: RewardConfig) -> Any:
    from distrl.stages.supervised import RewardStage

    return RewardStage(config)
