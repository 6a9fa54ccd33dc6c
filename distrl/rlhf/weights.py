"""A role's weights: what of them changes and has to travel, and the digest that says which they are.

What is frozen, a base under adapters say, lies in every worker from the start. It never travels again and is hashed
once. A digest of the rest is computed once a version by every `Weights` that is asked: on a CPU from where they lie,
unless they are rounded first; from a GPU they are copied to the host for it.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from distrl.learner import Snapshot, digest
from distrl.policies.protocol import host_arrays, load_tensors
from distrl.telemetry.spans import span


class Weights:
    """Of one model, which changes under a new version alone: in an update, by `load`, or before the first digest.

    `dtype`: digests are of its parameters rounded to that, as a sampler may have them.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype | None = None) -> None:
        self.model = model
        self.dtype = dtype
        self._frozen: str | None = None
        self._known: tuple[int, str] | None = None  # version and digest

    def learned(self) -> dict[str, Tensor]:
        """What is not frozen, by name: parameters that have a gradient, and buffers."""
        return {name: one.detach() for name, one in self._tensors() if not _is_frozen(one)}

    def snapshot(self, version: int) -> Snapshot:
        """A copy of what is not frozen."""
        return Snapshot(host_arrays(self.learned()), version, self.digest(version))

    def load(self, snapshot: Snapshot) -> None:
        """Puts `snapshot` back. ValueError where it is of another model."""
        self._known = None
        load_tensors(self.learned(), snapshot.arrays)

    def take(self, model: nn.Module) -> None:
        """Puts another's of the same kind in their place, as `load` does, from device to device."""
        self._known = None
        theirs = dict(model.state_dict())
        with torch.no_grad():
            for name, tensor in self.learned().items():
                tensor.copy_(theirs[name])

    def digest(self, version: int) -> str:
        """SHA-256 as `learner.digest`; where something is frozen, of that digest of the frozen and that of the rest."""
        if self._known is None or self._known[0] != version:
            with span("digest"):
                self._known = version, self._digest()
        return self._known[1]

    def _digest(self) -> str:
        learned = _hashed(self._rounded(self.learned()))
        if self._frozen is None:
            frozen = {name: one.detach() for name, one in self._tensors() if _is_frozen(one)}
            self._frozen = _hashed(self._rounded(frozen)) if frozen else ""
        if not self._frozen:
            return learned
        return hashlib.sha256(f"{self._frozen} {learned}".encode()).hexdigest()

    def _rounded(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.dtype is None:
            return tensors
        names = {name for name, one in self._tensors() if isinstance(one, nn.Parameter)}
        return {name: one.to(self.dtype) if name in names else one for name, one in tensors.items()}

    def _tensors(self) -> list[tuple[str, Tensor]]:
        return [*self.model.state_dict(keep_vars=True).items()]


def _is_frozen(tensor: Tensor) -> bool:
    return isinstance(tensor, nn.Parameter) and not tensor.requires_grad


def _hashed(tensors: dict[str, Tensor]) -> str:
    # NumPy has no bfloat16: its bits are hashed
    plain = {
        name: one.view(torch.int16) if one.dtype == torch.bfloat16 else one for name, one in tensors.items()
    }
    return digest(host_arrays(plain, copied=False))
