"""Columns that cross to the device together: one buffer on the host, its twin on the device, one copy.

The device's side stays where it is from iteration to iteration, which is what a captured graph needs. For a GPU
the host's side is pinned, so that the copy runs beside the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ALIGNMENT = 256  # bytes, as cudaMalloc's: any type can be read at a column's start


class Staging:
    """Room for columns of the types and shapes of `examples`; `tensors` are theirs on the device."""

    def __init__(self, examples: Sequence[NDArray[Any]], device: torch.device) -> None:
        self.layout = _layout(examples)
        starts = np.cumsum([0, *(-(-example.nbytes // ALIGNMENT) * ALIGNMENT for example in examples)])
        size = int(starts[-1])
        self._host = torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
        self._device = torch.empty(size, dtype=torch.uint8, device=device)
        self._columns = [
            _view(self._host, at, one).numpy() for at, one in zip(starts, examples, strict=False)
        ]
        self.tensors: list[Tensor] = [
            _view(self._device, at, one) for at, one in zip(starts, examples, strict=False)
        ]

    def fits(self, arrays: Sequence[NDArray[Any]]) -> bool:
        """Whether these have the examples' types and shapes."""
        return _layout(arrays) == self.layout

    def send(self, arrays: Sequence[NDArray[Any]]) -> None:
        """Put them into `tensors`. To a GPU the host does not wait: what was sent before must have arrived."""
        for column, array in zip(self._columns, arrays, strict=True):
            np.copyto(column, array)
        self._device.copy_(self._host, non_blocking=True)


def _layout(arrays: Sequence[NDArray[Any]]) -> list[tuple[np.dtype[Any], tuple[int, ...]]]:
    return [(array.dtype, array.shape) for array in arrays]


def _view(buffer: Tensor, start: int, example: NDArray[Any]) -> Tensor:
    kind = torch.from_numpy(np.empty(0, example.dtype)).dtype
    return buffer[int(start) : int(start) + example.nbytes].view(kind).view(example.shape)
