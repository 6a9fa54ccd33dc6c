"""What the policies without memory share: features of an observation, an actor and a critic on them."""

from __future__ import annotations

from torch import Tensor, nn

from distrl.policies.distributions import Distribution
from distrl.policies.protocol import Evaluation
from distrl.trees import Tree


class FeedForwardPolicy(nn.Module):
    """The `Policy` protocol over `features`, which a subclass gives beside its two heads."""

    recurrent = False
    distribution: Distribution
    actor: nn.Module
    critic: nn.Module

    def features(self, observation: Tree) -> Tensor:
        """What actor and critic see, [B, width]."""
        raise NotImplementedError

    def initial_state(self, num_envs: int) -> None:
        return None

    def act(
        self, observation: Tree, state: Tree, noise: Tensor | None, action_mask: Tensor | None
    ) -> tuple[Tensor, Tree]:
        output = self.actor(self.features(observation))
        return self.distribution.sample(output, noise, action_mask), None

    def value(self, observation: Tree, state: Tree) -> Tensor:
        value: Tensor = self.critic(self.features(observation))
        return value.squeeze(-1)

    def evaluate(
        self,
        observation: Tree,
        action: Tensor,
        action_mask: Tensor | None,
        state: Tree,
        episode_start: Tensor | None,
    ) -> Evaluation:
        features = self.features(observation)
        log_prob, entropy = self.distribution.log_prob_and_entropy(self.actor(features), action, action_mask)
        return Evaluation(log_prob, entropy, self.critic(features).squeeze(-1))
