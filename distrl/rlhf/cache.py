"""The key-value cache of generation: room for the whole text from the start, so that a step copies nothing."""

from __future__ import annotations

from typing import Any

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


def make_cache(config: Any, room: int) -> DynamicCache:
    """A cache for a model of this configuration and texts of `room` tokens; what is not plain attention keeps its own layers."""
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer(room) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
