"""Distributions over actions, one per Gymnasium action space: noise in, action out.

Each takes the policy head's output `[..., num_outputs]`. Sampling is a deterministic function of
`noise`, drawn beforehand from a keyed stream: Gumbel-max for categories (Gumbel 1954; Maddison et al.
2014), a logistic threshold for bits, mean + std * normal for Box.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor, nn

FloatArray = NDArray[np.float32]


class Distribution(Protocol):
    """Of one action space. `action` is the policy's own form: 0-based ints [...] or [..., K], bits, floats [..., D]."""

    num_outputs: int  # width of the policy head
    action_shape: tuple[int, ...]
    action_dtype: np.dtype

    def noise(self, generator: np.random.Generator, shape: tuple[int, ...]) -> FloatArray:
        """Noise for a batch of actions of the given leading shape."""
        ...

    def sample(self, output: Tensor, noise: Tensor | None, action_mask: Tensor | None) -> Tensor:
        """The action that `noise` picks; without noise the most likely one."""
        ...

    def log_prob_and_entropy(
        self, output: Tensor, action: Tensor, action_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Both of the leading shape."""
        ...


def _gumbel(generator: np.random.Generator, shape: tuple[int, ...]) -> FloatArray:
    # random() can give 0, whose log is -inf twice over: an action that is never taken, which is right, but NaN-prone.
    uniform = np.maximum(generator.random(shape, dtype=np.float32), np.float32(1e-20))
    return -np.log(-np.log(uniform) + np.float32(1e-20))


def _allowed(logits: Tensor, action_mask: Tensor | None) -> Tensor:
    """Log-probabilities with forbidden actions at a finite floor, so that 0 * log 0 stays 0 in value and gradient."""
    if action_mask is not None:
        logits = torch.where(action_mask, logits, torch.finfo(logits.dtype).min / 2)
    return torch.log_softmax(logits, dim=-1)


class Categorical:
    """Discrete(n): one of n."""

    def __init__(self, num_actions: int) -> None:
        self.num_outputs = num_actions
        self.action_shape: tuple[int, ...] = ()
        self.action_dtype = np.dtype(np.int64)

    def noise(self, generator: np.random.Generator, shape: tuple[int, ...]) -> FloatArray:
        return _gumbel(generator, (*shape, self.num_outputs))

    def sample(self, output: Tensor, noise: Tensor | None, action_mask: Tensor | None) -> Tensor:
        if action_mask is not None:
            output = torch.where(action_mask, output, -torch.inf)
        return (output if noise is None else output + noise).argmax(dim=-1)

    def log_prob_and_entropy(
        self, output: Tensor, action: Tensor, action_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        log_probs = _allowed(output, action_mask)
        log_prob = log_probs.gather(-1, action.unsqueeze(-1)).squeeze(-1)
        return log_prob, -(log_probs.exp() * log_probs).sum(-1)


class MultiCategorical:
    """MultiDiscrete(nvec), of any shape: independent categories; log-probs and entropies add."""

    def __init__(self, sizes: list[int], shape: tuple[int, ...] | None = None) -> None:
        self.parts = [Categorical(size) for size in sizes]
        self.sizes = sizes
        self.num_outputs = sum(sizes)
        self.action_shape: tuple[int, ...] = (len(sizes),) if shape is None else shape
        self.action_dtype = np.dtype(np.int64)

    def noise(self, generator: np.random.Generator, shape: tuple[int, ...]) -> FloatArray:
        return _gumbel(generator, (*shape, self.num_outputs))

    def _split(self, tensor: Tensor | None) -> list[Tensor | None]:
        return [None] * len(self.sizes) if tensor is None else list(tensor.split(self.sizes, dim=-1))

    def sample(self, output: Tensor, noise: Tensor | None, action_mask: Tensor | None) -> Tensor:
        rows = zip(
            self.parts,
            output.split(self.sizes, dim=-1),
            self._split(noise),
            self._split(action_mask),
            strict=True,
        )
        action = torch.stack([part.sample(*row) for part, *row in rows], dim=-1)
        return action.reshape(*output.shape[:-1], *self.action_shape)

    def log_prob_and_entropy(
        self, output: Tensor, action: Tensor, action_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        rows = zip(
            self.parts,
            output.split(self.sizes, dim=-1),
            action.reshape(*output.shape[:-1], len(self.sizes)).unbind(-1),
            self._split(action_mask),
            strict=True,
        )
        log_probs, entropies = zip(*(part.log_prob_and_entropy(*row) for part, *row in rows), strict=True)
        return torch.stack(log_probs).sum(0), torch.stack(entropies).sum(0)


_SURE = 1e9  # a logit whose sigmoid is 0 or 1, finite so that 0 * log 0 stays 0 in value and gradient


def _bits_allowed(logits: Tensor, action_mask: Tensor | None) -> Tensor:
    """The logits [..., n], at an end where a bit may not be 0 or may not be 1: `action_mask` [..., 2 n] says both of each."""
    if action_mask is None:
        return logits
    may_be_off, may_be_on = action_mask.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.where(may_be_on, torch.where(may_be_off, logits, _SURE), -_SURE)


class Bernoulli:
    """MultiBinary(n): n independent bits; `output` holds their logits. A mask [..., 2 n] says of each whether it may be 0
    and whether it may be 1."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.num_outputs = math.prod(shape)
        self.action_shape = shape
        self.action_dtype = np.dtype(np.int64)

    def noise(self, generator: np.random.Generator, shape: tuple[int, ...]) -> FloatArray:
        uniform = generator.random((*shape, self.num_outputs), dtype=np.float32)
        uniform = np.clip(uniform, 1e-7, 1 - 1e-7)
        return np.log(uniform) - np.log1p(-uniform)

    def sample(self, output: Tensor, noise: Tensor | None, action_mask: Tensor | None) -> Tensor:
        output = _bits_allowed(output, action_mask)
        bits = output > 0 if noise is None else output + noise > 0
        return bits.long().reshape(*output.shape[:-1], *self.action_shape)

    def log_prob_and_entropy(
        self, output: Tensor, action: Tensor, action_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        bits = action.reshape(output.shape).to(output.dtype)
        output = _bits_allowed(output, action_mask)
        on, off = nn.functional.logsigmoid(output), nn.functional.logsigmoid(-output)
        entropy = -(on.exp() * on + off.exp() * off).sum(-1)
        return (bits * on + (1 - bits) * off).sum(-1), entropy


class DiagonalGaussian(nn.Module):
    """Box: a Gaussian per dimension, log-std a parameter of its own and not of the state; log-probs are summed.

    The log-prob is that of the Gaussian's own number; what the env gets is rescaled or clipped to the Box on its way
    (`distrl.envs.actions`).
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.num_outputs = math.prod(shape)
        self.action_shape = shape
        self.action_dtype = np.dtype(np.float32)
        self.log_std = nn.Parameter(torch.zeros(self.num_outputs))

    def noise(self, generator: np.random.Generator, shape: tuple[int, ...]) -> FloatArray:
        return generator.standard_normal((*shape, self.num_outputs), dtype=np.float32)

    def sample(self, output: Tensor, noise: Tensor | None, action_mask: Tensor | None) -> Tensor:
        action = output if noise is None else output + self.log_std.exp() * noise
        return action.reshape(*output.shape[:-1], *self.action_shape)

    def log_prob_and_entropy(
        self, output: Tensor, action: Tensor, action_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        standard = (action.reshape(output.shape) - output) * torch.exp(-self.log_std)
        constant = 0.5 * math.log(2 * math.pi)
        log_prob = (-0.5 * standard.square() - self.log_std - constant).sum(-1)
        entropy = (self.log_std + 0.5 + constant).sum(-1).expand(log_prob.shape)
        return log_prob, entropy


def make_distribution(space: spaces.Space) -> Distribution:
    """The distribution of an action space. ValueError for a space that has none."""
    if isinstance(space, spaces.Discrete):
        return Categorical(int(space.n))
    if isinstance(space, spaces.MultiDiscrete):
        return MultiCategorical([int(size) for size in space.nvec.flat], tuple(space.shape))
    if isinstance(space, spaces.MultiBinary):
        return Bernoulli(space.shape)
    if isinstance(space, spaces.Box):
        return DiagonalGaussian(space.shape)
    raise ValueError(
        f"actions must be Discrete, MultiDiscrete, MultiBinary or Box, got {space}: "
        "wrap the env (--wrapper) so that they are"
    )
