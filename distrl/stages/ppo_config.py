"""The configuration of `distrl rlhf ppo`, and what must hold between its fields."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from distrl.clashes import Clash
from distrl.config import Count, CountOrZero
from distrl.errors import BadInput
from distrl.fields import Schema
from distrl.named import absolute_file
from distrl.rlhf.recipes import RECIPES, RLHF_PPO, ResponseRecipe
from distrl.stages import reward_time
from distrl.stages.config import BEFORE, FIXED, KEPT, StageConfig, common_clashes, needed, no_clashes

if TYPE_CHECKING:
    from distrl.runtime.roles import Host


class PPOConfig(StageConfig):
    """RLHF with PPO, or another algorithm on its loop."""

    # what is trained
    reference: str | None = Field(None, description="folder of the frozen reference; default: --model")
    critic: str | None = Field(
        None, description="folder of the critic's first parameters; default: --model's trunk with a head of 0"
    )
    value_head: bool = Field(False, description="the critic is a head on the actor's trunk")
    lora_rank: CountOrZero = Field(
        0, description="train adapters of this rank (LoRA) instead of the model (0: none)"
    )
    lora_alpha: Annotated[float, Field(gt=0)] = Field(16.0, description="their scale is alpha / rank")
    save_adapter: bool = Field(False, description="save the adapters separately as well, in RUN_DIR/adapter")
    algo: str = Field("rlhf-ppo", description="rlhf-ppo, rlhf-reinforce, rloo or grpo")
    recipe: ResponseRecipe = Field(RLHF_PPO, description="the algorithm's own fields, each a flag")
    iterations: Count = Field(100, description="iterations in all: write, score, learn")

    # the reward
    reward: tuple[str, ...] = Field((), description="folder of a reward model; several with commas")
    reward_function: tuple[str, ...] = Field(
        (), description="module:function or file.py:function that scores responses; several with commas"
    )
    reward_weights: tuple[float, ...] = Field(
        (), description="of the models, then of the functions, in the order given; default: 1 each"
    )
    reward_timeout_sec: Annotated[float, Field(gt=0)] = Field(
        60.0, description="timeout in seconds of one call of a reward function"
    )
    reward_concurrency: Count = Field(1, description="concurrent calls of a reward function")
    max_unscored: Annotated[float, Field(ge=0, le=1)] = Field(
        0.5, description="share of a batch that may be left without a score"
    )

    # the texts
    prompts: str | None = Field(
        None, description="data file: JSONL, JSON, CSV, Parquet, a folder of them; see docs/data.md"
    )
    max_prompt_tokens: Count = Field(512, description="limit of a prompt")

    # a batch
    num_prompts: Count = Field(64, description="prompts of an iteration")
    generation_batch: Count = Field(64, description="responses that are written together")
    forward_batch: Count = Field(
        64, description="texts at most that go through a model together where nothing is learned"
    )
    micro_batch: Count | None = Field(
        None, description="texts at most that go through it together where it learns; default: a minibatch"
    )
    critic_rate: Annotated[float, Field(gt=0)] = Field(
        1.0, description="the critic's learning rate as a multiple of the actor's"
    )

    fast_paths: bool = Field(
        True,
        description="faster twins of transformers' slow places: GELU as one operation, and on a CPU one-query attention",
    )

    generation: Literal["plain", "compiled", "captured"] = Field(
        "plain",
        description="a token is written by a plain loop; by a step in fixed shapes through torch.compile: some 20 s for each "
        "number of rows that is met (all of a batch, a half, a quarter, an eighth), then less time for every token; or, on "
        "a GPU, by that step captured as a CUDA graph",
    )

    dtype: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="numbers of what does not learn: the reference, reward models, and the weights that write; in "
        "bfloat16 a ratio starts near 1 and not at it, unless --exact-ratio",
    )

    # who does the work
    placement: Literal["in-process", "colocate", "separate"] = Field(
        "in-process",
        description="where roles live: in this process without Ray, in one Ray worker, or each in its own (a table of "
        "--roles alone: separate)",
    )
    roles: dict[str, Any] = Field(
        {},
        description="of one role: --roles.reward.workers 2, or [roles.reward] in TOML; workers, each with cpus and gpus; "
        "together_with another role; offload true: its model leaves the device between its turns",
    )
    address: str | None = Field(None, description="address of a Ray cluster; default: a local one")
    overlap: Annotated[int, Field(ge=0, le=1)] = Field(
        0,
        description="1: the next responses are written while these are learned from, by a policy one version old",
    )
    role_timeout_sec: Annotated[float, Field(gt=0)] = Field(
        600.0, description="a role that does not answer for so long is named, and its worker replaced"
    )
    placement_timeout_sec: Annotated[float, Field(gt=0)] = Field(
        60.0, description="the cluster has so long to give every role its place"
    )

    # how it goes
    eval_prompts: str | None = Field(None, description="data file of held-out prompts")
    eval_every: CountOrZero = Field(
        0, description="iterations between evaluations on --eval-prompts (0: none)"
    )

    # samples
    sample_every: CountOrZero = Field(
        10, description="iterations between samples in samples.jsonl and the report (0: none)"
    )
    samples: Count = Field(4, description="prompts sampled, the first ones of --prompts")
    print_samples: bool = Field(False, description="print the samples to the terminal as well")

    # where the time goes
    trace: CountOrZero = Field(
        0, description="last iterations whose timeline is kept: trace.json, which opens in Perfetto (0: none)"
    )

    # when things break
    max_skipped_updates: Count = Field(10, description="minibatches with a NaN gradient skipped in a row")
    max_worker_restarts: CountOrZero = Field(5, description="times a role's worker may die and be replaced")

    @field_validator("recipe", mode="after")
    @classmethod
    def _recipe_within_bounds(cls, recipe: ResponseRecipe) -> ResponseRecipe:
        PPO.check_recipe(recipe)
        return recipe

    @field_validator("reward_function", mode="after")
    @classmethod
    def _files_from_anywhere(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(absolute_file, names))

    @field_validator("algo", "roles", mode="after")
    @classmethod
    def _as_a_flag_would_be(cls, value: Any, info: ValidationInfo) -> Any:
        return PPO.read_value(str(info.field_name), value)

    @model_validator(mode="after")
    def _fields_do_not_clash(self) -> PPOConfig:
        return no_clashes(clashes, self)

    def hosts(self, device: str = "cpu") -> tuple[Host, ...]:
        """Who hosts which role; on `cuda` a worker has a GPU unless its table says otherwise. BadInput for a wrong table."""
        from distrl.runtime.placement import hosts_for

        gpus = 1.0 if device == "cuda" else 0.0
        return hosts_for(self.roles or self.placement, self.recipe, self.value_head, gpus)

    @property
    def num_responses(self) -> int:
        """Of an iteration."""
        return self.num_prompts * self.recipe.group_size

    @property
    def max_timeouts(self) -> int:
        """Calls of reward functions for an iteration that may give no answer in time; one more ends the run."""
        return reward_time.max_timeouts(self)


def clashes(config: PPOConfig) -> list[Clash]:
    """Every rule between fields that `config` breaks."""
    return [
        *_given(config),
        *common_clashes(config),
        *reward_time.clashes(config),
        *_critic(config),
        *_batch(config),
        *_algorithm(config),
        *_roles(config),
    ]


def warnings(config: PPOConfig) -> list[str]:
    """What works but is hardly meant."""
    recipe = config.recipe
    found = []
    if recipe.kl_in == "loss" and recipe.kl_estimator == "k1" and recipe.beta > 0:
        found.append(
            "--kl-estimator k1 with --kl-in loss: its gradient is 0 on average and pulls nowhere; use k3 or k2"
        )
    if config.overlap and recipe.importance_cap is None:
        found.append(
            "--overlap 1 without --importance-cap: responses of a policy one version old are corrected by the clipped "
            "ratio alone; try --importance-cap 2"
        )
    if config.dtype == "bfloat16" and not recipe.exact_ratio and recipe.importance_cap is None:
        found.append(
            "--dtype bfloat16 samples from a policy rounded off the one that learns, so ratios start about 1% from 1: "
            "--exact-ratio starts them at 1, --importance-cap 2 weighs what was sampled"
        )
    if recipe.cut_off == "score" and recipe.max_response < 4:
        found.append(f"--max-response {recipe.max_response}: hardly a response; the default is 64")
    if config.print_samples and not config.sample_every:
        found.append("--print-samples does nothing without --sample-every")
    if config.eval_every and not config.eval_prompts:
        found.append("--eval-every does nothing without --eval-prompts")
    return found


def _given(config: PPOConfig) -> Iterator[Clash]:
    yield from needed(
        config,
        model="a folder that save_pretrained wrote, with its tokenizer",
        prompts='a file of rows, such as JSONL with {"prompt": "..."} a line',
    )
    if not config.reward and not config.reward_function:
        yield Clash(
            ("reward", "reward_function"),
            "--reward: must be given, or --reward-function; without either there is nothing to maximise: give a reward "
            "model's folder or module:function",
        )


def _critic(config: PPOConfig) -> Iterator[Clash]:
    if config.value_head and config.critic:
        yield Clash(
            ("value_head", "critic"),
            f"--value-head and --critic {config.critic} are two critics; give one of the two",
        )
    if config.value_head and config.placement == "separate" and not config.roles:
        yield Clash(
            ("value_head", "placement"),
            "--value-head with --placement separate: a head on the actor's trunk cannot live apart from it; use "
            "--placement colocate, or a critic of its own",
        )
    if config.value_head and config.critic_rate != 1.0:
        yield Clash(
            ("critic_rate", "value_head"),
            f"--critic-rate {config.critic_rate:g} with --value-head: a head on the actor's trunk steps with the actor, at "
            "one rate; leave --critic-rate out, or use a critic of its own",
        )
    if (config.value_head or config.critic) and not config.recipe.trains_value:
        flag = "--value-head" if config.value_head else f"--critic {config.critic}"
        yield Clash(
            ("value_head", "critic", "algo", "credit"),
            f"{flag}: --algo {config.algo} with --credit {config.recipe.credit} has no critic; leave it out, or use "
            "--algo rlhf-ppo",
        )
    if config.recipe.cut_off == "bootstrap" and not config.recipe.trains_value:
        yield Clash(
            ("cut_off", "credit"),
            f"--cut-off bootstrap needs a critic, and --credit {config.recipe.credit} has none; use --cut-off score or "
            "penalty",
        )


def _batch(config: PPOConfig) -> Iterator[Clash]:
    recipe, responses = config.recipe, config.num_responses
    shown = f"--num-prompts {config.num_prompts} x --group-size {recipe.group_size} = {responses} responses"
    if config.generation != "plain" and not config.fast_paths:
        yield Clash(
            ("generation", "fast_paths"),
            f"--generation {config.generation} with --no-fast-paths: it is a fast path; leave one of them out",
        )
    if recipe.minibatches > responses:
        yield Clash(
            ("minibatches", "num_prompts", "group_size"),
            f"--minibatches {recipe.minibatches} of {shown}: {recipe.minibatches - responses} would be empty; use at "
            f"most {responses}",
        )
    if recipe.credit in ("others", "group") and recipe.group_size < 2:
        yield Clash(
            ("group_size", "credit", "algo"),
            f"--group-size {recipe.group_size} with --algo {config.algo}: a response is compared with the others to its "
            "prompt, and there is none; use --group-size 4, say",
        )
    if recipe.credit == "batch" and responses < 2:
        yield Clash(
            ("num_prompts", "group_size", "credit"),
            f"{shown}, and --credit batch compares a response with the others; use 2 or more",
        )


def _algorithm(config: PPOConfig) -> Iterator[Clash]:
    recipe = config.recipe
    if recipe.epochs > 1 and recipe.clip is None:
        yield Clash(
            ("epochs", "clip"),
            f"--epochs {recipe.epochs} uses each batch {recipe.epochs} times, which needs --clip: after the first pass "
            "the policy is no longer the one that wrote; use --clip 0.2 or --epochs 1",
        )
    if recipe.kl_in == "reward" and recipe.kl_estimator != "k1":
        yield Clash(
            ("kl_in", "kl_estimator"),
            f"--kl-estimator {recipe.kl_estimator} with --kl-in reward: in the reward the KL is k1, token by token; use "
            "--kl-in loss, or leave --kl-estimator out",
        )
    fifth = config.num_responses / 5
    if recipe.kl_target is not None and recipe.kl_horizon <= fifth:
        yield Clash(
            ("kl_target", "kl_horizon", "num_prompts", "group_size"),
            f"--kl-horizon {recipe.kl_horizon:g} must be above a fifth of an iteration's {config.num_responses} responses, "
            f"{fifth:g}, or one batch could take beta to 0; use --kl-horizon 10000",
        )
    if config.overlap and recipe.clip is None and recipe.importance_cap is None:
        yield Clash(
            ("overlap", "clip", "importance_cap"),
            "--overlap 1 without --clip learns from a policy one version old, which nothing corrects; give "
            "--importance-cap 2, --clip 0.2 or --overlap 0",
        )


def _roles(config: PPOConfig) -> Iterator[Clash]:
    if config.roles and config.placement != "separate":
        yield Clash(
            ("roles", "placement"),
            f"--roles.{next(iter(config.roles))} places one role's workers, and --placement {config.placement} has all "
            "roles together; use --placement separate, or leave it out",
        )
    elif config.placement != "in-process":
        yield from _hosts(config)
    if config.address is not None and config.placement == "in-process":
        yield Clash(
            ("address", "placement"),
            f"--address {config.address} names a Ray cluster and --placement in-process runs without Ray; use "
            "--placement separate or colocate, or leave --address out",
        )


def _hosts(config: PPOConfig) -> Iterator[Clash]:
    try:
        config.hosts()
    except BadInput as error:
        for problem in error.problems:
            yield Clash(("roles", "placement", "algo", "credit", "value_head", "target_kl"), problem)


def implied(values: Mapping[str, Any]) -> dict[str, Any]:
    """Where a table of roles and a placement of all roles together meet, the one that nobody gave follows the other."""
    return (
        {"placement": "separate", "roles": {}}
        if values["roles"] and values["placement"] != "separate"
        else {}
    )


# may move, not change: `facts` of a checkpoint
_FILES = ("model", "reference", "critic", "reward", "prompts", "tools")
PPO = Schema(
    command="distrl rlhf ppo",
    config=PPOConfig,
    sections={
        "what is trained": "model",
        "the reward": "reward",
        "the texts": ("chat", "prompts"),
        "a batch": "num_prompts",
        "how credit is given": "gamma",
        "how a batch is used": "clip",
        "the KL to the reference": "kl_in",
        "the responses": "temperature",
        "the optimiser: Adam": "learning_rate",
        "who does the work": ("device", "placement"),
        "evaluation": "eval_prompts",
        "samples": "sample_every",
        "where the time goes": "trace",
        "what is kept": "run_dir",
        "when things break": "max_skipped_updates",
    },
    changeable=(
        *KEPT, "iterations", "learning_rate", "learning_rate_schedule", "placement", "roles", "address",
        "role_timeout_sec", "placement_timeout_sec", "eval_every", "eval_prompts", "max_skipped_updates",
        "max_worker_restarts", "reward_timeout_sec", "max_unscored", "trace", *_FILES,
        "reward_concurrency", "sample_every", "samples", "print_samples",
    ),
    fixed=FIXED,
    start_from=" from --model RUN_DIR/model",
    clashes=clashes,
    warnings=warnings,
    implied=implied,
    recipe=ResponseRecipe,
    presets=RECIPES,
    modules=("reward_function",),
    movable=("reward_function",),
    paths=("run_dir", "eval_prompts", *_FILES),
    hidden=("collects", "num_envs", "num_steps", "baseline"),
    before=BEFORE | {"reward_concurrency": 1, "sample_every": 0, "samples": 4, "print_samples": False},
)  # fmt: skip
