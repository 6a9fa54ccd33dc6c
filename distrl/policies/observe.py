"""From an observation of any Gymnasium space to what a network eats: one feature vector and images.

Vector leaves (of nested Dict and Tuple in their order) become one float32 vector [B, F]: numbers, categories one-hot or as
an embedding. Image leaves become [B, C, H, W]. Which is which: `distrl.policies.reading`.

Normalisation belongs to the policy's snapshot: mean and deviation of the numbers are buffers, frozen
for an iteration and published with the parameters. Before the first moments they are 0 and 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from distrl.envs.images import likely_channel_axis
from distrl.policies.reading import EMBEDDING, Reading, Scale, keyed_leaves, readings
from distrl.trees import Tree

CLIP = 10.0  # normalised numbers are clipped to +-10, as the "37 implementation details" have it


def leaf_spaces(space: spaces.Space) -> list[spaces.Space]:
    """The leaves of nested Dict and Tuple spaces, in the order of `tree_leaves`."""
    return [leaf for _, leaf in keyed_leaves(space)]


def has_image(space: spaces.Space, scale: Scale = "bytes", asked: bool = False) -> bool:
    """Whether any leaf is an image."""
    return any(one.kind == "image" for one in readings(space, scale, asked))


def has_embedding(space: spaces.Space, scale: Scale = "bytes") -> bool:
    """Whether any leaf has so many categories that it is an embedding."""
    return any(one.kind == "embedding" for one in readings(space, scale))


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


class Observe(nn.Module):
    """Turns observations into features and images, normalising the numbers among the features if asked."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        space: spaces.Space,
        normalize: bool = False,
        flatten_images: bool = False,
        scale: Scale = "bytes",
        asked_images: bool = False,
    ) -> None:
        super().__init__()
        self.space = space
        self.normalize = normalize
        self.readings = readings(space, scale, asked_images, flatten_images)
        self.images = [one for one in self.readings if one.kind == "image"]
        self.image_shapes = [one.image for one in self.images if one.image is not None]
        vectors = [one for one in self.readings if one.kind != "image"]
        self.num_features = sum(one.num_features for one in vectors)
        numbers = [np.full(one.num_features, isinstance(one.space, spaces.Box)) for one in vectors]
        self.is_number = np.concatenate(numbers) if numbers else np.zeros(0, bool)
        tables = [size for one in vectors for size in one.sizes_embedded]
        if tables:
            self.embeddings = nn.ModuleList(nn.Embedding(size, EMBEDDING) for size in tables)
        if normalize:
            self.register_buffer("mean", torch.zeros(self.num_features))
            self.register_buffer("std", torch.ones(self.num_features))

    def features(self, observation: Tree) -> Tensor:
        """The vector leaves as one float32 [B, F], not normalised."""
        tables: Iterator[nn.Module] = iter(getattr(self, "embeddings", ()))
        if isinstance(observation, Tensor) and len(self.readings) == 1 and self.num_features:
            return _features(self.readings[0], observation, tables)
        columns = [
            _features(one, leaf, tables)
            for one, leaf in zip(self.readings, leaves_of(self.space, observation), strict=True)
            if one.kind != "image"
        ]
        if not columns:
            (image, *_) = leaves_of(self.space, observation)
            return image.new_zeros((len(image), 0), dtype=torch.float32)
        return torch.cat(columns, dim=1)

    def pixels(self, observation: Tree, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """The image leaves, each [B, C, H, W] from 0 on in the env's own units, and channels last in memory, as
        convolutions like it; their networks divide by the scale."""
        return [
            _as_channels_first(one, leaf, dtype)
            for one, leaf in zip(self.readings, leaves_of(self.space, observation), strict=True)
            if one.kind == "image"
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


def _features(reading: Reading, leaf: Tensor, tables: Iterator[nn.Module]) -> Tensor:
    space = reading.space
    if isinstance(space, spaces.Discrete):
        index = leaf.long() - int(space.start)
        if reading.kind == "embedding":
            embedded: Tensor = next(tables)(index)
            return embedded
        return nn.functional.one_hot(index, int(space.n)).float()
    if isinstance(space, spaces.MultiDiscrete):
        columns = leaf.long().flatten(1)
        if np.any(space.start):
            columns = columns - torch.from_numpy(np.asarray(space.start)).to(leaf.device).flatten()
        parts = [
            next(tables)(column) if reading.embeds(int(size)) else nn.functional.one_hot(column, int(size))
            for column, size in zip(columns.unbind(1), space.nvec.flat, strict=True)
        ]
        return torch.cat([part.float() for part in parts], dim=1)
    features = leaf.reshape(len(leaf), math.prod(space.shape or ())).float()
    if reading.low:
        features = features - reading.low
    return features / reading.scale if reading.scale != 1.0 else features


def channels_first(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """[C, H, W] of an image of this shape, whose channels are first, last or none."""
    if len(shape) == 2:
        return (1, *shape)
    if likely_channel_axis(shape) == -1:
        return (shape[2], shape[0], shape[1])
    return (shape[0], shape[1], shape[2])


def _as_channels_first(reading: Reading, leaf: Tensor, dtype: torch.dtype) -> Tensor:
    if len(reading.order) == 2:
        pixels = leaf.unsqueeze(1)
    elif reading.order == (0, 1, 2):
        pixels = leaf
    else:
        pixels = leaf.permute(0, *(axis + 1 for axis in reading.order))
        pixels = pixels.flatten(1, 2) if len(reading.order) == 4 else pixels
    pixels = pixels.to(dtype, memory_format=torch.channels_last)
    return pixels - reading.low if reading.low else pixels
