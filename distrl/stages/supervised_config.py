"""The configurations of `distrl rlhf sft` and `distrl rlhf reward`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from distrl.clashes import Clash
from distrl.config import Count, CountOrZero
from distrl.fields import Schema
from distrl.rlhf.options import TrainOptions
from distrl.stages.config import BEFORE, FIXED, KEPT, StageConfig, common_clashes, needed, no_clashes


class SupervisedConfig(StageConfig):
    """What both have."""

    # the texts
    data: str | None = Field(
        None, description="data file: JSONL, JSON, CSV, Parquet, a folder of them; see docs/data.md"
    )
    held_out: str | None = Field(None, description="data file of held-out rows for evaluation")
    held_out_share: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="share of --data held out instead, chosen by the seed"
    )
    max_tokens: Count = Field(1024, description="limit of a prompt with its answer")

    # what is trained
    lora_rank: CountOrZero = Field(
        0, description="train adapters of this rank (LoRA), merged in the end (0: none)"
    )
    lora_alpha: Annotated[float, Field(gt=0)] = Field(16.0, description="their scale is alpha / rank")
    save_adapter: bool = Field(False, description="save the adapters separately as well, in RUN_DIR/adapter")
    recipe: TrainOptions = Field(TrainOptions(), description="how it is trained, each a flag")

    @field_validator("recipe", mode="after")
    @classmethod
    def _recipe_within_bounds(cls, recipe: TrainOptions) -> TrainOptions:
        SFT.check_recipe(recipe)  # the two have one recipe
        return recipe

    @model_validator(mode="after")
    def _fields_do_not_clash(self) -> Self:
        return no_clashes(clashes, self)


class SFTConfig(SupervisedConfig):
    """Supervised fine-tuning on demonstrations."""

    turns: Literal["all", "last"] = Field(
        "all", description="assistant turns of a conversation that are trained on"
    )
    fresh: str | None = Field(
        None,
        description="config.json of a model to begin from scratch; --model then only gives the tokenizer",
    )


class RewardConfig(SupervisedConfig):
    """A reward model from preferences."""

    # the scores
    normalize: bool = Field(
        True,
        description="bring scores to mean 0 and deviation 1 on responses of --model to the data's prompts",
    )
    normalize_responses: Annotated[int, Field(ge=2)] = Field(256, description="how many responses, at most")
    max_response: Count = Field(64, description="tokens that such a response may have")
    temperature: Annotated[float, Field(gt=0)] = Field(1.0, description="that they are sampled at")


def clashes(config: SupervisedConfig) -> list[Clash]:
    """Every rule between fields that `config` breaks."""
    return [*_clashes(config)]


def _clashes(config: SupervisedConfig) -> Iterator[Clash]:
    yield from needed(config, model="a folder that save_pretrained wrote, with its tokenizer")
    yield from needed(config, data="a file of rows, or a folder of them")
    yield from common_clashes(config)
    if config.held_out and config.held_out_share:
        yield Clash(
            ("held_out", "held_out_share"),
            f"--held-out {config.held_out} and --held-out-share {config.held_out_share:g} are two held-out sets; give one "
            "of the two",
        )
    recipe = config.recipe
    if recipe.micro_batch is not None and recipe.micro_batch > recipe.batch_size:
        yield Clash(
            ("micro_batch", "batch_size"),
            f"--micro-batch {recipe.micro_batch} of --batch-size {recipe.batch_size}: a step has no more rows; use at "
            f"most {recipe.batch_size}",
        )
    if recipe.evaluate_every is not None and not (config.held_out or config.held_out_share):
        yield Clash(
            ("evaluate_every", "held_out", "held_out_share"),
            f"--evaluate-every {recipe.evaluate_every} looks at held-out rows, and there are none; give --held-out or "
            "--held-out-share 0.1",
        )


def warnings(config: SupervisedConfig) -> list[str]:
    """What works but is hardly meant."""
    if not config.held_out and not config.held_out_share:
        return [
            "no rows are held out: nothing will tell learning from learning by heart; --held-out-share 0.1"
        ]
    return []


_SECTIONS: dict[str, str | tuple[str, ...]] = {
    "what is trained": ("model", "lora_rank", "fresh"),
    "the texts": ("chat", "data", "turns"),
    "how it is trained": "learning_rate",
    "the scores": "normalize",
    "who does the work": "device",
    "what is kept": "run_dir",
}
_FILES = ("model", "data", "held_out", "tools")  # may move, not change: `facts` of a checkpoint
_CHANGEABLE = (*KEPT, "evaluate_every", "max_skipped_updates", *_FILES)

SFT = Schema(
    command="distrl rlhf sft",
    config=SFTConfig,
    sections={heading: first for heading, first in _SECTIONS.items() if heading != "the scores"},
    changeable=(*_CHANGEABLE, "fresh"),
    paths=("run_dir", "fresh", *_FILES),
    fixed=FIXED,
    start_from=" from --model RUN_DIR/model",
    clashes=clashes,
    warnings=warnings,
    recipe=TrainOptions,
    hidden=("seed",),
    before=BEFORE | {"turns": "last"},
)
_OF_SCORES = ("normalize", "normalize_responses", "max_response", "temperature")
REWARD = Schema(
    command="distrl rlhf reward",
    config=RewardConfig,
    sections=_SECTIONS,
    changeable=(*_CHANGEABLE, *_OF_SCORES),
    paths=("run_dir", *_FILES),
    fixed=FIXED,
    start_from="",
    clashes=clashes,
    warnings=warnings,
    recipe=TrainOptions,
    hidden=("seed",),
    before=BEFORE,
)
