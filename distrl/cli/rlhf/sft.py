"""`distrl rlhf sft`."""

from __future__ import annotations

from typing import Any

import click

from distrl.cli.config_command import ConfigCommand
from distrl.cli.parsing import Parsed
from distrl.cli.rlhf.stage import OPTIONS, run
from distrl.stages.supervised_config import SFT, SFTConfig


@click.command("sft", cls=ConfigCommand, own_options=OPTIONS, schema=SFT)
def command(parsed: Parsed) -> int:
    """Fine-tune a language model on demonstrations: {"prompt": ..., "completion": ...} a line.

    A value is the flag's, else the TOML file's, else the default. The model is left in RUN_DIR/model.
    """
    return run(SFT, parsed, lambda config: [], _stage)


def _stage(config: SFTConfig) -> Any:
    from distrl.stages.supervised import SFTStage

    return SFTStage(config)
