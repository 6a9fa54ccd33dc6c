"""What may be said of bits on a device, and what is done for them there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch

from distrl.learner import make_cuda_repeatable

Reproducibility = Literal["exact", "device"]


def reproducibility(devices: Iterable[str]) -> Reproducibility:
    """`exact` on the CPU: the same bits wherever roles live, after a kill too.

    `device` where a GPU computes: there bits may hang on the GPU, on the layout and on kernels that torch has in no
    repeatable form; it warns of each of those that a run uses.
    """
    return "device" if any(_is_cuda(one) for one in devices) else "exact"


def make_repeatable(devices: Iterable[str]) -> None:
    """Where one of them is a GPU: torch's repeatable kernels in this process, a warning where there is none."""
    if not any(_is_cuda(one) for one in devices):
        return
    make_cuda_repeatable()
    torch.use_deterministic_algorithms(True, warn_only=True)
    # nothing here reads memory that it has not written, and a key-value cache is large
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _is_cuda(device: str) -> bool:
    return torch.device(device).type == "cuda"
