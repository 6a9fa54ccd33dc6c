"""Twins of two slow places of transformers on a CPU: the same function of the same numbers, in fewer passes over memory.

`fused_activations`: GPT-2's GELU is written out in eight elementwise operations; torch has it as one, which differs in
the last bits. `decoding`: attention of one new token to all before it is two small products and a softmax; the
flash kernel behind `sdpa` works in blocks of queries and takes several times as long for one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from distrl.policies.lm import core

DECODE = "distrl_decode"


def fused_activations(model: nn.Module) -> nn.Module:
    """The model with its written-out GELUs replaced, in place; learning goes through them too."""
    from transformers.activations import NewGELUActivation

    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))
    return model


@contextmanager
def decoding(model: nn.Module, fast: bool = True) -> Iterator[None]:
    """Inside, a model that attends by `sdpa` on a CPU attends by `one_query` where there is one query a row, if `fast`."""
    config = cast(Any, core(model)).config
    before = config._attn_implementation
    on_cpu = next(model.parameters()).device.type == "cpu"
    if not fast or before != "sdpa" or not on_cpu:
        yield
        return
    _register()
    config._attn_implementation = DECODE
    try:
        yield
    finally:
        config._attn_implementation = before


def _register() -> None:
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(DECODE, _attention)
    AttentionMaskInterface.register(DECODE, sdpa_mask)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    if query.shape[2] != 1 or any(
        one is not None for name, one in more.items() if name in ("softcap", "position_bias")
    ):
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        told: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **more
        )
        return told
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return one_query(query, key, value, attention_mask, scale), None


def one_query(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """softmax(q k^T scale) v for one query of each row and head.

    Args:
        query: [N, Q, 1, D], Q heads.
        key: [N, K, S, D]; K divides Q, and neighbouring query heads share one.
        value: [N, K, S, D'].
        mask: bool, True where a key may be seen, [N, 1, 1, S], or what is added to the products; None: all may be.

    Returns:
        [N, 1, Q, D'].
    """
    n, num_queries, _, width = query.shape
    num_keys = key.shape[1]
    grouped = (query * scale).reshape(n, num_keys, num_queries // num_keys, width)
    weight = grouped @ key.transpose(-1, -2)  # [N, K, Q / K, S]
    if mask is not None:
        weight = (
            weight.masked_fill(~mask, torch.finfo(weight.dtype).min)
            if mask.dtype == torch.bool
            else weight + mask
        )
    seen = weight.softmax(-1) @ value
    return seen.reshape(n, 1, num_queries, value.shape[-1])
