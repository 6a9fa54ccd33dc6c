"""The MLP policy: actor and critic with hidden layers of their own."""

from __future__ import annotations

from collections.abc import Sequence

from gymnasium import spaces
from torch import Tensor, nn

from distrl.policies.distributions import make_distribution
from distrl.policies.layers import MLP, mlp, orthogonal
from distrl.policies.observe import Observe
from distrl.policies.protocol import Evaluation
from distrl.trees import Tree


class MLPPolicy(nn.Module):
    """Separate actor and critic, 64x64 tanh each by default."""

    recurrent = False

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        hidden_sizes: Sequence[int] = (64, 64),
        activation: str = "tanh",
        normalize_observation: bool = False,
    ) -> None:
        super().__init__()
        self.observe = Observe(observation_space, normalize_observation, flatten_images=True)
        self.distribution = make_distribution(action_space)
        trunk, width = mlp(self.observe.num_features, hidden_sizes, activation)
        self.actor = MLP(*trunk, orthogonal(nn.Linear(width, self.distribution.num_outputs), 0.01))
        trunk, width = mlp(self.observe.num_features, hidden_sizes, activation)
        self.critic = MLP(*trunk, orthogonal(nn.Linear(width, 1), 1.0))

    def initial_state(self, num_envs: int) -> None:
        return None

    def act(
        self, observation: Tree, state: Tree, noise: Tensor | None, action_mask: Tensor | None
    ) -> tuple[Tensor, Tree]:
        return self.distribution.sample(self.actor(self.observe(observation)), noise, action_mask), None

    def value(self, observation: Tree, state: Tree) -> Tensor:
        return self.critic(self.observe(observation)).squeeze(-1)

    def evaluate(
        self,
        observation: Tree,
        action: Tensor,
        action_mask: Tensor | None,
        state: Tree,
        episode_start: Tensor | None,
    ) -> Evaluation:
        features = self.observe(observation)
        log_prob, entropy = self.distribution.log_prob_and_entropy(self.actor(features), action, action_mask)
        return Evaluation(log_prob, entropy, self.critic(features).squeeze(-1))
