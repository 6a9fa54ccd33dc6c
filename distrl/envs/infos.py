"""Reading a vector env's infos: a dict of arrays [N], each with a bool array `_name` of who gave it."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from distrl.trees import Tree, tree_map

_OURS = {
    "action_mask",
    "final_obs",
    "final_info",
    "life_lost",
    "life_final_obs",
    "forced",
    "unlearned_reward",
    "env_restarted",
}


def mask_of(infos: dict[str, Any], key: str, num_envs: int) -> NDArray[np.bool_]:
    """Which envs gave `key`, [N]; an entry point that does not say so gives it for all."""
    return np.asarray(infos.get(f"_{key}", np.ones(num_envs)), np.bool_)


def texts(infos: dict[str, Any], key: str) -> list[str]:
    """The strings under `key`, there or in `final_info`, of the envs that gave it."""
    found = [str(text) for text in infos.get(key, ()) if text is not None]
    return found + (texts(infos["final_info"], key) if isinstance(infos.get("final_info"), dict) else [])


def numbers(infos: dict[str, Any], slot: int) -> dict[str, float]:
    """The numeric entries of one env's info; nested ones as `outer/inner`. In same_step mode those of the
    step that ended the episode, not of the reset that followed."""
    if "final_obs" in infos:  # an entry point without final_info has only the reset's
        infos = infos["final_info"] if isinstance(infos.get("final_info"), dict) else {}
    return dict(_numbers(infos, slot, ""))


def _numbers(infos: dict[str, Any], slot: int, prefix: str) -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    for key, value in infos.items():
        given = infos.get(f"_{key}")
        if (
            key in _OURS
            or (key.startswith("_") and key[1:] in infos)
            or (given is not None and not given[slot])
        ):
            continue
        if isinstance(value, dict):
            found += _numbers(value, slot, f"{prefix}{key}/")
        elif isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind in "biuf":
            found.append((f"{prefix}{key}", float(value[slot])))
    return found


def with_rows(tree: Tree, rows: Any, mask: NDArray[np.bool_], space: gymnasium.Space[Any]) -> Tree:
    """A copy of `tree` [N, ...] whose rows under `mask` are those of `rows`: an object array of single
    observations, or arrays [N, ...] as in `tree`."""
    out = tree_map(np.copy, tree)
    if isinstance(rows, np.ndarray) and rows.dtype == object:
        for slot in np.flatnonzero(mask):
            _write(out, rows[slot], int(slot), space)
        return out

    def leaf(old: NDArray[Any], new: Any) -> NDArray[Any]:
        old[mask] = new[mask]
        return old

    return tree_map(leaf, out, rows)


def _write(out: Tree, observation: Any, slot: int, space: gymnasium.Space[Any]) -> None:
    if isinstance(space, gymnasium.spaces.Dict):
        for key, inner in space.spaces.items():
            _write(out[key], observation[key], slot, inner)
    elif isinstance(space, gymnasium.spaces.Tuple):
        for part, value, inner in zip(out, observation, space.spaces, strict=True):
            _write(part, value, slot, inner)
    else:
        with np.errstate(over="ignore", invalid="ignore"):  # float64 to float32; looked at by the caller
            out[slot] = observation
