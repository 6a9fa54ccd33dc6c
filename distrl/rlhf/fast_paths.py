"""Twins of two slow places of transformers on a CPU: the same function of the same numbers, in fewer passes over memory.

`fused_activations`: GPT-2's GELU is written out in eight elementwise operations; torch has it as one, which differs in
the last bits. `decoding`: attention of one new token to all before it is two small products and a softmax; the
flash kernel behind `sdpa` works in blocks of queries and takes several times as long for one, or a few.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from distrl.policies.lm import core

SMALL = 2048  # queries times keys: more go the flash kernel's way
DECODE, DECODE_PADDED = "distrl_decode", "distrl_decode_padded"
FIXED = "distrl_fixed"  # of `distrl.rlhf.fixed`: every key of the room, under a mask


def fused_activations(model: nn.Module) -> nn.Module:
    """The model with its written-out GELUs replaced, in place; learning goes through them too."""
    from transformers.activations import NewGELUActivation

    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))
    return model


@contextmanager
def decoding(model: nn.Module, padded: bool, fast: bool = True) -> Iterator[None]:
    """Inside, a model that attends by `sdpa` on a CPU attends by `few_queries` where queries are few, if `fast`.

    Where no row is padded and no layer has a window, no mask is made for any step either.
    """
    config = cast(Any, core(model)).config
    before = config._attn_implementation
    on_cpu = next(model.parameters()).device.type == "cpu"
    if not fast or before != "sdpa" or not on_cpu:
        yield
        return
    windows = getattr(config, "sliding_window", None) or set(getattr(config, "layer_types", None) or ()) - {
        "full_attention"
    }
    with attending(config, DECODE_PADDED if padded or windows else DECODE):
        yield


@contextmanager
def attending(config: Any, name: str) -> Iterator[None]:
    """Inside, a model of that configuration attends by the function of that name, one of this file's."""
    _register()
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


def _register() -> None:
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    for name in (DECODE, DECODE_PADDED):
        AttentionInterface.register(name, _attention)
    AttentionInterface.register(FIXED, _fixed_attention)
    AttentionMaskInterface.register(
        DECODE_PADDED, sdpa_mask
    )  # transformers makes no mask for one that it has none for


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    small = query.shape[2] * key.shape[2] <= SMALL
    if not small or more.get("softcap") is not None or more.get("position_bias") is not None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        told: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **more
        )
        return told
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if attention_mask is None and query.shape[2] > 1:  # the queries are the last of the keys
        first = key.shape[2] - query.shape[2]
        attention_mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril(first)
    return few_queries(query, key, value, attention_mask, scale), None


def _fixed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return few_queries(query, key, value, attention_mask, scale), None


def few_queries(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """softmax(q k^T scale) v for so few queries and keys of each row and head that the products fit a cache.

    Args:
        query: [N, Q, L, D], Q heads, L queries.
        key: [N, K, S, D]; K divides Q, and neighbouring query heads share one.
        value: [N, K, S, D'].
        mask: broadcast to [N, Q, L, S]: bool, True where a key may be seen, or what is added to the products; None:
            all may be.

    Returns:
        [N, L, Q, D'].
    """
    n, num_queries, num_rows, width = query.shape
    num_keys, length = key.shape[1:3]
    grouped = query.reshape(n * num_keys, num_queries // num_keys * num_rows, width)
    products = query.new_empty((1, 1, 1)).expand(*grouped.shape[:2], length)
    weight = torch.baddbmm(products, grouped, key.flatten(0, 1).transpose(1, 2), beta=0, alpha=scale)
    if mask is not None:
        every = weight.view(n, num_queries, num_rows, length)
        least = torch.finfo(weight.dtype).min
        every = every.masked_fill(~mask, least) if mask.dtype == torch.bool else every + mask
        weight = every.view_as(weight)
    share = weight.softmax(-1, dtype=torch.promote_types(weight.dtype, torch.float32)).to(value.dtype)
    seen = torch.bmm(share, value.flatten(0, 1))
    return seen.view(n, num_queries, num_rows, value.shape[-1]).transpose(1, 2)
