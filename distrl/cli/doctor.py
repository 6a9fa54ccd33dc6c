"""`distrl doctor`: checks the machine and the env, or a language model, before compute is spent."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from distrl.cli.config_command import ConfigCommand
from distrl.cli.parsing import Parsed
from distrl.cli.train import CONFIG_OPTION, TRUST_OPTION, resolve_command_line
from distrl.errors import BadInput

if TYPE_CHECKING:
    from distrl.doctor import Finding


MODEL_OPTIONS = [
    click.Option(["--model"], metavar="FOLDER", help="check this language model for RLHF instead of an env"),
    click.Option(["--data"], metavar="FILE", help="data file of prompts for it"),
    click.Option(["--reward"], metavar="FOLDER", help="a reward model; several with commas"),
    click.Option(["--reward-function"], metavar="MODULE:NAME", help="a reward function; several with commas"),
    click.Option(["--threads"], metavar="N", help="CPU threads of a model's passes  (default: 1)"),
    click.Option(
        ["--reward-timeout-sec"],
        metavar="S",
        help="a call of a reward function may take this long  (default: 60)",
    ),
    click.Option(
        ["--dtype"],
        metavar="WORD",
        help="of what writes and of rewards [float32 | bfloat16]  (default: float32)",
    ),
    click.Option(["--chat"], is_flag=True, help="put prompts that are text into the chat template"),
    click.Option(["--chat-kwargs"], metavar="JSON", help="arguments of the chat template"),
]


@click.command("doctor", cls=ConfigCommand, own_options=[CONFIG_OPTION, TRUST_OPTION, *MODEL_OPTIONS])
def command(parsed: Parsed) -> int:
    """Check the machine and the env with train's flags; exit status 1 where something fails.

    It steps the env, resets it twice by one seed and replays an episode; nothing is trained. With --model and --data
    it has the model write a few responses instead, and checks what RLHF relies on.
    """
    given = [one.name for one in MODEL_OPTIONS if one.name in parsed.options]
    if given:
        warnings: tuple[str, ...] = ()
        findings = _of_model(parsed)
    else:
        resolved, _ = resolve_command_line(parsed)
        from distrl.doctor import examine

        warnings, findings = resolved.warnings, examine(resolved.config)
    failed = 0
    print(f"{'':<4} | {'check':<12} | found")
    for finding in findings:
        print(f"{finding.status:<4} | {finding.what:<12} | {finding.found}", flush=True)
        failed += finding.status == "fail"
    for warning in warnings:
        print(f"{'warn':<4} | {'config':<12} | {warning}")
    if failed:
        print(f"distrl doctor: {failed} failed", file=sys.stderr)
    return 1 if failed else 0


def _of_model(parsed: Parsed) -> Iterator[Finding]:
    from distrl.stages.ppo_config import PPO

    options, problems = parsed.options, list(parsed.problems)
    problems += [
        f"--{name}: must be given too, to check a model" for name in ("model", "data") if name not in options
    ]
    problems += [
        f"--{name.replace('_', '-')}: is of an env; leave it out with --model"
        for name in parsed.flags
        if name not in ("seed", "device")
    ]
    read: dict[str, Any] = {}
    for name, given in (
        *((name, parsed.flags[name]) for name in ("seed", "device") if name in parsed.flags),
        *((name, options[name]) for name in ("threads", "reward_timeout_sec", "dtype") if name in options),
    ):
        try:
            read[name] = PPO.read_value(name, given)
        except ValueError as error:
            problems.append(f"--{name.replace('_', '-')}: {error}")
    if problems:
        raise BadInput(*problems)
    from distrl.preflight import make_current_folder_importable
    from distrl.stages.doctor import Patient, examine_model

    make_current_folder_importable()
    rewards, functions = (
        tuple(one for one in options.get(name, "").split(",") if one)
        for name in ("reward", "reward_function")
    )
    read |= {"chat": bool(options.get("chat")), "chat_kwargs": options.get("chat_kwargs")}
    return examine_model(Patient(options["model"], options["data"], rewards, functions, **read))
