"""The MLP policy: actor and critic with hidden layers of their own."""

from __future__ import annotations

from collections.abc import Sequence

from gymnasium import spaces
from torch import Tensor, nn

from distrl.policies.distributions import make_distribution
from distrl.policies.feedforward import FeedForwardPolicy
from distrl.policies.layers import MLP, mlp, orthogonal
from distrl.policies.observe import Observe
from distrl.policies.reading import Scale
from distrl.trees import Tree


class MLPPolicy(FeedForwardPolicy):
    """Separate actor and critic, 64x64 tanh each by default."""

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        hidden_sizes: Sequence[int] = (64, 64),
        activation: str = "tanh",
        normalize_observation: bool = False,
        observation_scale: Scale = "bytes",
    ) -> None:
        super().__init__()
        self.observe = Observe(
            observation_space, normalize_observation, flatten_images=True, scale=observation_scale
        )
        self.distribution = make_distribution(action_space)
        trunk, width = mlp(self.observe.num_features, hidden_sizes, activation)
        self.actor = MLP(*trunk, orthogonal(nn.Linear(width, self.distribution.num_outputs), 0.01))
        trunk, width = mlp(self.observe.num_features, hidden_sizes, activation)
        self.critic = MLP(*trunk, orthogonal(nn.Linear(width, 1), 1.0))

    def features(self, observation: Tree) -> Tensor:
        features: Tensor = self.observe(observation)
        return features
