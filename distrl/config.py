"""The one configuration of a run: frozen, validated once, every field a flag.

A run is described by a flat set of names (`env`, `workers`, `learning_rate`, …): the fields of
`TrainConfig` and those of its `Recipe`. Flags, TOML and `config.json` all speak these names.
Where a value came from (flag, TOML, preset, default) is kept beside it: see `distrl/resolve.py`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from distrl.clashes import clashes, implied, warnings
from distrl.fields import Schema
from distrl.named import absolute_file
from distrl.recipes import LADDER, PPO, Recipe

Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]


class TrainConfig(BaseModel):
    """Everything that decides a run, and where its results go.

    Raises pydantic's ValidationError (a ValueError) for a wrong value or for fields that clash;
    `distrl.resolve.resolve` says the same as one `BadInput` with all problems.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    # what is trained
    env: str = Field(
        "CartPole-v1",
        description="env id (Name-v0, namespace/Name-v0, module:Name-v0), or module:Name of an Env class, factory or NativeEnv",
    )
    env_kwargs: dict[str, Any] = Field({}, description="arguments of the env: --env-kwargs.goal-velocity 0.1")
    wrapper: str | None = Field(None, description="module:function or file.py:function that wraps each env")
    algo: str = Field(
        "ppo", description="rung of the ladder: reinforce, reinforce-baseline, actor-critic, a2c, ppo"
    )
    recipe: Recipe = Field(PPO, description="the algorithm's own fields, each a flag")
    total_steps: Count = Field(
        500_000, description="total environment steps (rounded up to a whole iteration)"
    )
    seed: CountOrZero = Field(1, description="seed of everything random")

    # the envs
    groups: Count | None = Field(
        None, description="env groups, the unit of work; default num_envs // 4, 1 to 8"
    )
    env_backend: Literal["auto", "gymnasium", "envpool", "ale", "native"] = Field(
        "auto",
        description="backend that steps the envs; auto: native (compiled) where the env has one, else gymnasium; envpool "
        "and ale play other episodes, so they are only on request",
    )
    rollout: Literal["auto", "stepwise", "fused"] = Field(
        "auto",
        description="fused: env, policy and sampling in one compiled loop; auto: for a native env and an MLP",
    )
    vectorization: Literal["sync", "async", "vector_entry_point"] = Field(
        "sync",
        description="how a group's envs are stepped: Gymnasium's SyncVectorEnv, AsyncVectorEnv, or their own",
    )
    autoreset: Literal["disabled", "next_step", "same_step"] = Field(
        "disabled", description="Gymnasium's autoreset mode; disabled lets a run choose each episode's seed"
    )
    atari: bool | None = Field(None, description="the standard Atari preprocessing; default: for ALE/ envs")
    frame_stack: Count | None = Field(
        None, description="stack the last observations; default: 4 for Atari, else 1"
    )
    max_episode_steps: Count | None = Field(None, description="the time limit, where it is not the env's own")
    mask_key: str | None = Field(
        None, description="key of the observation that holds the action mask (docs/action_masks.md)"
    )
    normalize_observation: bool = Field(
        False, description="observations to mean 0 and deviation 1, clipped to 10"
    )
    normalize_reward: bool = Field(
        False, description="rewards by the deviation of the discounted return, clipped to 10"
    )

    observation_scale: Literal["auto", "off", "bytes"] = Field(
        "auto",
        description="scaling of images; auto: to 0..1 by the bounds of the space, none below 28x28; bytes: every uint8 "
        "matrix by 255",
    )
    rescale_action: bool = Field(
        True,
        description="Box actions with finite bounds rescaled from [-1, 1]; --no-rescale-action clips them",
    )

    # the policy
    network: Literal["auto", "mlp", "cnn", "lstm"] = Field(
        "auto", description="auto: cnn for images, else mlp"
    )
    hidden_sizes: tuple[Count, ...] = Field((64, 64), description="widths of the MLP's hidden layers: 64,64")
    activation: Literal["tanh", "relu"] = Field("tanh", description="the MLP's activation")
    lstm_size: Count = Field(128, description="width of the LSTM")
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="of the hidden layers; parameters, heads and losses are always fp32"
    )
    policy: str | None = Field(
        None, description="module:function or file.py:function that makes a custom policy"
    )
    policy_kwargs: dict[str, Any] = Field({}, description="that function's arguments")
    init_from: str | None = Field(
        None, description="run directory whose newest checkpoint gives the first parameters"
    )

    # who does the work
    workers: CountOrZero = Field(2, description="Ray rollout workers; 0 collects in-process, without Ray")
    overlap: CountOrZero = Field(
        0,
        description="fragments collected while the learner learns: the policy's lag, which V-trace corrects",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="the learner's device")
    rollout_device: Literal["cpu", "cuda"] = Field(
        "cpu", description="where rollouts infer; cuda: for large nets, in-process (--workers 0)"
    )
    learner: Literal["auto", "torch", "compiled", "captured"] = Field(
        "auto",
        description="who updates; auto: compiled for an MLP with Discrete or Box actions on a CPU, else torch; "
        "captured: on a GPU, as CUDA graphs",
    )
    inference: Literal["auto", "torch", "compiled"] = Field(
        "auto", description="who infers in rollouts; auto: compiled for an MLP with Discrete or Box actions"
    )
    learner_threads: Count = Field(
        1,
        description="CPU threads of the learner, and of fused rollouts in-process; part of the curve, but for the "
        "compiled learner",
    )
    address: str | None = Field(None, description="address of a Ray cluster; default: a local one")

    # what is kept
    run_dir: str | None = Field(None, description="exact path; default runs/<env>-<algo>-s<seed>-<UTC time>")
    checkpoint_every: Count = Field(50, description="iterations between checkpoints")
    keep_checkpoints: Count = Field(3, description="newest checkpoints kept")
    keep_every: CountOrZero = Field(
        0, description="iterations between checkpoints that are kept for good (0: none)"
    )
    max_save_failures: Count = Field(
        3, description="consecutive failed checkpoint writes tolerated (full disk)"
    )
    eval_every: CountOrZero = Field(
        0, description="iterations between evaluations, the best kept (0: at the end only)"
    )
    eval_episodes: CountOrZero = Field(20, description="greedy episodes of an evaluation (0: none)")
    eval_max_steps: Count = Field(100_000, description="maximum steps of an evaluation episode")
    eval_timeout_sec: Annotated[float, Field(gt=0)] = Field(
        3600.0, description="time limit of an evaluation in seconds; one cut short is not kept as best"
    )
    tensorboard: bool = Field(True, description="write TensorBoard events")
    wandb: bool = Field(False, description="log to Weights & Biases; WANDB_MODE=offline works")
    wandb_project: str = Field("distrl", description="its project")

    # when things break
    check_observations: Literal["error", "warn", "off"] = Field(
        "warn",
        description="observation outside its Box bounds: error, warn (error in the first one only), or off",
    )
    nonfinite: Literal["fail", "drop"] = Field(
        "fail", description="a NaN or Inf from an env: fail, or drop and count"
    )
    max_skipped_updates: Count = Field(10, description="minibatches with a NaN gradient skipped in a row")
    max_env_restarts: CountOrZero = Field(3, description="times an env of a group may raise and be recreated")
    max_worker_restarts: CountOrZero = Field(5, description="times a rollout worker may die and be replaced")
    step_timeout_sec: Annotated[float, Field(gt=0)] = Field(
        120.0, description="an env step or reset may take this long"
    )
    max_replay_steps: CountOrZero = Field(
        30_000, description="steps an env's episode may be replayed to put it back"
    )

    @field_validator("recipe", mode="after")
    @classmethod
    def _recipe_within_bounds(cls, recipe: Recipe) -> Recipe:
        """A `Recipe` made by hand is checked as flags are: the dataclass itself checks nothing."""
        TRAIN.check_recipe(recipe)
        return recipe

    @field_validator("wrapper", "policy", mode="after")
    @classmethod
    def _file_from_anywhere(cls, name: str | None) -> str | None:
        return None if name is None else absolute_file(name)

    @field_validator("algo", "env_kwargs", "policy_kwargs", mode="after")
    @classmethod
    def _as_a_flag_would_be(cls, value: Any, info: ValidationInfo) -> Any:
        return TRAIN.read_value(str(info.field_name), value)

    @model_validator(mode="after")
    def _fields_do_not_clash(self) -> TrainConfig:
        if found := clashes(self):
            raise ValueError("\n".join(clash.message for clash in found))
        return self

    @property
    def num_groups(self) -> int:
        """Env groups of the run: set by the configuration alone, never by the workers (invariant 2)."""
        return self.groups if self.groups is not None else min(max(self.recipe.num_envs // 4, 1), 8)

    @property
    def group_sizes(self) -> list[int]:
        """Envs of each group; they differ by one at most."""
        base, more = divmod(self.recipe.num_envs, self.num_groups)
        return [base + (group < more) for group in range(self.num_groups)]

    @property
    def steps_per_iteration(self) -> int | None:
        """Env steps of one iteration; None where whole episodes are collected."""
        return self.recipe.num_envs * self.recipe.num_steps if self.recipe.collects == "steps" else None


# The comment groups above and in recipes.py.
SECTIONS: dict[str, str] = {
    "what is trained": "env",
    "the envs": "groups",
    "the policy": "network",
    "who does the work": "workers",
    "what is kept": "run_dir",
    "when things break": "check_observations",
    "what is collected": "collects",
    "how credit is given": "gamma",
    "how a batch is used": "clip",
    "the optimiser: Adam": "learning_rate",
}

# What a resumed run may be given anew: how long, how fast, by whom, and what is kept. All else decides the
# curve or the shapes, and a changed value would make the saved state mean something different.
CHANGEABLE = (
    "total_steps", "learning_rate", "learning_rate_schedule", "workers", "device", "rollout_device", "address",
    "checkpoint_every", "keep_checkpoints", "keep_every", "eval_every", "eval_episodes", "eval_max_steps",
    "eval_timeout_sec", "tensorboard", "wandb", "wandb_project", "step_timeout_sec", "max_save_failures", "max_skipped_updates",
    "max_env_restarts", "max_worker_restarts", "max_replay_steps", "check_observations",
)  # fmt: skip

TRAIN = Schema(
    command="distrl train",
    config=TrainConfig,
    sections=SECTIONS,
    changeable=CHANGEABLE,
    fixed="the env, the shapes and the curve cannot change on resume",
    start_from=" (--init-from takes this one's parameters)",
    clashes=clashes,
    warnings=warnings,
    recipe=Recipe,
    presets=LADDER,
    implied=implied,
    modules=("env", "wrapper", "policy"),
    paths=("run_dir", "init_from"),
    before={
        "observation_scale": "bytes",
        "rescale_action": False,
        "mask_key": None,
        "check_observations": "warn",
        "eval_max_steps": 100_000,
        "eval_timeout_sec": 3600.0,
    },
)
