"""Wrappers whose memory outlives an episode: running means and deviations of what they saw.

Each env of a run would have its own, no checkpoint holds them, and an evaluation starts without: what was trained on
one scale would be played on another. The run's own moments are pooled over envs, kept, and frozen in evaluation.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium
from gymnasium import wrappers
from gymnasium.wrappers import vector as vector_wrappers

# Wrapper -> the flag that does the same; `update_running_mean` False: fixed numbers, which are no memory
OURS: dict[type, str] = {
    wrappers.NormalizeObservation: "--normalize-observation",
    wrappers.NormalizeReward: "--normalize-reward",
    vector_wrappers.NormalizeObservation: "--normalize-observation",
    vector_wrappers.NormalizeReward: "--normalize-reward",
}


def layers(env: Any) -> Iterator[Any]:
    """The env's wrappers from the outermost inwards, then the env itself."""
    while env is not None:
        yield env
        is_wrapper = isinstance(env, gymnasium.Wrapper | gymnasium.vector.VectorWrapper)
        env = env.env if is_wrapper else None


def found(env: Any) -> list[tuple[str, str | None]]:
    """Every layer that keeps running statistics: its class's name, and the flag to use instead (None: not known)."""
    kept = []
    for layer in layers(env):
        flag = next((flag for kind, flag in OURS.items() if isinstance(layer, kind)), None)
        if (flag is not None or keeps_moments(layer)) and getattr(layer, "update_running_mean", True):
            kept.append((type(layer).__name__, flag))
    return kept


def problems(layers_found: list[tuple[str, str | None]], wrapper: str | None, env_id: str) -> list[str]:
    """Why a run cannot be with these layers, a line each, and what to do instead."""
    where = f"--wrapper {wrapper}" if wrapper is not None else f"--env {env_id}"
    return [
        f"{where}: {name} keeps running statistics, which neither a checkpoint nor an evaluation would have; use "
        f"{flag or '--normalize-observation or --normalize-reward'} instead, or fixed numbers (update_running_mean = "
        "False)"
        for name, flag in layers_found
    ]


def keeps_moments(layer: Any) -> bool:
    """Whether a wrapper holds a running mean and variance, as Gymnasium's `RunningMeanStd` and its copies are."""
    if not isinstance(layer, gymnasium.Wrapper | gymnasium.vector.VectorWrapper):
        return False
    names = ("mean", "var", "count", "update")
    return any(all(hasattr(value, name) for name in names) for value in vars(layer).values())
