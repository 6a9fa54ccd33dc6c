"""What a stage reads before anything starts: models, tokenizers and data, checked against each other."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from distrl.errors import BadInput, translated
from distrl.learner import digest
from distrl.machine import resolve_device
from distrl.rlhf import data, retokenize
from distrl.rlhf.data_files import sha256_of
from distrl.rlhf.fixed import why_not
from distrl.rlhf.models import (
    Dtype,
    LoraOptions,
    ModelParts,
    context_length,
    read_causal,
    read_scalar,
    scalar_from,
    with_lora,
)
from distrl.rlhf.retokenize import reading_its_own
from distrl.rlhf.reward_trial import try_function
from distrl.rlhf.rewards import (
    FunctionReward,
    ModelReward,
    Weighted,
    check_function,
    function_file,
    function_rewards,
    read_reward,
    require_portable,
)
from distrl.rlhf.sampling import left_out
from distrl.rlhf.scoring import RewardSource
from distrl.rlhf.templates import TemplateOptions, check_template
from distrl.rlhf.tokenizers import (
    check_rows,
    check_same_tokenizer,
    check_vocabulary,
    end_tokens,
    padding_note,
    read_tokenizer,
)
from distrl.stages.config import StageConfig
from distrl.stages.ppo_config import PPOConfig

T = TypeVar("T")


class Problems:
    """What several checks found, raised as one."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def of(self, flag: str, check: Callable[..., T], *given: Any, **more: Any) -> T | None:
        """The check's result, or None and its problems kept under the flag's name."""
        try:
            return check(*given, **more)
        except BadInput as error:
            self.found += [f"{flag}: {problem}" for problem in error.problems]
            return None

    def stop(self) -> None:
        """Raises them, if there are any."""
        if self.found:
            raise BadInput(*dict.fromkeys(self.found))


def file_sha256(path: str | Path) -> str:
    """Of a data file, so that a resumed run finds the same."""
    return sha256_of(path)


def text_sha256(told: Any) -> str:
    """Of lists of numbers and texts."""
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def require_context(parts: ModelParts, tokens: int, told: str) -> None:
    """BadInput where texts of so many tokens do not fit the model."""
    limit = context_length(parts.config)
    if limit is not None and tokens > limit:
        raise BadInput(
            f"{told} = {tokens} tokens, and the model reads {limit}: {tokens - limit} too many; shorten one of the two"
        )


@dataclass(frozen=True)
class PPOMaterials:
    """All that `distrl rlhf ppo` starts from."""

    tokenizer: Any
    prompts: data.DataSet[data.Prompt]
    eval_prompts: data.DataSet[data.Prompt] | None
    end_tokens: tuple[int, ...]
    models: dict[str, ModelParts]  # actor, reference, and critic where it has a trunk of its own
    reward: RewardSource
    notes: list[str]
    facts: dict[str, str]
    sources: dict[str, str]  # digests of the files that reward functions are in


def read_ppo_materials(config: PPOConfig) -> PPOMaterials:
    """Reads and checks it all; data before models, since it is cheap. Raises one BadInput with what is wrong."""
    problems = Problems()
    tokenizer = problems.of("--model", read_tokenizer, config.folder)
    if problems.found:
        for function in config.reward_function:
            problems.of("--reward-function", check_function, function)
    problems.stop()
    prompts = problems.of("--prompts", read_prompt_file, str(config.prompts), tokenizer, config)
    eval_prompts = None
    if config.eval_prompts:
        eval_prompts = problems.of("--eval-prompts", read_prompt_file, config.eval_prompts, tokenizer, config)
    functions, warnings = _functions(config, prompts, tokenizer, problems)
    problems.stop()
    assert prompts is not None and tokenizer is not None
    models = _models(config, tokenizer, problems)
    rewards = [
        problems.of(
            "--reward", reward_model, folder, tokenizer, config.fast_paths, config.dtype, prompts.rows
        )
        for folder in config.reward
    ]
    problems.stop()
    for flag, some in (("--prompts", prompts), ("--eval-prompts", eval_prompts)):
        if some is not None:
            problems.of(
                flag, check_rows, tokenizer, models["actor"].config, [one.tokens for one in some.rows]
            )
    longest = max(len(prompt.tokens) for some in (prompts, eval_prompts) if some for prompt in some.rows)
    told = f"the longest prompt's {longest} + --max-response {config.recipe.max_response}"
    for parts in models.values():
        problems.of("--max-response", require_context, parts, longest + config.recipe.max_response, told)
    problems.stop()
    notes = [
        note
        for note in (
            prompts.note(),
            eval_prompts and eval_prompts.note(),
            padding_note(tokenizer),
            border_note(prompts.rows),
            *map(retokenize.note, config.reward, rewards),
            left_out(models["actor"].generation.to_dict(), config.recipe.temperature),
            *warnings,
        )
        if note
    ]
    ends = end_tokens(tokenizer, models["actor"].generation)
    functions = [replace(one, end_tokens=ends) for one in functions]
    facts = {name: digest(parts.arrays) for name, parts in models.items()}
    for i, one in enumerate(filter(None, rewards)):
        facts |= {
            f"reward {i}": digest(one.parts.arrays),
            f"scale of reward {i}": json.dumps(asdict(one.scale)),
        }
    facts["prompts"] = file_sha256(str(config.prompts))
    facts["tokens of the prompts"] = text_sha256([prompt.tokens for prompt in prompts.rows])
    facts["tokenizer"] = text_sha256(sorted(tokenizer.get_vocab().items()))
    facts["end tokens"] = json.dumps(ends)
    files = {function: function_file(function) for function in config.reward_function}
    return PPOMaterials(
        tokenizer,
        prompts,
        eval_prompts,
        ends,
        models,
        weighted([*filter(None, rewards), *functions], config.reward_weights),
        notes,
        facts,
        {name: file_sha256(path) for name, path in files.items() if path is not None},
    )


def _functions(
    config: PPOConfig, prompts: data.DataSet[data.Prompt] | None, tokenizer: Any, problems: Problems
) -> tuple[list[FunctionReward], list[str]]:
    """The reward functions, tried on the prompts where those could be read, and warnings; problems are kept."""
    warnings: list[str] = []
    if prompts is None:
        for function in config.reward_function:
            problems.of("--reward-function", check_function, function)
        return [], warnings
    several = problems.of(
        "--reward-function",
        function_rewards,
        config.reward_function,
        prompts.rows,
        tokenizer,
        timeout_sec=config.reward_timeout_sec,
        max_timeouts=config.max_timeouts,
        concurrency=config.reward_concurrency,
    )
    for one in several or ():
        warnings += problems.of("--reward-function", try_function, one) or []
    if config.placement != "in-process":
        for one in several or ():
            problems.of("--reward-function", require_portable, one)
    return several or [], warnings


def border_note(prompts: Sequence[data.Prompt]) -> str | None:
    """What to say of prompts whose last token would be another with a word behind them."""
    count = sum(prompt.messages is None and prompt.text.endswith(" ") for prompt in prompts)
    if not count:
        return None
    return (
        f"{count} of {len(prompts)} prompts end with a space, which most tokenizers take into the word behind it: a model "
        "that learned the two as one text has not seen it alone; end them before the space"
    )


def read_prompt_file(path: str, tokenizer: Any, config: Any) -> data.DataSet[data.Prompt]:
    """The prompts of a file, by a stage's own limits."""
    return data.read_prompts(path, tokenizer, **reading(config, tokenizer, config.max_prompt_tokens))


def reading(config: StageConfig, tokenizer: Any, max_tokens: int) -> data.Reading:
    """How a stage reads its texts. Raises BadInput for what the tokenizer's chat template does not read."""
    template = template_options(config)
    check_template(tokenizer, template)
    found: data.Reading = {
        "max_tokens": max_tokens, "too_long": config.too_long, "skip_bad": config.skip_bad, "template": template,
        "field": config.field,
    }  # fmt: skip
    if (turns := getattr(config, "turns", None)) is not None:
        found["turns"] = turns
    return found


def template_options(config: StageConfig) -> TemplateOptions:
    """What a stage asks of the chat template. BadInput where --tools is no list of tools."""
    tools = read_tools(config.tools) if config.tools is not None else ()
    return TemplateOptions(config.chat, config.chat_kwargs, tools, config.system_prompt)


def read_tools(path: str) -> tuple[dict[str, Any], ...]:
    """The tools in a JSON file. BadInput where it has none."""
    with translated(f"--tools: {path} cannot be read as JSON"):
        tools = json.loads(Path(path).read_text(encoding="utf-8"))
    if not isinstance(tools, list) or not all(isinstance(one, dict) for one in tools):
        raise BadInput(f"--tools: {path} must be a JSON list of tools, each an object")
    return tuple(tools)


def weighted(sources: Sequence[RewardSource], weights: Sequence[float]) -> RewardSource:
    """One source of several; names of their metrics that are the same get a number."""
    names = [one.title if isinstance(one, FunctionReward) else getattr(one, "name", "") for one in sources]
    sources = [
        replace(one, name=f"{name}_{names[: place + 1].count(name)}")  # type: ignore[type-var]
        if name and names.count(name) > 1
        else one
        for place, (one, name) in enumerate(zip(sources, names, strict=True))
    ]
    if len(sources) == 1 and (not weights or weights[0] == 1.0):
        return sources[0]
    return Weighted(tuple(zip(weights or [1.0] * len(sources), sources, strict=True)))


def reward_model(
    folder: str,
    tokenizer: Any,
    fast_paths: bool = True,
    dtype: Dtype = "float32",
    prompts: Sequence[data.Prompt] = (),
) -> ModelReward:
    """The reward model of a folder; of another tokenizer than the actor's it reads texts with its own. Raises BadInput."""
    found = reading_its_own(read_reward(folder), folder, tokenizer, prompts)
    parts = replace(found.parts, fused=fast_paths, dtype=dtype)
    return replace(found, parts=parts, name=Path(folder).resolve().name)


def _check_reads(folder: str, tokenizer: Any, parts: ModelParts, flag: str) -> None:
    """BadInput where a model's vocabulary or its tokenizer is another one."""
    check_vocabulary(tokenizer, parts.config, folder)
    if any((Path(folder) / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        check_same_tokenizer(tokenizer, read_tokenizer(folder), ("--model", flag))


def _require_steps(actor: ModelParts, config: PPOConfig) -> None:
    """Compilers and GPUs of other machines are looked for there."""
    here = config.placement == "in-process" and not config.roles
    reason = why_not(config.generation, actor.config, resolve_device(config.device) if here else "elsewhere")
    if reason is not None:
        raise BadInput(reason)


def _models(config: PPOConfig, tokenizer: Any, problems: Problems) -> dict[str, ModelParts]:
    """By role; problems are kept."""
    models: dict[str, ModelParts] = {}
    actor = problems.of("--model", read_causal, config.folder)
    if actor is None:
        return models
    problems.of("--model", check_vocabulary, tokenizer, actor.config, config.folder)
    problems.of(f"--generation {config.generation}", _require_steps, actor, config)
    models["actor"] = models["reference"] = actor
    if config.reference is not None:
        reference = problems.of("--reference", read_causal, config.reference)
        if reference is not None:
            problems.of("--reference", _check_reads, config.reference, tokenizer, reference, "--reference")
            models["reference"] = reference
    if config.recipe.trains_value and not config.value_head:
        if config.critic is None:
            critic = problems.of("--critic", scalar_from, actor)
            models |= {"critic": critic} if critic is not None else {}
        else:
            critic = problems.of("--critic", read_scalar, config.critic)
            if critic is not None:
                problems.of("--critic", _check_reads, config.critic, tokenizer, critic, "--critic")
                models["critic"] = critic
    for role in ("actor", "critic"):
        if role in models:
            adapted = problems.of("--lora-rank", trained_parts, config, models[role])
            models |= {role: adapted} if adapted is not None else {}
    return models


def trained_parts(config: Any, parts: ModelParts) -> ModelParts:
    """The model as it is trained: with adapters, where those are asked for. Raises BadInput."""
    if not config.lora_rank:
        return parts
    return with_lora(parts, LoraOptions(config.lora_rank, config.lora_alpha), config.seed)
