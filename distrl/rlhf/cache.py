"""The key-value caches of generation, and how prompts come into them.

|. . p p p|r r r r _ _|      a row's keys: padding, prompt, response, room for the rest
|p p p p p|r r _ _ _ _|      prompts end in one column, so that all rows write in the same one
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, DynamicLayer

from distrl.maths.pieces import by_length
from distrl.policies.lm import core, text_inputs, trunk
from distrl.rlhf.fast_paths import decoding
from distrl.rlhf.states import cache_name, takes


class StoredLayer(DynamicLayer):
    """A layer's keys and values, [N, heads, room, width] each, in arrays that have their room from the start."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self.store: list[Tensor] = []

    def clear(self, like: DynamicLayer, num_rows: int) -> None:
        """Makes room for texts of `num_rows` rows, or wipes what earlier ones left, for keys and values such as those.

        Zeros: what is not written is masked, and 0 times what may lie in memory need not be 0.
        """
        if self.store:
            for store in self.store:
                store.zero_()
            return
        assert like.keys is not None and like.values is not None
        self.dtype, self.device = like.keys.dtype, like.keys.device
        self.store = [
            states.new_zeros((num_rows, states.shape[1], self.room, states.shape[-1]))
            for states in (like.keys, like.values)
        ]

    def put(self, part: DynamicLayer, of: Tensor, rows: Tensor, end: int) -> None:
        """Gives `rows` what `part` holds in its rows `of`, so that it ends in column `end`."""
        for store, states in zip(self.store, (part.keys, part.values), strict=True):
            assert states is not None
            store[rows, :, end - states.shape[2] : end] = states[of]

    @abstractmethod
    def begin(self, filled: int) -> None:
        """From here on tokens come behind the first `filled` columns."""


class RoomyLayer(StoredLayer):
    """Gives the filled part of its arrays, so that a step copies nothing."""

    filled = 0

    def begin(self, filled: int) -> None:
        self.filled = filled
        self.keys, self.values = (store[:, :, :filled] for store in self.store)
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Writes the new tokens' keys and values behind the others, and returns all there are."""
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


class FixedLayer(StoredLayer):
    """Gives its whole arrays, written or not, which stay where they are; new keys and values go to `column` [1].

    Fewer rows than there are may come: they are the first.
    """

    def __init__(self, room: int, column: Tensor) -> None:
        super().__init__(room)
        self.column = column

    def begin(self, filled: int) -> None:
        self.column.fill_(filled)
        self.keys, self.values = self.store
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Writes a new token's keys and values; returns the whole room's."""
        n = len(key_states)
        self.keys, self.values = (
            store[:n].index_copy_(2, self.column, states)
            for store, states in zip(self.store, (key_states, value_states), strict=True)
        )
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Moves these rows to the front, in this order."""
        for store in self.store:
            store[: len(indices)] = store[indices]


def fixed_cache(config: Any, room: int, column: Tensor) -> DynamicCache | None:
    """A cache of `FixedLayer`; None where a layer of the model is no plain attention."""
    cache = DynamicCache(config=config)
    if any(type(layer) is not DynamicLayer for layer in cache.layers):
        return None
    cache.layers = [FixedLayer(room, column) for _ in cache.layers]
    return cache


def make_cache(config: Any, room: int) -> DynamicCache:
    """A cache for a model of this configuration and texts of `room` tokens; transformers' own where a layer is no plain attention."""
    cache = DynamicCache(config=config)
    if all(type(layer) is DynamicLayer for layer in cache.layers):
        cache.layers = [RoomyLayer(room) for _ in cache.layers]
    return cache


def read_prompts(
    model: nn.Module, prompts: Sequence[Sequence[int]], cache: DynamicCache, fast: bool = True
) -> Tensor:
    """Takes prompts into an empty cache, left-padded; returns the hidden state of each one's last token, [N, H].

    A prompt that comes several times is read once, and prompts of about one length go through the model together, so
    that next to no padding is computed on. A model with layers that are no plain attention reads all rows at once.
    """
    longest = max(map(len, prompts))
    if not all(isinstance(layer, StoredLayer) for layer in cache.layers):
        return _read(model, prompts, cache, fast)
    layers = cast(list[StoredLayer], cache.layers)
    distinct = list(dict.fromkeys(tuple(prompt) for prompt in prompts))
    number = {prompt: i for i, prompt in enumerate(distinct)}
    number_N = np.array([number[tuple(prompt)] for prompt in prompts])
    found: list[tuple[Tensor, Tensor]] = []
    device = next(model.parameters()).device
    for piece in by_length(np.array([len(prompt) for prompt in distinct]), len(distinct), device.type):
        part = DynamicCache(config=cast(Any, core(model)).config)
        hidden = _read(model, [distinct[i] for i in piece], part, fast)
        of, rows = (
            torch.from_numpy(one).to(hidden.device) for one in (piece == number_N[:, None]).T.nonzero()
        )
        for layer, own in zip(layers, cast(list[DynamicLayer], part.layers), strict=True):
            if not found:
                layer.clear(own, len(prompts))
            layer.put(own, of, rows, longest)
        found.append((rows, hidden[of]))
    for layer in layers:
        layer.begin(longest)
    every, last = (torch.cat(parts) for parts in zip(*found, strict=True))
    return torch.empty_like(last).index_copy_(0, every, last)


def _read(model: nn.Module, prompts: Sequence[Sequence[int]], cache: DynamicCache, fast: bool) -> Tensor:
    return read_together(model, prompts, cache, fast)[0]


def read_together(
    model: nn.Module, prompts: Sequence[Sequence[int]], cache: Any, fast: bool
) -> tuple[Tensor, Any]:
    """One pass over prompts that are padded to their longest: the last hidden states, [N, H], and the cache.

    `cache` None: the trunk makes its own.
    """
    length_N = np.array([len(prompt) for prompt in prompts])
    longest = int(length_N.max())
    pads_N1 = (longest - length_N)[:, None]
    text_NS = np.zeros((len(prompts), longest), np.int64)
    for row, prompt in zip(text_NS, prompts, strict=True):
        row[longest - len(prompt) :] = prompt
    place_NS = np.arange(longest) - pads_N1
    device = next(model.parameters()).device
    token, position, seen = (
        torch.from_numpy(array).to(device)
        for array in (text_NS, place_NS.clip(min=0), (place_NS >= 0).astype(np.int64))
    )
    padded = bool(pads_N1.any())
    of_text = trunk(model)
    name = cache_name(of_text)
    given = {"attention_mask": seen if padded else None, "position_ids": position}
    given = {argument: value for argument, value in given.items() if takes(of_text, argument)}
    with decoding(model, padded, fast):
        found = of_text(**text_inputs(model, token), use_cache=True, **given, **{str(name): cache})
    made = getattr(found, str(name), None)
    return cast(Tensor, found.last_hidden_state[:, -1]), cache if made is None else made
