"""bfloat16 where it pays: in a policy's hidden layers. Parameters, heads, losses and the optimiser stay float32.

A policy computes so wherever it is asked, in rollouts as in the update, so that both tell the same log-probs.
On a CPU it pays where the instructions are there (AVX512-BF16, AMX), on a GPU in its tensor cores.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn


def set_precision(policy: nn.Module, precision: str) -> None:
    """Tells each module of the policy that knows about it: `fp32` or `bf16`.

    ValueError where none does, so that a policy of one's own is not silently left as it is.
    """
    knowing = [module for module in policy.modules() if hasattr(module, "precision")]
    if precision != "fp32" and not knowing:
        raise ValueError(
            f"--precision {precision} wants a policy whose modules have `precision`; {type(policy).__name__} has none: "
            "use --precision fp32, or lower it in the policy itself"
        )
    for module in knowing:
        module.precision = precision  # type: ignore[assignment]


def hidden_layers(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Inside, matrix products and convolutions are done in that precision."""
    if precision == "fp32":
        return nullcontext()
    # no cache of lowered weights: a captured graph would keep the one that it was captured with
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)


def dtype_of(precision: str) -> torch.dtype:
    return torch.bfloat16 if precision == "bf16" else torch.float32
