"""`distrl rlhf ppo`."""

from __future__ import annotations

from typing import Any

import click

from distrl.cli.config_command import ConfigCommand
from distrl.cli.parsing import Parsed
from distrl.cli.rlhf.stage import OPTIONS, run
from distrl.stages.ppo_config import PPO, PPOConfig


@click.command("ppo", cls=ConfigCommand, own_options=OPTIONS, schema=PPO)
def command(parsed: Parsed) -> int:
    """Train a language model on a reward, held near a reference: PPO, or REINFORCE, RLOO and GRPO.

    A value is the flag's, else the TOML file's, else the algorithm's preset, else the default.
    """
    return run(PPO, parsed, derived, _stage)


def _stage(config: PPOConfig) -> Any:
    from distrl.stages.ppo import PPOStage

    return PPOStage(config)


def derived(config: PPOConfig) -> list[tuple[str, str]]:
    """The numbers that follow from the configuration."""
    recipe, responses = config.recipe, config.num_responses
    return [
        ("responses", f"{responses} an iteration = {config.num_prompts} prompts x {recipe.group_size}"),
        (
            "response_tokens",
            f"{responses * recipe.max_response} an iteration, at most = {responses} x {recipe.max_response}",
        ),
        ("minibatch", f"{responses // recipe.minibatches} responses = {responses} / {recipe.minibatches}"),
        ("gradient_steps", f"{recipe.epochs * recipe.minibatches} an iteration, at most"),
        ("roles", "actor, reward, reference" + (", critic" if recipe.trains_value else "; no critic")),
    ]
