"""Infos: what an env says is the env's, what distrl says travels beside it.

    AtariGame --info[GAME]--> wrappers --> EpisodeEnv --{SAID: Said}--> vector env --> group: `read`, by our own names

An env's info may hold any key and any value. Of it are taken: the action mask, and the numbers of the step that ended
an episode. A vector env that steps `EpisodeEnv`s never sees the rest, so that no key, type or length can stop it.
N envs of a group.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from distrl.errors import RunFailed
from distrl.trees import Tree, tree_map

MASK = "action_mask"  # the one key of an env's info that means something to a policy
SAID = "distrl"  # the one key of the dict that a vector env gets of `EpisodeEnv`
_DEEPEST = 8  # levels of nested dicts that are looked at
_GYMNASIUMS = ("final_obs", "final_info", MASK)  # in a vector entry point's infos, no numbers of the env's


class Key(Enum):
    """Keys of distrl's own in an env's info: objects, which no env can have."""

    GAME = "game"  # AtariGame's: a dict of `life_lost`, `life_final_obs`, `unlearned_reward`


GAME = Key.GAME


@dataclass(frozen=True, slots=True)
class Said:
    """What one env said in a reset or step; `numbers` of a step that ended the episode."""

    mask: Any
    numbers: dict[str, float] | None
    game: dict[str, Any] | None
    restarted: str | None


def told(info: Any, over: bool, restarted: str | None = None) -> dict[str, Any]:
    """The info of a vector env for an env's own `info`, which may be None: `Said` under one key, or nothing."""
    if not info and not over and restarted is None:
        return {}
    if not isinstance(info, Mapping):
        info = {}
    mask, game = info.get(MASK), info.get(GAME)
    if not over and mask is None and game is None and restarted is None:
        return {}
    if isinstance(mask, np.ndarray):
        mask = mask.copy()  # it may be the env's own
    return {SAID: Said(mask, numbers_of(info) if over else None, game, restarted)}


def numbers_of(info: Mapping[Any, Any], prefix: str = "", depth: int = 0) -> dict[str, float]:
    """The numeric entries of an env's info as floats, nested ones as `outer/inner`; all else is left out."""
    found: dict[str, float] = {}
    for key, value in info.items():
        if key is GAME or (key == MASK and not prefix):
            continue
        if isinstance(value, Mapping):
            if depth < _DEEPEST:
                found |= numbers_of(value, f"{prefix}{key}/", depth + 1)
        elif (number := _number(value)) is not None:
            found[f"{prefix}{key}"] = number
    return found


def _number(value: Any) -> float | None:
    """A bool, an int or a float, of Python, NumPy or a tensor of one entry; None for anything else."""
    try:
        if not isinstance(value, bool | int | float):
            if not hasattr(value, "item") or any(size != 1 for size in getattr(value, "shape", (0,))):
                return None
            value = value.item()
        return float(value) if isinstance(value, bool | int | float) else None
    except Exception:  # an int beyond float64, a lazy object's own error: no number, and no reason to stop
        return None


def read(infos: dict[str, Any], num_envs: int) -> dict[str, Any]:
    """What `EpisodeEnv`s told, of a vector env's infos, by our own names: those that are there of

    action_mask [N, ...] and _action_mask [N] (who gave one), numbers (slot -> the episode's), final_obs,
    life_lost [N], life_final_obs [N], unlearned_reward [N] (and final_unlearned_reward, of a step whose env was reset
    within it), env_restarted (messages).
    """
    own: dict[str, Any] = {}
    now = infos.get(SAID)
    last = infos.get("final_info", {}).get(SAID)
    if "final_obs" in infos:
        own["final_obs"] = infos["final_obs"]
    ended = last if "final_obs" in infos else now
    own["numbers"] = lambda slot: (ended[slot].numbers or {}) if ended is not None and ended[slot] else {}
    for said, prefix in ((now, ""), (last, "final_")):
        heard = [] if said is None else [(slot, one) for slot, one in enumerate(said) if one is not None]
        for slot, one in heard:
            if one.restarted is not None:
                own.setdefault("env_restarted", []).append(one.restarted)
            if one.game is not None:
                _read_game(own, one.game, slot, num_envs, prefix)
        if not prefix:
            _read_masks(own, {slot: one.mask for slot, one in heard if one.mask is not None}, num_envs)
    return own


def _read_game(own: dict[str, Any], game: dict[str, Any], slot: int, num_envs: int, prefix: str) -> None:
    if "unlearned_reward" in game:
        key = f"{prefix}unlearned_reward"
        own.setdefault(key, np.zeros(num_envs))[slot] = game["unlearned_reward"]
    if "life_lost" in game and not prefix:
        own.setdefault("life_lost", np.zeros(num_envs, np.bool_))[slot] = True
        own.setdefault("life_final_obs", np.full(num_envs, None, object))[slot] = game["life_final_obs"]


def _read_masks(own: dict[str, Any], masks: dict[int, Any], num_envs: int) -> None:
    if not masks:
        return
    rows = {slot: np.asarray(mask) for slot, mask in masks.items()}
    shapes = {row.shape for row in rows.values()}
    if len(shapes) > 1:
        raise RunFailed(f"the envs of a group give action masks of different shapes: {sorted(shapes)}")
    all_of = np.zeros((num_envs, *shapes.pop()), np.bool_)
    given = np.zeros(num_envs, np.bool_)
    for slot, row in rows.items():
        all_of[slot], given[slot] = row, True
    own |= {MASK: all_of, f"_{MASK}": given}


def read_entry_point(infos: dict[str, Any], num_envs: int) -> dict[str, Any]:
    """The same of a vector entry point's infos: Gymnasium's arrays [N], each with `_name` [N] of who gave it."""
    own: dict[str, Any] = {}
    if "final_obs" in infos:
        own["final_obs"] = infos["final_obs"]
        final = infos.get("final_info")
        numbers = final if isinstance(final, Mapping) else {}  # without it there is only the reset's
    else:
        numbers = infos
    own["numbers"] = lambda slot: entry_point_numbers(numbers, slot)
    if MASK in infos:
        own[MASK] = infos[MASK]
        own[f"_{MASK}"] = np.asarray(infos.get(f"_{MASK}", np.ones(num_envs)), np.bool_)
    return own


def entry_point_numbers(
    infos: Mapping[Any, Any], slot: int, prefix: str = "", depth: int = 0
) -> dict[str, float]:
    """One env's numeric entries of a vector env's infos."""
    found: dict[str, float] = {}
    for key, value in infos.items():
        given = infos.get(f"_{key}")
        if key in _GYMNASIUMS or (isinstance(key, str) and key.startswith("_") and key[1:] in infos):
            continue
        if isinstance(given, np.ndarray) and given.shape[:1] > (slot,) and not given[slot]:
            continue
        if isinstance(value, Mapping):
            if depth < _DEEPEST:
                found |= entry_point_numbers(value, slot, f"{prefix}{key}/", depth + 1)
        elif isinstance(value, np.ndarray) and value.ndim == 1 and len(value) > slot:
            number = _number(value[slot])
            found |= {} if number is None else {f"{prefix}{key}": number}
    return found


READERS: dict[str, Callable[[dict[str, Any], int], dict[str, Any]]] = {
    "wrapped": read,
    "entry_point": read_entry_point,
    "own": lambda infos, num_envs: infos,  # our vector envs speak by these names themselves
}


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
