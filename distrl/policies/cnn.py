"""The CNN policy: one trunk that sees the images, actor and critic as heads on it."""

from __future__ import annotations

import torch
from gymnasium import spaces
from torch import Tensor, nn

from distrl.policies.distributions import make_distribution
from distrl.policies.feedforward import FeedForwardPolicy
from distrl.policies.layers import NatureCNN, orthogonal
from distrl.policies.observe import Observe
from distrl.policies.precision import dtype_of, hidden_layers
from distrl.policies.reading import Scale
from distrl.trees import Tree


class CNNTrunk(nn.Module):
    """A CNN per image, beside the vector features as they are: float32 [B, width]."""

    precision = "fp32"

    def __init__(
        self,
        observation_space: spaces.Space,
        normalize_observation: bool = False,
        observation_scale: Scale = "bytes",
        asked: bool = False,
    ) -> None:
        super().__init__()
        self.observe = Observe(
            observation_space, normalize_observation, scale=observation_scale, asked_images=asked
        )
        self.cnns = nn.ModuleList(
            NatureCNN(shape, one.scale)
            for shape, one in zip(self.observe.image_shapes, self.observe.images, strict=True)
        )
        self.width = NatureCNN.width * len(self.cnns) + self.observe.num_features

    def forward(self, observation: Tree) -> Tensor:
        images = self.observe.pixels(observation, dtype_of(self.precision))
        with hidden_layers(self.precision, images[0].device):
            columns = [cnn(pixels).float() for cnn, pixels in zip(self.cnns, images, strict=True)]
        if self.observe.num_features:
            columns.append(self.observe(observation))
        return torch.cat(columns, dim=1)


class CNNPolicy(FeedForwardPolicy):
    """Actor and critic share the trunk (Mnih et al. 2016)."""

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        normalize_observation: bool = False,
        observation_scale: Scale = "bytes",
        asked: bool = False,
    ) -> None:
        super().__init__()
        self.trunk = CNNTrunk(observation_space, normalize_observation, observation_scale, asked)
        self.observe = self.trunk.observe
        self.distribution = make_distribution(action_space)
        self.actor = orthogonal(nn.Linear(self.trunk.width, self.distribution.num_outputs), 0.01)
        self.critic = orthogonal(nn.Linear(self.trunk.width, 1), 1.0)

    def features(self, observation: Tree) -> Tensor:
        features: Tensor = self.trunk(observation)
        return features
