"""From a validated configuration to the parts of a run."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from distrl.config import TrainConfig
from distrl.envs import EnvGroup, EnvSpec, running_statistics
from distrl.envs.actions import ActionMap
from distrl.envs.masks import unused_mask_keys
from distrl.envs.registrations import registrations
from distrl.envs.spaces import leaf_spaces
from distrl.envs.trial import Verdict, try_entry_point, try_env
from distrl.errors import BadInput
from distrl.machine import resolve_device
from distrl.policies import PolicySpec
from distrl.policies.build import readings_of
from distrl.policies.compiled import why_not_compiled
from distrl.rollout_fused import why_not_fused
from distrl.runtime.workers import WorkSpec


def env_spec(config: TrainConfig, repro_dir: str | None = None) -> EnvSpec:
    """What the run's envs are."""
    return EnvSpec(
        env_id=config.env,
        kwargs=dict(config.env_kwargs),
        wrapper=config.wrapper,
        vectorization=config.vectorization,
        autoreset=config.autoreset,
        frame_stack=config.frame_stack,
        atari=config.atari,
        max_episode_steps=config.max_episode_steps,
        max_replay_steps=config.max_replay_steps,
        step_timeout_sec=config.step_timeout_sec,
        max_env_restarts=config.max_env_restarts,
        nonfinite=config.nonfinite,
        repro_dir=repro_dir,
        backend=config.env_backend,
        check_observations=config.check_observations,
        mask_key=config.mask_key,
    )


def policy_spec(config: TrainConfig) -> PolicySpec:
    """What the run's policy is, but for its parameters."""
    return PolicySpec(
        network=config.network,
        hidden_sizes=config.hidden_sizes,
        activation=config.activation,
        lstm_size=config.lstm_size,
        normalize_observation=config.normalize_observation,
        rescale_action=config.rescale_action,
        observation_scale=config.observation_scale,
        precision=config.precision,
        policy=config.policy,
        policy_kwargs=dict(config.policy_kwargs),
    )


def work_spec(
    config: TrainConfig, device: str = "cpu", repro_dir: str | None = None, tried: bool = False
) -> WorkSpec:
    """All that workers need. Makes one env to learn its spaces; BadInput where env and policy do not fit.

    `tried`: what the env claims is tried too, as before a run.
    """
    spec = env_spec(config, repro_dir).settled()
    started = time.monotonic()
    asynchronous = spec.vectorization == "async"  # one env needs no process of its own to be looked at
    probed = replace(spec, vectorization="sync") if asynchronous else spec
    probe = EnvGroup(probed, index=0, num_envs=1, first_env=0, seed=config.seed)
    verdict = Verdict()
    try:
        observation_space, action_space = probe.observation_space, probe.action_space
        time_limit = probe.max_episode_steps
        _no_running_statistics(probe, config)
        if tried and probe.is_wrapped:
            verdict = try_env(spec, probe.first_single_env, time.monotonic() - started, config.seed)
            spec = replace(spec, own_snapshots=verdict.own_snapshots)
        elif tried and probe.has_own and spec.vectorization == "vector_entry_point":
            verdict = try_entry_point(spec, config.seed)
            spec = replace(spec, own_snapshots=verdict.own_snapshots)
    finally:
        probe.close()
    if tried and spec.vectorization == "vector_entry_point" and config.eval_episodes > 0:
        _require_single_env(spec, config)
    if config.recipe.collects == "episodes" and time_limit is None:
        raise BadInput(
            f"--algo {config.algo} collects whole episodes and {config.env} has no time limit: "
            "give --max-episode-steps, or collect fixed steps (--algo actor-critic and up)"
        )
    return WorkSpec(
        env=spec,
        policy=policy_spec(config),
        recipe=config.recipe,
        seed=config.seed,
        group_sizes=tuple(config.group_sizes),
        observation_space=observation_space,
        action_space=action_space,
        device=device,
        learner_threads=config.learner_threads,
        normalize_reward=config.normalize_reward,
        max_skipped_updates=config.max_skipped_updates,
        paths=_paths(config, spec, device, observation_space, action_space),
        overlap=config.overlap,
        rollout_device=config.rollout_device,
        reproducibility=verdict.reproducibility,
        notes=(*verdict.notes, *_unread_masks(config, observation_space, action_space)),
        registrations=registrations(spec),
    )


def _require_single_env(spec: EnvSpec, config: TrainConfig) -> None:
    """BadInput where there is only a vector entry point: an evaluation would fail after all of the training."""
    if spec.registered().entry_point is None:
        raise BadInput(
            f"--eval-episodes {config.eval_episodes} plays single envs, and {config.env} has a vector entry point alone; "
            "register an entry_point too, or train with --eval-episodes 0"
        )


def _unread_masks(
    config: TrainConfig, observation_space: spaces.Space, action_space: spaces.Space
) -> list[str]:
    """A line for each part of an observation that looks like an action mask, and masks nothing."""
    if config.policy is not None:  # it may know what it is
        return []
    return [
        f"observation {key} looks like an action mask, and is read as numbers; --mask-key {key} masks the actions by it"
        for key in unused_mask_keys(observation_space, action_space)
    ]


def spaces_meta(spec: WorkSpec) -> dict[str, str]:
    """What a checkpoint remembers of the env's spaces: kinds, shapes, dtypes, and what an action means (start, bounds).

    Bounds of observations are left out: an env may correct them.
    """
    sizes = {"observation": _size, "action": _meaning}
    return {
        name: ", ".join(
            f"{key}{': ' if key else ''}{type(leaf).__name__}{sizes[name](leaf)} {leaf.dtype}"
            for key, leaf in leaf_spaces(space)
        )
        for name, space in (("observation", spec.observation_space), ("action", spec.action_space))
    }


def _size(leaf: spaces.Space) -> str:
    if isinstance(leaf, spaces.Discrete):
        return f"({leaf.n})"
    return f"({leaf.nvec.tolist()})" if isinstance(leaf, spaces.MultiDiscrete) else str(leaf.shape)


def _meaning(leaf: spaces.Space) -> str:
    """The size of an action, with the numbers that it begins at or lies between."""
    if isinstance(leaf, spaces.Discrete | spaces.MultiDiscrete) and np.any(leaf.start):
        return f"{_size(leaf)} from {np.asarray(leaf.start).tolist()}"
    if isinstance(leaf, spaces.Box):
        low, high = (
            float(bound.flat[0]) if (bound == bound.flat[0]).all() else bound.tolist()
            for bound in (leaf.low, leaf.high)
        )
        return f"{_size(leaf)} in {low} to {high}"
    return _size(leaf)


def require_same_spaces(meta: Mapping[str, Any], spec: WorkSpec, run_dir: Path) -> None:
    """Raises BadInput where the env has other spaces now than when the checkpoint of `meta` was written."""
    now = spaces_meta(spec)
    problems = [
        f"env {spec.env.env_id!r}: its {name} space was {trained} when {run_dir} was trained, and is {now[name]} now; "
        "install the version of the env it was trained with, or start a new run"
        for name, trained in meta.get("spaces", {}).items()
        if trained != now[name]
    ]
    if problems:
        raise BadInput(*problems)


def _no_running_statistics(probe: EnvGroup, config: TrainConfig) -> None:
    """BadInput where a wrapper keeps statistics from episode to episode: no checkpoint and no evaluation would have them."""
    if problems := running_statistics.problems(probe.running_statistics(), config.wrapper, config.env):
        raise BadInput(*problems)


def _paths(
    config: TrainConfig,
    spec: EnvSpec,
    device: str,
    observation_space: spaces.Space,
    action_space: spaces.Space,
) -> dict[str, str]:
    """Which twin does what; told from the configuration and the spaces alone. BadInput as of `_twins`."""
    twins = _twins(config, device, observation_space, action_space)
    reason = why_not_fused(spec)
    if reason is None and twins["inference"] != "compiled":
        reason = f"inference is by {twins['inference']}"
    if config.rollout == "fused" and reason is not None:
        raise BadInput(f"--rollout fused: {reason}; give --rollout stepwise or auto")
    rollout = "stepwise" if config.rollout == "stepwise" or reason is not None else "fused"
    return {"env_backend": spec.backend, "rollout": rollout, **twins}


def _twins(
    config: TrainConfig, device: str, observation_space: spaces.Space, action_space: spaces.Space
) -> dict[str, str]:
    """Which twin updates and which infers.

    BadInput where the compiled one is asked for and cannot serve.
    """
    policy = why_not_compiled(policy_spec(config), observation_space, action_space)
    on_gpu = f"the learner's device is {device}" if device != "cpu" else None
    if config.learner == "captured" and config.network == "lstm":
        raise BadInput(
            "--learner captured: a policy with memory has steps whose number its data decides; "
            "give --learner torch or auto"
        )
    if config.rollout_device == "cuda":
        policy = policy or "rollouts infer on cuda"
    chosen: dict[str, str] = {}
    for part, asked, reason in (
        ("learner", config.learner, policy or on_gpu),
        ("inference", config.inference, policy),
    ):
        if asked == "compiled" and reason is not None:
            raise BadInput(f"--{part} compiled: {reason}; give --{part} torch or auto")
        if asked == "captured":
            chosen[part] = asked
        else:
            chosen[part] = "torch" if asked == "torch" or reason is not None else "compiled"
    return chosen


def learner_device(config: TrainConfig) -> str:
    """`cpu` or `cuda`. BadInput where cuda is asked for, or needed, and there is none."""
    device = resolve_device(config.device)
    if config.learner == "captured" and config.device == "auto" and device == "cpu":
        # asked for by name, the CPU runs the same steps one by one
        raise BadInput(
            "--learner captured: torch sees no CUDA device here; give --device cpu to run its steps without graphs, "
            "or --learner auto"
        )
    return device


def space_lines(
    config: TrainConfig, observation_space: spaces.Space, action_space: spaces.Space
) -> list[str]:
    """How the policy reads each leaf of an observation, and what becomes of its actions; a line each."""
    spec = policy_spec(config)
    if spec.policy is not None:
        lines = [f"observation: {observation_space} -> as --policy {spec.policy} reads it"]
    else:
        lines = [one.described() for one in readings_of(spec, observation_space)]
    how = ActionMap(action_space, spec.rescale_action and spec.policy is None).described()
    lines.append(f"action: {' '.join(str(action_space).split())}" + (f" -> {how}" if how else ""))
    keys = observation_space.spaces if isinstance(observation_space, spaces.Dict) else {}
    lines += [
        f"action mask: is observation {key} one? --mask-key {key} masks the actions by it"
        for key in keys
        if "mask" in key.lower()
    ]
    return lines


def lines_of_spaces(config: TrainConfig) -> list[str]:
    """`space_lines` of the run's envs, one of which is made. BadInput where it cannot be."""
    probe = EnvGroup(env_spec(config).settled(), index=0, num_envs=1, first_env=0, seed=config.seed)
    try:
        return space_lines(config, probe.observation_space, probe.action_space)
    finally:
        probe.close()
