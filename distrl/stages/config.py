"""What all stages of RLHF are configured by: frozen, validated, every field a flag, as `distrl.config` for train."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from distrl.clashes import Clash
from distrl.config import Count, CountOrZero
from distrl.errors import BadInput
from distrl.rlhf.data_columns import check_field

S = TypeVar("S", bound="StageConfig")


class StageConfig(BaseModel):
    """The fields that every stage has."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    # who does the work
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where models compute")
    threads: Count = Field(1, description="CPU threads of a model's passes; part of the curve")

    # the texts
    chat: bool = Field(False, description="apply the chat template to text prompts, as a user's message")
    chat_kwargs: dict[str, Any] = Field(
        {}, description="argument of the chat template: --chat-kwargs.enable_thinking false"
    )
    tools: str | None = Field(
        None,
        description="JSON file with a list of tools for the chat template; a row's own tools take precedence",
    )
    system_prompt: str | None = Field(None, description="system message of conversations that have none")
    too_long: Literal["error", "drop"] = Field(
        "error", description="what to do with a text above the limit: error, or drop and count it; never cut"
    )
    skip_bad: bool = Field(False, description="skip and count corrupt rows")
    field: dict[str, Any] = Field(
        {}, description="column that a field has in the data: --field.prompt question; none: unread"
    )

    # what is kept
    run_dir: str | None = Field(
        None, description="exact path; default runs/<model>-<algo or stage>-s<seed>-<UTC time>"
    )
    checkpoint_every: Count = Field(10, description="iterations between checkpoints")
    keep_checkpoints: Count = Field(3, description="newest checkpoints kept")
    keep_every: CountOrZero = Field(
        0, description="iterations between checkpoints that are kept for good (0: none)"
    )
    max_save_failures: Count = Field(
        3, description="consecutive failed checkpoint writes tolerated (full disk)"
    )
    tensorboard: bool = Field(True, description="write TensorBoard events")
    wandb: bool = Field(False, description="log to Weights & Biases; WANDB_MODE=offline works")
    wandb_project: str = Field("distrl", description="its project")

    # what is trained
    model: str | None = Field(None, description="folder of a causal LM and its tokenizer (save_pretrained)")
    seed: CountOrZero = Field(1, description="seed of everything random")

    @property
    def folder(self) -> str:
        """That of the model."""
        assert self.model is not None
        return self.model


KEPT = (
    "device", "threads", "checkpoint_every", "keep_checkpoints", "keep_every", "max_save_failures", "tensorboard",
    "wandb", "wandb_project",
)  # fmt: skip
FIXED = "models, data and the curve cannot change on resume"
# What runs did that are older than these fields.
BEFORE: dict[str, Any] = {
    "chat_kwargs": {},
    "tools": None,
    "system_prompt": None,
    "field": {},
    "save_adapter": False,
}


def needed(config: BaseModel, **why: str) -> Iterator[Clash]:
    """A clash for each of these fields that was not given."""
    for name, advice in why.items():
        if not getattr(config, name):
            yield Clash((name,), f"--{name.replace('_', '-')}: must be given; {advice}")


def common_clashes(config: Any) -> Iterator[Clash]:
    """Of the fields that every stage has: names of `--field` that no format of data has, and `--save-adapter`."""
    try:
        check_field(config.field)
    except BadInput as error:
        for problem in error.problems:
            yield Clash(("field",), problem)
    if config.save_adapter and not config.lora_rank:
        yield Clash(
            ("save_adapter", "lora_rank"),
            "--save-adapter: must go with --lora-rank, which trains adapters; give --lora-rank 8, or leave it out",
        )
    if config.save_adapter and getattr(config, "fresh", None):
        yield Clash(
            ("save_adapter", "fresh"),
            "--save-adapter with --fresh: the adapters would belong to a base model that is not saved; use only one of them",
        )


def no_clashes(find: Callable[[Any], list[Clash]], config: S) -> S:
    """Raises ValueError, as pydantic's validators do, for what `find` finds."""
    if found := find(config):
        raise ValueError("\n".join(clash.message for clash in found))
    return config
