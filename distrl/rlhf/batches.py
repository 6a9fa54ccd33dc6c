"""Texts that are being written together: the hidden state of each one's last token, one more token, rows that leave.

`CachedBatch` keeps what the model computed of a text (`cache`, `states`), `WholeBatch` the texts themselves.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from distrl.policies.lm import core, text_inputs, trunk, trunk_hidden
from distrl.rlhf.cache import make_cache, read_prompts, read_together
from distrl.rlhf.states import cache_name, joined, take_rows, takes
from distrl.rlhf.ways import Way

Prompts = Sequence[Sequence[int]]


class Batch(Protocol):
    """N rows: `hidden` [N, H] is of each row's last token."""

    hidden: Tensor

    def go_on(self, token_N: Tensor) -> None:
        """Takes in one more token of each row."""
        ...

    def keep(self, rows: Tensor) -> None:
        """Lets the other rows go."""
        ...


def start(prompts: Prompts, limit: int, model: nn.Module, way: Way) -> Batch:
    """Reads the prompts; `limit` tokens at most come behind each."""
    if way.reading == "recomputed":
        return WholeBatch(prompts, limit, model)
    return CachedBatch.start(prompts, limit, model, way)


class CachedBatch:
    """Rows, and the cache of what came before each one's last token."""

    def __init__(
        self,
        model: nn.Module,
        cache: Any,
        hidden: Tensor,
        position_N: Tensor,
        mask: Tensor | None,
        seen: int,
        own: bool,
    ) -> None:
        self.model, self.trunk = model, trunk(model)
        self.name = cast(str, cache_name(self.trunk))
        self.cache = cache
        self.hidden = hidden
        self.position_N = position_N  # of the next token in its own text
        self.mask = mask  # [N, room]: True where a key may be seen; None where no prompt is padded
        self.seen = seen  # columns
        self.own = own  # its rows are taken by its own method

    @classmethod
    def start(cls, prompts: Prompts, limit: int, model: nn.Module, way: Way) -> CachedBatch:
        """Reads the prompts, as `way` says."""
        lengths = np.array([len(prompt) for prompt in prompts])
        longest = int(lengths.max())
        own = way.reading in ("stored", "padded")
        if own:
            cache: Any = make_cache(cast(Any, core(model)).config, longest + limit)
            hidden = read_prompts(model, prompts, cache, way.fast)
        else:
            cache, hidden = _read_by_length(model, prompts, way.fast)
        length_N = torch.from_numpy(lengths).to(hidden.device)
        room = torch.arange(longest + limit, device=hidden.device)
        grows = cache_name(trunk(model)) == "past_key_values"
        padded = grows and bool((lengths != longest).any())
        mask = room >= (longest - length_N).unsqueeze(1) if padded else None
        return cls(model, cache, hidden, length_N, mask, longest, own)

    def go_on(self, token_N: Tensor) -> None:
        self.seen += 1
        given: dict[str, Any] = {self.name: self.cache, "use_cache": True}
        if takes(self.trunk, "attention_mask"):
            given["attention_mask"] = None if self.mask is None else self.mask[:, : self.seen].long()
        if takes(self.trunk, "position_ids"):
            given["position_ids"] = self.position_N.unsqueeze(1)
        found = self.trunk(**text_inputs(self.model, token_N.unsqueeze(1)), **given)
        self.hidden = found.last_hidden_state[:, -1]
        if getattr(found, self.name, None) is not None:
            self.cache = getattr(found, self.name)
        self.position_N = self.position_N + 1

    def keep(self, rows: Tensor) -> None:
        if self.own:
            self.cache.batch_select_indices(rows)
        else:
            self.cache = take_rows(self.cache, len(self.position_N), rows)
        self.position_N = self.position_N[rows]
        if self.mask is not None:
            self.mask = self.mask[rows]


def new_cache(of_text: nn.Module, config: Any) -> Any:
    """An empty cache of transformers' or, where a family has a class of its own, that; None where its trunk makes it."""
    from transformers.cache_utils import DynamicCache

    if cache_name(of_text) != "past_key_values":
        return None
    module = sys.modules[type(of_text).__module__]
    own = [
        one
        for one in vars(module).values()
        if isinstance(one, type) and issubclass(one, DynamicCache) and one.__module__ == module.__name__
    ]
    return own[0]() if own else DynamicCache(config=config)


def _read_by_length(model: nn.Module, prompts: Prompts, fast: bool) -> tuple[Any, Tensor]:
    """The state of all prompts and the last hidden states, [N, H]; those of one length are read together, unpadded."""
    config = cast(Any, core(model)).config
    lengths = np.array([len(prompt) for prompt in prompts])
    states, rows, hidden = [], [], []
    for length in np.unique(lengths):
        places = np.flatnonzero(lengths == length)
        found, state = read_together(
            model, [prompts[place] for place in places.tolist()], new_cache(trunk(model), config), fast
        )
        states.append(state)
        rows.append(torch.from_numpy(places).to(found.device))
        hidden.append(found)
    order = torch.cat(rows).argsort()
    state = states[0] if len(states) == 1 else joined(states, rows, int(lengths.max()))
    return state, torch.cat(hidden)[order]


class WholeBatch:
    """Rows without a cache: every token is computed from the whole text, right-padded, as the update does."""

    def __init__(self, prompts: Prompts, limit: int, model: nn.Module) -> None:
        device = next(model.parameters()).device
        lengths = [len(prompt) for prompt in prompts]
        self.model = model
        self.length_N = torch.tensor(lengths, device=device)
        self.token = torch.zeros((len(prompts), max(lengths) + limit), dtype=torch.long, device=device)
        for row, prompt in zip(self.token, prompts, strict=True):
            row[: len(prompt)] = torch.tensor(prompt, device=device)
        self.longest = max(lengths)
        self._look()

    def _look(self) -> None:
        found = trunk_hidden(self.model, self.token[:, : self.longest])
        self.hidden = found[torch.arange(len(found), device=found.device), self.length_N - 1]

    def go_on(self, token_N: Tensor) -> None:
        self.token[torch.arange(len(token_N), device=token_N.device), self.length_N] = token_N
        self.length_N = self.length_N + 1
        self.longest += 1
        self._look()

    def keep(self, rows: Tensor) -> None:
        self.token, self.length_N = self.token[rows], self.length_N[rows]
