"""`distrl rlhf eval`: a model's folder, or a run's newest model, asked for responses to prompts."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from distrl.checkpoint import Checkpoint, latest_checkpoint
from distrl.errors import BadInput
from distrl.evaluation import find_checkpoint
from distrl.fields import nearest
from distrl.machine import resolve_device
from distrl.resolve import CONFIG_FILE, config_file, read_config_as
from distrl.rlhf.adapters import CONFIG as ADAPTER_FILE
from distrl.rlhf.data import DataSet, Prompt, read_prompts
from distrl.rlhf.data_columns import check_field
from distrl.rlhf.folders import require_folder
from distrl.rlhf.given_functions import named
from distrl.rlhf.models import Dtype, ModelParts, read_causal
from distrl.rlhf.reward_trial import try_function
from distrl.rlhf.rewards import function_rewards
from distrl.rlhf.scoring import RewardSource
from distrl.rlhf.templates import TemplateOptions, check_template, read_arguments
from distrl.rlhf.tokenizers import check_rows, check_vocabulary, end_tokens, read_tokenizer, usable_ids
from distrl.session import has_ended
from distrl.stages.context import longest, require_fit, reward_models
from distrl.stages.evaluation import Evaluator
from distrl.stages.materials import (
    Problems,
    read_tools,
    reward_model,
    template_options,
    trained_parts,
    weighted,
)
from distrl.stages.ppo_config import PPO, PPOConfig
from distrl.trust import check_trust_as


@dataclass(frozen=True)
class Asked:
    """The command line of `distrl rlhf eval`; what is None is the run's own, or the recipe's default."""

    prompts: str | None = None
    reward: tuple[str, ...] = ()
    reward_function: tuple[str, ...] = ()
    reference: str | None = None
    sample: bool = False
    samples: int = 1
    temperature: float | None = None
    max_response: int | None = None
    limit: int | None = None
    seed: int = 0
    batch: int = 64
    chat: bool = False
    chat_kwargs: Mapping[str, Any] | str | None = None  # text: as JSON
    tools: str | None = None
    system_prompt: str | None = None
    skip_bad: bool = False
    field: Mapping[str, str | None] | None = None
    out: Path | None = None
    trust_run: bool = False
    device: str | None = None
    threads: int | None = None
    reward_timeout_sec: float | None = None
    reward_concurrency: int | None = None
    dtype: Dtype | None = None
    checkpoint: str = "latest"

    def __post_init__(self) -> None:
        check_field(self.field or {})
        if self.out is not None and (self.out.is_dir() or not self.out.parent.is_dir()):
            raise BadInput(
                f"--out: must name a file in a folder that exists, got {str(self.out)!r}; name another"
            )
        for name in ("samples", "max_response", "limit", "batch", "threads", "reward_concurrency"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise BadInput(f"--{name.replace('_', '-')} must be 1 or more, got {value!r}")
        for name in ("temperature", "reward_timeout_sec"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise BadInput(f"--{name.replace('_', '-')} must be more than 0, got {value!r}")
        if self.samples > 1 and not self.sample:
            raise BadInput(f"--samples {self.samples}: greedy responses are all alike; give --sample too")

    def computing(self, config: PPOConfig | None) -> Computing:
        """Where and how it computes: as the run does, but for what is asked for."""
        known = PPOConfig.model_fields

        def of(name: str) -> Any:
            asked = getattr(self, name)
            run = known[name].default if config is None else getattr(config, name)
            return run if asked is None else asked

        return Computing(*(of(name) for name in Computing._fields))


def ask(given: Mapping[str, Any]) -> Asked:
    """Of flags by name, as Python has them: paths, and one of what may be several. BadInput for a name that is none."""
    names = [one.name for one in fields(Asked)]
    unknown = [name for name in given if name not in names]
    if unknown:
        raise BadInput(
            *(
                f"--{name.replace('_', '-')}: no such option of `distrl rlhf eval`;{nearest(name, names)}"
                for name in unknown
            )
        )
    given = (
        {**given, "reward_function": named(given["reward_function"])} if "reward_function" in given else given
    )
    plain = {
        name: os.fspath(value) if isinstance(value, os.PathLike) else value for name, value in given.items()
    }
    several = {
        name: (value,) if isinstance(value, str) else tuple(map(os.fspath, value))
        for name in ("reward", "reward_function")
        if (value := plain.get(name)) is not None
    }
    out = {"out": Path(plain["out"])} if plain.get("out") is not None else {}
    checkpoint = str(plain.get("checkpoint", "latest"))
    return Asked(**{**plain, **several, **out, "checkpoint": checkpoint})


class Computing(NamedTuple):
    """`--device`, `--threads`, `--reward-timeout-sec`, `--reward-concurrency` and `--dtype`."""

    device: str
    threads: int
    reward_timeout_sec: float
    reward_concurrency: int
    dtype: Dtype


def look_at(folder: Path, asked: Asked) -> dict[str, Any]:
    """What `--json` prints. Raises BadInput before a response is written."""
    config = run_config(folder, asked.trust_run)
    computing = asked.computing(config)
    device = resolve_device(computing.device)
    torch.set_num_threads(computing.threads)
    parts, where, checkpoint = _policy(folder, config, asked.checkpoint)
    tokenizer = read_tokenizer(where)
    check_vocabulary(tokenizer, parts.config, str(where))
    recipe = config.recipe if config is not None else PPOConfig.model_fields["recipe"].default
    file = _prompts(asked, config, tokenizer)
    prompts = file.rows
    check_rows(tokenizer, parts.config, [prompt.tokens for prompt in prompts], str(where))
    max_response = asked.max_response or recipe.max_response
    ends = end_tokens(tokenizer, parts.generation)
    reference = asked.reference or (config and (config.reference or config.model))
    reference_parts = read_causal(reference) if reference else None
    reward = _reward(asked, config, tokenizer, prompts, computing, ends)
    models = {str(folder): parts, **({"--reference": reference_parts} if reference_parts else {})}
    models |= reward_models(reward) if reward is not None else {}
    text = longest((file,), lambda prompt: len(prompt.tokens))
    require_fit(models, text, None, max_response)
    evaluator = Evaluator(
        prompts=prompts,
        reference=reference_parts,
        reward=reward,
        end_tokens=ends,
        max_response=max_response,
        temperature=asked.temperature or recipe.temperature,
        greedy=not asked.sample,
        samples=asked.samples,
        seed=asked.seed,
        batch=asked.batch,
        device=device,
        vocabulary=usable_ids(tokenizer, parts.config),
        fast_paths=config is None or config.fast_paths,
        dtype=computing.dtype,
    )
    looked = evaluator.evaluate(parts)
    if asked.out is not None:
        lines = (json.dumps(line, ensure_ascii=False) for line in evaluator.texts(looked, tokenizer))
        asked.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    about: dict[str, Any] = {
        "prompts": len(prompts),
        "seed": asked.seed,
        "greedy": not asked.sample,
        "model": str(folder),
    }
    if looked.fault is not None:
        about["first_fault"] = looked.fault
    about |= {"device": device, "threads": computing.threads, "dtype": computing.dtype}
    return {**looked.told, **about, "checkpoint": checkpoint}


def run_config(folder: Path, trust_run: bool) -> PPOConfig | None:
    """That of a run of `distrl rlhf ppo`; None for another run or a model's folder. BadInput for neither."""
    require_folder(folder)
    if (folder / ADAPTER_FILE).is_file():
        return None
    if not (folder / CONFIG_FILE).is_file():
        raise BadInput(f"{folder} is neither a run directory nor a model folder: it has no config.json")
    try:
        command = config_file(folder / CONFIG_FILE).get("command")
    except BadInput:  # a model's config.json has no schema number
        return None
    if command != PPO.command:
        return None
    config = read_config_as(PPO, folder / CONFIG_FILE).config
    check_trust_as(PPO, folder / CONFIG_FILE, config, trust_run)
    return config


def _policy(folder: Path, config: PPOConfig | None, which: str) -> tuple[ModelParts, Path, int | None]:
    """The model, where its tokenizer lies, and the checkpoint that it is from; None where it was saved at the end."""
    if which != "latest":
        if config is None:
            raise BadInput(
                f"--checkpoint {which}: {folder} is not a run of `{PPO.command}`, and only such a run has checkpoints to choose from; "
                "leave it out"
            )
        return _of_checkpoint(config, find_checkpoint(folder, which))
    saved = (folder / "model" / CONFIG_FILE).is_file()
    if saved and has_ended(folder):  # of a run that goes on since, it is an old one
        return read_causal(folder / "model", writes=True), folder / "model", None
    if config is None and saved:
        raise BadInput(
            f"{folder} has not finished, and its model is from an earlier end: finish it with --resume, or name "
            f"{folder / 'model'}"
        )
    if config is None:
        return read_causal(folder, writes=True), folder, None
    found = latest_checkpoint(folder / "checkpoints")
    if found is None:
        raise BadInput(f"{folder} has neither a model nor a checkpoint")
    return _of_checkpoint(config, found[1])


def _of_checkpoint(config: PPOConfig, found: Checkpoint) -> tuple[ModelParts, Path, int]:
    actor = trained_parts(config, read_causal(config.folder, writes=True)).with_arrays(
        found.trees["actor"]["parameters"]
    )
    return actor, Path(config.folder), found.iteration


def _prompts(asked: Asked, config: PPOConfig | None, tokenizer: Any) -> DataSet[Prompt]:
    path = asked.prompts or (config and (config.eval_prompts or config.prompts))
    if not path:
        raise BadInput(
            '--prompts: must be given; a file of rows, such as JSONL with {"prompt": "..."} a line'
        )
    field = asked.field if asked.field is not None else config.field if config is not None else {}
    template = _template(asked, config)
    check_template(tokenizer, template)
    own = config is not None and config.skip_bad and not asked.prompts
    found = read_prompts(path, tokenizer, skip_bad=asked.skip_bad or own, template=template, field=field)
    return replace(found, rows=found.rows[: asked.limit], where=found.where[: asked.limit])


def _template(asked: Asked, config: PPOConfig | None) -> TemplateOptions:
    """What was asked of the chat template, else what the run asked."""
    found = TemplateOptions() if config is None else template_options(config)
    if asked.chat_kwargs is not None:
        found = replace(found, arguments=read_arguments(asked.chat_kwargs))
    if asked.tools is not None:
        found = replace(found, tools=read_tools(asked.tools))
    if asked.system_prompt is not None:
        found = replace(found, system=asked.system_prompt)
    return replace(found, chat=asked.chat or found.chat)


def _reward(
    asked: Asked,
    config: PPOConfig | None,
    tokenizer: Any,
    prompts: tuple[Prompt, ...],
    computing: Computing,
    ends: tuple[int, ...],
) -> RewardSource | None:
    """What was asked for, else the run's own, else none."""
    folders, functions = asked.reward, asked.reward_function
    weights: tuple[float, ...] = ()
    if not folders and not functions and config is not None:
        folders, functions, weights = config.reward, config.reward_function, config.reward_weights
    problems = Problems()
    fast = config is None or config.fast_paths
    models = [
        problems.of("--reward", reward_model, folder, tokenizer, fast, computing.dtype, prompts)
        for folder in folders
    ]
    own = problems.of(
        "--reward-function",
        function_rewards,
        functions,
        prompts,
        tokenizer,
        timeout_sec=computing.reward_timeout_sec,
        concurrency=computing.reward_concurrency,
        end_tokens=ends,
    )
    for one in own or ():
        problems.of("--reward-function", try_function, one)
    problems.stop()
    sources: list[RewardSource] = [*(one for one in models if one is not None), *(own or ())]
    return weighted(sources, weights) if sources else None
