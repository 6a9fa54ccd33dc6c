"""What a group's step returns, and the rows of trees that it handles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from distrl.trees import Tree, tree_map

Array = NDArray[Any]


@dataclass(frozen=True)
class Episode:
    """A whole game: raw rewards summed, steps counted, the numbers in the last step's info."""

    env: int
    return_: float
    length: int
    info: dict[str, float]


@dataclass(frozen=True, slots=True)
class StepResult:
    """Arrays [N]. `reward` is what is learned from (clipped for Atari); a lost life is `terminated`.

    `final_observation` [N, ...] is the true final observation where `terminated | truncated`, and
    otherwise means nothing. Where not `valid`, no decision was taken: count the row nowhere.
    """

    reward: Array
    terminated: Array
    truncated: Array
    valid: Array
    final_observation: Tree
    episodes: list[Episode]


def replaced(tree: Tree, source: Tree, rows: Array) -> Tree:
    """A copy of `tree` with those rows taken from `source`."""

    def leaf(old: Array, new: Array) -> Array:
        out = old.copy()
        out[rows] = new[rows]
        return out

    return tree_map(leaf, tree, source)


def listed(tree: Tree) -> Any:
    """The tree as a state tree, which knows lists and no tuples."""
    if isinstance(tree, dict):
        return {key: listed(value) for key, value in tree.items()}
    return [listed(value) for value in tree] if isinstance(tree, tuple) else tree


def unlisted(tree: Any, space: gymnasium.Space[Any]) -> Tree:
    """What `listed` was given, its arrays copied."""
    if isinstance(space, gymnasium.spaces.Dict):
        return {key: unlisted(tree[key], inner) for key, inner in space.spaces.items()}
    if isinstance(space, gymnasium.spaces.Tuple):
        return tuple(unlisted(value, inner) for value, inner in zip(tree, space.spaces, strict=True))
    return np.array(tree)
