"""Roles that take turns on a device: a role's models lie on the CPU while others use it.

actor       |on device|                     |on device, Adam's moments too|
reference              |on device|
device      | actor   | reference |         | actor                       |       memory: the largest, not the sum
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from distrl.telemetry.spans import span

Held = nn.Module | torch.optim.Optimizer


class Turns:
    """Moves what the roles in `offloaded` hold to their device for a turn and back to the CPU; others' stays put.

    Moves are spans, "offload: <role>". Where the device is the CPU they copy nothing.
    """

    def __init__(self, offloaded: Sequence[str]) -> None:
        self.offloaded = frozenset(offloaded)

    @contextmanager
    def turn(self, role: str, device: torch.device | str, held: Sequence[Held]) -> Iterator[None]:
        """While it lasts, `held` is on the device."""
        self._move(role, held, device)
        try:
            yield
        finally:
            self.leave(role, held)

    def leave(self, role: str, held: Sequence[Held]) -> None:
        """Off the device."""
        self._move(role, held, "cpu")

    def _move(self, role: str, held: Sequence[Held], device: torch.device | str) -> None:
        if role not in self.offloaded:
            return
        with span(f"offload: {role}"):
            for one in held:
                if isinstance(one, nn.Module):
                    one.to(device)
                else:
                    _move_moments(one, device)


def _move_moments(optimiser: torch.optim.Optimizer, device: torch.device | str) -> None:
    for slots in optimiser.state.values():
        for name, value in slots.items():
            if isinstance(value, Tensor):
                slots[name] = value.to(device)
