"""Rules that hold between fields: each clash names the fields, shows the arithmetic and a way out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from distrl.named import is_file, must_name

if TYPE_CHECKING:
    from distrl.config import TrainConfig

# Name-v0, namespace/Name-v0, module:namespace/Name-v0 (Gymnasium's own pattern, the version optional)
ENV_ID = re.compile(r"^(?:[A-Za-z_][\w.]*:)?(?:[\w:-]+/)?[\w:.-]+$")
FUNCTION = re.compile(r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$")


def names_function(text: str) -> bool:
    """Whether it is `module:function` or `path/to/file.py:function`."""
    return FUNCTION.match(text) is not None or (is_file(text) and not text.endswith(":"))


class Clash(NamedTuple):
    """Fields that cannot hold together, and the sentence that says so."""

    fields: tuple[str, ...]
    message: str


def clashes(config: TrainConfig) -> list[Clash]:
    """Every rule between fields that `config` breaks."""
    return [
        *_names(config),
        *_batch(config),
        *_groups(config),
        *_reuse(config),
        *_overlap(config),
        *_envs(config),
        *_rollout(config),
        *_others(config),
    ]


def warnings(config: TrainConfig) -> list[str]:
    """What works but is hardly meant."""
    found = []
    if config.workers > config.num_groups:
        found.append(
            f"--workers {config.workers} for --groups {config.num_groups}: "
            f"{config.workers - config.num_groups} of them will idle; a group is the unit of work"
        )
    if config.recipe.clip is None and config.recipe.clip_schedule != "constant":
        found.append("--clip-schedule does nothing without --clip")
    return found


def implied(values: Mapping[str, Any]) -> dict[str, Any]:
    """What other fields make of those that nobody gave: an older policy's data is corrected.

    At lag 1 the clipped ratio alone would do, but the critic's targets and its own clip would hang on values of
    the critic before: on CartPole that costs a tenth of the return, on 5 seeds (benchmarks/learning.py).
    """
    return {"credit": "vtrace"} if values["credit"] == "gae" and values["overlap"] else {}


def divisors_near(number: int, wanted: int, count: int = 3) -> list[int]:
    """The divisors of `number` nearest to `wanted`, in order."""
    small = [one for one in range(1, int(number**0.5) + 1) if number % one == 0]
    every = set(small) | {number // one for one in small}
    return sorted(sorted(every, key=lambda one: (abs(one - wanted), one))[:count])


def _division(total: int, parts: int) -> str:
    return f"{total} / {parts} = {total // parts} remainder {total % parts}"


def _or(numbers: list[int]) -> str:
    return " or ".join(str(one) for one in numbers)


def _names(config: TrainConfig) -> Iterator[Clash]:
    if not ENV_ID.match(config.env):
        yield Clash(
            ("env",),
            f"--env: must be Name-v0, namespace/Name-v0 or module:namespace/Name-v0, got {config.env!r}; "
            "an env of your own: register it with Gymnasium in a module and name that module",
        )
    for name, given in (("wrapper", config.wrapper), ("policy", config.policy)):
        if given is not None and not names_function(given):
            yield Clash(
                (name,),
                f"--{name}: {must_name(given, 'make')}",
            )


def _batch(config: TrainConfig) -> Iterator[Clash]:
    recipe = config.recipe
    if config.network == "lstm":
        if recipe.num_envs % recipe.minibatches:
            yield Clash(
                ("num_envs", "minibatches", "network"),
                f"--minibatches {recipe.minibatches} must divide --num-envs {recipe.num_envs} with "
                f"--network lstm, which minibatches by whole columns (one env's sequence): "
                f"{_division(recipe.num_envs, recipe.minibatches)}; "
                f"use --minibatches {_or(divisors_near(recipe.num_envs, recipe.minibatches))}",
            )
    elif recipe.collects == "steps" and (recipe.num_envs * recipe.num_steps) % recipe.minibatches:
        batch = recipe.num_envs * recipe.num_steps
        yield Clash(
            ("num_envs", "num_steps", "minibatches", "collects"),
            f"--minibatches {recipe.minibatches} must divide the batch: --num-envs {recipe.num_envs} x "
            f"--num-steps {recipe.num_steps} = {batch} rows, {_division(batch, recipe.minibatches)}; "
            f"use --minibatches {_or(divisors_near(batch, recipe.minibatches))}",
        )


def _groups(config: TrainConfig) -> Iterator[Clash]:
    if config.num_groups > config.recipe.num_envs:
        yield Clash(
            ("groups", "num_envs"),
            f"--groups {config.num_groups} must be at most --num-envs {config.recipe.num_envs}: "
            f"{config.num_groups - config.recipe.num_envs} would be empty; use fewer groups or more envs",
        )


def _reuse(config: TrainConfig) -> Iterator[Clash]:
    recipe = config.recipe
    if recipe.epochs > 1 and recipe.clip is None:
        yield Clash(
            ("epochs", "clip"),
            f"--epochs {recipe.epochs} uses each batch {recipe.epochs} times, which needs --clip: after "
            "the first pass the policy is no longer the one that collected; use --clip 0.2 or --epochs 1",
        )
    if recipe.clip_value is not None and recipe.clip is None:
        yield Clash(
            ("clip_value", "clip"),
            f"--clip-value {recipe.clip_value} needs --clip: without it a batch is used once and the value "
            "has not moved yet; use --clip 0.2 or --clip-value none",
        )
    if recipe.clip_value is not None and not recipe.trains_value:
        yield Clash(
            ("clip_value", "baseline", "credit"),
            f"--clip-value {recipe.clip_value} needs a value function, and none is trained with "
            "--no-baseline and --credit return; use --baseline or --clip-value none",
        )


def needs_vtrace(overlap: int, clip: float | None) -> bool:
    """Whether what an older policy collected is past what the loss itself corrects: the clipped ratio, for lag 1."""
    return overlap > 1 or (overlap == 1 and clip is None)


def _overlap(config: TrainConfig) -> Iterator[Clash]:
    recipe = config.recipe
    if needs_vtrace(config.overlap, recipe.clip) and recipe.credit != "vtrace":
        lag = "1 version" if config.overlap == 1 else f"{config.overlap} versions"
        without, less = ("", ", --overlap 1 or 0") if recipe.clip else (" without --clip", " or --overlap 0")
        yield Clash(
            ("overlap", "clip", "credit"),
            f"--overlap {config.overlap}{without} learns from a policy that is {lag} old, which "
            f"--credit {recipe.credit} does not correct; use --credit vtrace{less}",
        )


def _envs(config: TrainConfig) -> Iterator[Clash]:
    if config.env_backend == "native":
        asked = {
            "env_kwargs": config.env_kwargs,
            "wrapper": config.wrapper,
            "frame_stack": (config.frame_stack or 1) > 1 and config.frame_stack,
            "atari": config.atari,
            "vectorization": config.vectorization != "sync" and config.vectorization,
            "autoreset": config.autoreset != "disabled" and config.autoreset,
            "mask_key": config.mask_key,
        }
        for name, value in asked.items():
            if value:
                flag = name.replace("_", "-")
                yield Clash(
                    ("env_backend", name),
                    f"--env-backend native with --{flag} {value}: only Gymnasium's envs know that; use "
                    f"--env-backend gymnasium, or leave --{flag} out",
                )
    if config.env_backend in ("ale", "envpool"):
        yield from _pool(config)
        return
    if config.vectorization != "vector_entry_point":
        return
    if config.autoreset == "disabled":
        yield Clash(
            ("vectorization", "autoreset"),
            "--vectorization vector_entry_point with --autoreset disabled: an env's own vector version "
            "resets by itself; use --autoreset next_step, or --vectorization sync",
        )
    if config.wrapper is not None:
        yield Clash(
            ("vectorization", "wrapper"),
            f"--wrapper {config.wrapper} wraps single envs, and --vectorization vector_entry_point has none; "
            "use --vectorization sync or async",
        )
    if config.mask_key is not None:
        yield Clash(
            ("vectorization", "mask_key"),
            f"--mask-key {config.mask_key} is taken from single envs, and --vectorization vector_entry_point has none; "
            "use --vectorization sync or async",
        )


def _pool(config: TrainConfig) -> Iterator[Clash]:
    for name, value, wrong, why in (
        ("wrapper", config.wrapper, config.wrapper is not None, "it has no single envs to wrap"),
        ("mask_key", config.mask_key, config.mask_key is not None, "its observations are not a Dict"),
        ("vectorization", config.vectorization, config.vectorization != "sync", "it steps all envs itself"),
        ("autoreset", config.autoreset, config.autoreset == "same_step", "it does disabled and next_step"),
    ):
        if wrong:
            yield Clash(
                ("env_backend", name),
                f"--env-backend {config.env_backend} with --{name} {value}: {why}; leave --{name} out, or use "
                "--env-backend gymnasium",
            )


def _rollout(config: TrainConfig) -> Iterator[Clash]:
    if config.rollout != "fused":
        return
    for name, value, allowed in (
        ("env_backend", config.env_backend, ("auto", "native")),
        ("network", config.network, ("auto", "mlp")),
        ("policy", config.policy, (None,)),
        ("nonfinite", config.nonfinite, ("fail",)),
    ):
        if value not in allowed:
            flag = name.replace("_", "-")
            yield Clash(
                ("rollout", name),
                f"--rollout fused with --{flag} {value}: a fused rollout is of a native env and the built-in MLP, and "
                f"drops no rows; use --rollout stepwise",
            )


def _others(config: TrainConfig) -> Iterator[Clash]:
    if config.policy_kwargs and config.policy is None:
        names = ", ".join(config.policy_kwargs)
        yield Clash(
            ("policy_kwargs", "policy"),
            f"--policy-kwargs ({names}) needs --policy module:function, whose arguments they are; "
            "give --policy too",
        )
    if config.address is not None and config.workers == 0:
        yield Clash(
            ("address", "workers"),
            f"--address {config.address} names a Ray cluster and --workers 0 collects without Ray; "
            "use --workers 1 or more, or leave --address out",
        )
    if config.rollout_device == "cuda" and config.workers > 0:
        yield Clash(
            ("rollout_device", "workers"),
            f"--rollout-device cuda infers in the learner's process, and --workers {config.workers} asks for others; "
            "give --workers 0, or --rollout-device cpu",
        )
    if config.eval_every > 0 and config.eval_episodes == 0:
        yield Clash(
            ("eval_every", "eval_episodes"),
            f"--eval-every {config.eval_every} needs --eval-episodes of 1 or more, got 0; "
            "give some, or --eval-every 0",
        )
