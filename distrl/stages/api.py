"""A stage by the name of its command, for those who do not come by the command line."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distrl.errors import BadInput
from distrl.fields import Schema
from distrl.resolve import CONFIG_FILE, config_file, resolve_as, resolve_resume_as
from distrl.rlhf import given_functions
from distrl.stages.rows import rows_as_files

if TYPE_CHECKING:
    from distrl.session import Outcome

# where its configuration and its work are
STAGES = {
    "distrl rlhf sft": ("distrl.stages.supervised_config:SFT", "distrl.stages.supervised:SFTStage"),
    "distrl rlhf reward": ("distrl.stages.supervised_config:REWARD", "distrl.stages.supervised:RewardStage"),
    "distrl rlhf ppo": ("distrl.stages.ppo_config:PPO", "distrl.stages.ppo:PPOStage"),
}


def run_stage_of(command: str, given: Mapping[str, Any], toml: Path | None = None) -> Outcome:
    """A new run; data may be rows instead of a path. Raises BadInput, RunFailed."""
    schema = _schema(command)
    with rows_as_files(_with_names(given)) as (values, files):
        resolved = resolve_as(schema, values, toml)
        from distrl.preflight import make_current_folder_importable
        from distrl.stages.session import run_stage

        make_current_folder_importable()

        return run_stage(_named(STAGES[command][1])(resolved.config), resolved, rows=files)


def resume_stage(command: str, run_dir: Path, given: Mapping[str, Any], trust_run: bool = False) -> Outcome:
    """Goes on with a run. Raises as `run_stage_of`."""
    if "reward_function" in given:
        given = _without_own(run_dir, given)
    resolved = resolve_resume_as(_schema(command), run_dir, given, trust_run)
    from distrl.preflight import make_current_folder_importable
    from distrl.stages.session import run_stage

    make_current_folder_importable()

    return run_stage(_named(STAGES[command][1])(resolved.config), resolved, run_dir)


def _with_names(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Python objects among `reward_function` by name, as config.json has them."""
    if "reward_function" not in given:
        return given
    return {**given, "reward_function": given_functions.named(given["reward_function"])}


def _without_own(run_dir: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """Without the run's own reward functions, which are given again where they are Python objects."""
    before = config_file(run_dir / CONFIG_FILE).get("reward_function", ())
    found = given_functions.resumed(given["reward_function"], before)
    rest = {name: value for name, value in given.items() if name != "reward_function"}
    return rest if found is None else {**rest, "reward_function": found}


def _schema(command: str) -> Schema[Any]:
    if command not in STAGES:
        raise BadInput(f"the command of a run must be one of {', '.join(STAGES)}, got {command!r}")
    found: Schema[Any] = _named(STAGES[command][0])
    return found


def _named(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)
