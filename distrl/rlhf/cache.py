"""The key-value caches of generation: room for the whole text from the start, so that a step copies nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer


class RoomyLayer(DynamicLayer):
    """A layer's keys and values, [N, heads, S, width], as the filled part of arrays that have room for all of S."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self.filled = 0
        self.store: list[Tensor] = []

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Writes the new tokens' keys and values behind the others, and returns all there are."""
        if not self.store:
            self.dtype, self.device = key_states.dtype, key_states.device
            n, heads = key_states.shape[:2]
            self.store = [
                states.new_empty((n, heads, self.room, states.shape[-1]))
                for states in (key_states, value_states)
            ]
            self.is_initialized = True
        end = self.filled + key_states.shape[-2]
        for store, states in zip(self.store, (key_states, value_states), strict=True):
            store[:, :, self.filled : end] = states
        self.filled = end
        self.keys, self.values = (store[:, :, :end] for store in self.store)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps these rows alone."""
        self.store = [_moved(store, indices, self.filled) for store in self.store]
        self.keys, self.values = (store[:, :, : self.filled] for store in self.store)


def _moved(store: Tensor, rows: Tensor, filled: int) -> Tensor:
    kept = store.new_empty((len(rows), *store.shape[1:]))
    kept[:, :, :filled] = store[rows, :, :filled]
    return kept


@dataclass
class Place:
    """Where the layers of a `fixed_cache` write: a prompt's keys at the front, a later token's in `column` [1]."""

    column: Tensor
    prompts: bool = False

    @contextmanager
    def of_prompts(self, cache: DynamicCache) -> Iterator[None]:
        """Inside, what comes are prompts: the first of a new text.

        What earlier texts left is wiped: it is masked, and 0 times a NaN among it would be one.
        """
        for layer in cast(list[FixedLayer], cache.layers):
            layer.is_initialized = False
            for store in layer.store:
                store.zero_()
        self.prompts = True
        try:
            yield
        finally:
            self.prompts = False


class FixedLayer(DynamicLayer):
    """A layer's keys and values, [N, heads, room, width], which stay where they are; all of them are given, written or not.

    Fewer rows than there are may come: they are the first.
    """

    def __init__(self, room: int, place: Place) -> None:
        super().__init__()
        self.room = room
        self.place = place
        self.store: list[Tensor] = []

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Writes the new tokens' keys and values; returns those of prompts as they came, later the whole room."""
        given = key_states, value_states
        n, heads, length = key_states.shape[:3]
        if not self.store:
            self.dtype, self.device = key_states.dtype, key_states.device
            # zeros: what is not written yet is masked, and 0 times what may lie in memory need not be 0
            self.store = [states.new_zeros((n, heads, self.room, states.shape[-1])) for states in given]
        self.is_initialized = True
        if self.place.prompts:
            for store, states in zip(self.store, given, strict=True):
                store[:n, :, :length] = states
            self.keys, self.values = given
        else:
            self.keys, self.values = (
                store[:n].index_copy_(2, self.place.column, states)
                for store, states in zip(self.store, given, strict=True)
            )
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Moves these rows to the front, in this order."""
        for store in self.store:
            store[: len(indices)] = store[indices]


def fixed_cache(config: Any, room: int, place: Place) -> DynamicCache | None:
    """A cache of `FixedLayer`; None where a layer of the model is no plain attention."""
    cache = DynamicCache(config=config)
    if any(type(layer) is not DynamicLayer for layer in cache.layers):
        return None
    cache.layers = [FixedLayer(room, place) for _ in cache.layers]
    return cache


def make_cache(config: Any, room: int) -> DynamicCache:
    """A cache for a model of this configuration and texts of `room` tokens; what is not plain attention keeps its own layers."""
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer(room) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
