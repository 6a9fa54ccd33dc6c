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
        *_hosts(config),
        *_sampling(config),
    ]


def _sampling(config: PPOConfig) -> list[tuple[str, str]]:
    """What the model's folder asks of sampling, where that is not followed."""
    from distrl.rlhf.sampling import left_out_of

    note = left_out_of(config.folder, config.recipe.temperature)
    return [] if note is None else [("sampling", note)]


def _hosts(config: PPOConfig) -> list[tuple[str, str]]:
    """Who hosts which role, and what each worker takes."""
    if config.placement == "in-process":
        return [("hosts", "this process has every role")]
    from distrl.machine import resolve_device
    from distrl.runtime.placement import needed

    hosts = config.hosts(resolve_device(config.device))
    total = needed(hosts)
    workers = sum(host.workers for host in hosts)
    rows = [
        (
            "hosts",
            f"{counted(workers, 'worker')} need {counted(total['CPU'], 'CPU')}, {counted(total['GPU'], 'GPU')}",
        )
    ]
    for host in hosts:
        each = (
            f"{counted(host.workers, 'worker')} of {counted(host.cpus, 'CPU')}, {counted(host.gpus, 'GPU')}"
        )
        offloaded = f"; offloaded: {', '.join(host.offload)}" if host.offload else ""
        rows.append((f"  {host.name}", each + offloaded))
    return rows


def counted(number: float, what: str) -> str:
    """`1 worker`, `2 workers`."""
    return f"{number:g} {what}{'' if number == 1 else 's'}"
