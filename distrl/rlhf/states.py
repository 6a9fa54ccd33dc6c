"""What a model keeps of the text so far, whatever its family: keys and values, states of convolutions and recurrences.

    keys, values         [N, heads, S, width]     as many as there are tokens: left-padded where rows are joined
    everything else      [N, ...]                 of one size whatever the text's length: one after another

A family's cache is an object of its own, a list, or a dictionary. Here it is walked through, and what has a row for each
text is changed: rows are taken out of it, or those of several are put together.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

NAMES = (
    "past_key_values",
    "cache_params",
    "state",
)  # under which a trunk is given a cache, and gives it back
GROWING = ("keys", "values")  # attributes whose third dimension is the text's length

Change = Callable[[str, Sequence[Tensor]], Tensor]


class CannotJoin(Exception):
    """States of texts of several lengths do not go together: for example a window that is cut at each text's end."""


def cache_name(trunk: nn.Module) -> str | None:
    """The argument that a trunk takes its cache by; None where it takes none."""
    taken = inspect.signature(trunk.forward).parameters
    return next((name for name in NAMES if name in taken), None)


def takes(trunk: nn.Module, name: str) -> bool:
    """Whether a trunk's forward has this argument."""
    return name in inspect.signature(trunk.forward).parameters


def take_rows(state: Any, num_rows: int, rows: Tensor) -> Any:
    """The states of these rows alone, of `num_rows`."""
    return _walk("", [state], lambda name, given: given[0][rows], [num_rows])


def joined(states: Sequence[Any], rows: Sequence[Tensor], longest: int) -> Any:
    """One state of several: row i of state k becomes row `rows[k][i]`. The first one's objects are kept.

    Keys and values end in column `longest`. Raises CannotJoin where they are not as long as their texts, see `CannotJoin`.
    """
    order = torch.cat([*rows]).argsort()

    def change(name: str, given: Sequence[Tensor]) -> Tensor:
        if name in GROWING:
            if given[0].dim() != 4:
                raise CannotJoin(f"{name} of {given[0].dim()} dimensions")
            given = [nn.functional.pad(one, (0, 0, longest - one.shape[2], 0)) for one in given]
        if len({one.shape[1:] for one in given}) > 1:
            raise CannotJoin(f"{name} of several sizes")
        return torch.cat([*given])[order]

    return _walk("", states, change, [len(one) for one in rows])


def _walk(name: str, values: Sequence[Any], change: Change, num_rows: Sequence[int]) -> Any:
    """`values` are the same place in several states, of `num_rows` texts each; objects are changed in place."""
    first = values[0]
    if isinstance(first, Tensor):
        of_rows = all(one.dim() > 1 and len(one) == n for one, n in zip(values, num_rows, strict=True))
        return change(name, values) if of_rows else first
    if isinstance(first, dict):
        return {
            key: _walk(key if isinstance(key, str) else name, [one[key] for one in values], change, num_rows)
            for key in first
        }
    if isinstance(first, list | tuple):
        parts = [_walk(name, [*each], change, num_rows) for each in zip(*values, strict=True)]
        return type(first)(parts)
    if getattr(first, "is_sliding", False) is True and len(values) > 1:
        raise CannotJoin("a window that moves")
    if type(first).__module__.startswith("transformers.") and hasattr(first, "__dict__"):
        for key in [*vars(first)]:
            setattr(first, key, _walk(key, [getattr(one, key) for one in values], change, num_rows))
    return first
