"""From an observation of any Gymnasium space to what a network eats: one feature vector and images.

Vector leaves (Box, Discrete, MultiDiscrete, MultiBinary; of nested Dict and Tuple in their order) become
one float32 vector [B, F]: numbers as they are, categories one-hot. Image leaves (uint8, or three
dimensions) become [B, C, H, W] in 0..1.

Normalisation belongs to the policy's snapshot: mean and deviation of the numbers are buffers, frozen
for an iteration and published with the parameters. Before the first moments they are 0 and 1.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from distrl.trees import Tree

CLIP = 10.0  # normalised numbers are clipped to +-10, as the "37 implementation details" have it


def is_image(space: spaces.Space) -> bool:
    """A Box of bytes with height and width, channels first, last or none."""
    return isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) in (2, 3)


def leaf_spaces(space: spaces.Space) -> list[spaces.Space]:
    """The leaves of nested Dict and Tuple spaces, in the order of `tree_leaves`."""
    if isinstance(space, spaces.Dict):
        return [leaf for part in space.spaces.values() for leaf in leaf_spaces(part)]
    if isinstance(space, spaces.Tuple):
        return [leaf for part in space.spaces for leaf in leaf_spaces(part)]
    if isinstance(space, (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)):
        return [space]
    raise ValueError(
        f"observations must be Box, Discrete, MultiDiscrete, MultiBinary, Dict or Tuple, got {space}: "
        "wrap the env (--wrapper) so that they are"
    )


def has_image(space: spaces.Space) -> bool:
    """Whether any leaf is an image."""
    return any(is_image(leaf) for leaf in leaf_spaces(space))


def leaves_of(space: spaces.Space, observation: Tree) -> list[Any]:
    """The observation's leaves in the order of `leaf_spaces`: a dict that travelled may have another."""
    if isinstance(space, spaces.Dict):
        return [leaf for key, part in space.spaces.items() for leaf in leaves_of(part, observation[key])]
    if isinstance(space, spaces.Tuple):
        return [
            leaf
            for part, value in zip(space.spaces, observation, strict=True)
            for leaf in leaves_of(part, value)
        ]
    return [observation]


def _features(space: spaces.Space, leaf: Tensor) -> Tensor:
    if isinstance(space, spaces.Discrete):
        return nn.functional.one_hot(leaf.long() - int(space.start), int(space.n)).float()
    if isinstance(space, spaces.MultiDiscrete):
        columns = leaf.long().flatten(1)
        if np.any(space.start):
            columns = columns - torch.from_numpy(np.asarray(space.start)).to(leaf.device).flatten()
        return torch.cat(
            [
                nn.functional.one_hot(column, int(size))
                for column, size in zip(columns.unbind(1), space.nvec.flat, strict=True)
            ],
            dim=1,
        ).float()
    features = leaf.flatten(1).float()
    return features / 255.0 if is_image(space) else features  # an image that is flattened


def _num_features(space: spaces.Space) -> int:
    if isinstance(space, spaces.Discrete):
        return int(space.n)
    if isinstance(space, spaces.MultiDiscrete):
        return int(space.nvec.sum())
    return math.prod(space.shape or ())


class Observe(nn.Module):
    """Turns observations into features and images, normalising the numbers among the features if asked."""

    mean: Tensor
    std: Tensor

    def __init__(self, space: spaces.Space, normalize: bool = False, flatten_images: bool = False) -> None:
        super().__init__()
        self.space = space
        self.normalize = normalize
        leaves = leaf_spaces(space)
        self._is_image = [is_image(leaf) and not flatten_images for leaf in leaves]
        self._spaces = leaves
        vectors = [leaf for leaf, image in zip(leaves, self._is_image, strict=True) if not image]
        self.num_features = sum(_num_features(leaf) for leaf in vectors)
        self.image_shapes = [
            channels_first(leaf.shape or ())
            for leaf, image in zip(leaves, self._is_image, strict=True)
            if image
        ]
        numbers = [np.full(_num_features(leaf), isinstance(leaf, spaces.Box)) for leaf in vectors]
        self.is_number = np.concatenate(numbers) if numbers else np.zeros(0, bool)
        if normalize:
            self.register_buffer("mean", torch.zeros(self.num_features))
            self.register_buffer("std", torch.ones(self.num_features))

    def features(self, observation: Tree) -> Tensor:
        """The vector leaves as one float32 [B, F], not normalised."""
        if isinstance(observation, Tensor) and len(self._spaces) == 1 and self.num_features:
            return _features(self._spaces[0], observation)
        columns = [
            _features(space, leaf)
            for space, leaf, image in zip(
                self._spaces, leaves_of(self.space, observation), self._is_image, strict=True
            )
            if not image
        ]
        if not columns:
            (image, *_) = leaves_of(self.space, observation)
            return image.new_zeros((len(image), 0), dtype=torch.float32)
        return torch.cat(columns, dim=1)

    def pixels(self, observation: Tree, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """The image leaves, each [B, C, H, W] in 0..255 and channels last in memory, as convolutions like it."""
        return [
            _as_channels_first(leaf, space.shape or ()).to(dtype, memory_format=torch.channels_last)
            for space, leaf, image in zip(
                self._spaces, leaves_of(self.space, observation), self._is_image, strict=True
            )
            if image
        ]

    def forward(self, observation: Tree) -> Tensor:
        """Features [B, F] as the network is to see them."""
        features = self.features(observation)
        if not self.normalize:
            return features
        return ((features - self.mean) / self.std).clamp(-CLIP, CLIP)

    def set_moments(self, mean: np.ndarray, variance: np.ndarray) -> None:
        """Freeze these moments [F] into the snapshot; one-hot entries keep mean 0 and deviation 1."""
        mean = np.where(self.is_number, mean, 0.0)
        std = np.where(self.is_number, np.sqrt(variance + 1e-8), 1.0)
        self.mean.copy_(torch.from_numpy(mean.astype(np.float32)))
        self.std.copy_(torch.from_numpy(std.astype(np.float32)))


def channels_first(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """[C, H, W] of an image of this shape, whose channels are first, last or none."""
    if len(shape) == 2:
        return (1, *shape)
    if shape[-1] in (1, 3, 4) and shape[0] not in (1, 3, 4):
        return (shape[2], shape[0], shape[1])
    return (shape[0], shape[1], shape[2])


def _as_channels_first(leaf: Tensor, shape: tuple[int, ...]) -> Tensor:
    if len(shape) == 2:
        return leaf.unsqueeze(1)
    return leaf if channels_first(shape) == shape else leaf.permute(0, 3, 1, 2)
