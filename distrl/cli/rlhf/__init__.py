"""`distrl rlhf`: the stages of RLHF, each a command."""

from __future__ import annotations

import click

from distrl.cli.commands import Commands

COMMANDS = {
    "sft": "distrl.cli.rlhf.sft",
    "reward": "distrl.cli.rlhf.reward",
    "ppo": "distrl.cli.rlhf.ppo",
    "eval": "distrl.cli.rlhf.evaluate",
}


@click.group("rlhf", cls=Commands, table=COMMANDS)
def command() -> None:
    """RLHF of a causal language model: SFT, a reward model, PPO, and a look at what came of it.

    Each stage takes a model's folder as transformers saves it, and leaves another in RUN_DIR/model.
    """
