"""Trees: nested dicts and tuples with arrays (or tensors) as leaves, as Gymnasium's Dict and Tuple spaces give them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

Tree = Any  # an array, or a dict or tuple of trees


def tree_map(function: Callable[..., Any], tree: Tree, *others: Tree) -> Tree:
    """`function` on each leaf of `tree`, with the same leaves of `others`; None stays None."""
    if tree is None:
        return None
    if isinstance(tree, dict):
        return {key: tree_map(function, tree[key], *(other[key] for other in others)) for key in tree}
    if isinstance(tree, tuple):
        return tuple(tree_map(function, *leaves) for leaves in zip(tree, *others, strict=True))
    return function(tree, *others)


def tree_leaves(tree: Tree) -> Iterator[Any]:
    """The leaves, dict entries in their own order."""
    if isinstance(tree, dict):
        for value in tree.values():
            yield from tree_leaves(value)
    elif isinstance(tree, tuple):
        for value in tree:
            yield from tree_leaves(value)
    elif tree is not None:
        yield tree
