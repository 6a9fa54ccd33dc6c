"""The parts of a run, small and in-process: groups, policies, collectors, learners, and an env with known values."""

from __future__ import annotations

import copy
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from distrl.envs import EnvGroup, EnvSpec
from distrl.learner import Learner
from distrl.policies import Evaluation, PolicySpec, make_distribution, make_policy
from distrl.policies.distributions import Categorical, DiagonalGaussian
from distrl.policies.lstm import LSTMPolicy
from distrl.policies.mlp import MLPPolicy
from distrl.recipes import PPO, Recipe
from distrl.rollout import Collector
from distrl.trajectory import Trajectory
from distrl.trees import tree_map

sys.path.insert(0, str(Path(__file__).parent / "envs"))  # toy_envs, as a user's module would be

SEED = 7
UPDATE: Any = "torch"  # the learner's twin; tests of both change it by `both_twins`
CARTPOLE = EnvSpec("CartPole-v1", max_episode_steps=15)
SMALL = {"mlp": PolicySpec("mlp", (8,)), "lstm": PolicySpec("lstm", (8,), lstm_size=6)}


class One(gym.Env[Any, Any]):
    """Reward 1; after `length` steps it terminates, or is cut off where `truncates`. Observes the step number, or 0
    where it is `blind`."""

    def __init__(self, length: int = 4, truncates: bool = False, blind: bool = False) -> None:
        self.observation_space = spaces.Box(0, 1000, (1,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.length, self.truncates, self.t = length, truncates, 0
        self.blind = blind

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        over = self.t >= self.length
        observation = np.array([0 if self.blind else self.t], np.float32)
        return observation, 1.0, over and not self.truncates, over and self.truncates, {}


if "Parts/One-v0" not in gym.registry:
    gym.register("Parts/One-v0", One)


def steady(observation: Any) -> Any:
    """CartPole actions that fail soon, of the observation alone: whoever takes them meets the same episodes."""
    angle = observation.flatten(1)[:, -2]  # of the newest frame
    return ((angle * 1e4).long() % 3 > 0).long()


class SteadyMLP(MLPPolicy):
    def act(self, observation: Any, state: Any, noise: Any, action_mask: Any) -> Any:
        return steady(observation), None


class SteadyLSTM(LSTMPolicy):
    def act(self, observation: Any, state: Any, noise: Any, action_mask: Any) -> Any:
        return steady(observation), super().act(observation, state, noise, action_mask)[1]


class TablePolicy(nn.Module):
    """A logit pair and a value per step number; keeps the noise that it was given."""

    recurrent = False

    def __init__(self, values: Any, action_space: Any) -> None:
        super().__init__()
        self.distribution = make_distribution(action_space)
        self.values = nn.Parameter(torch.as_tensor(values, dtype=torch.float32))
        self.logits = nn.Parameter(torch.zeros(len(self.values), self.distribution.num_outputs))
        self.noise: list[Any] = []

    def initial_state(self, num_envs: int) -> None:
        return None

    def act(self, observation: Any, state: Any, noise: Any, action_mask: Any) -> Any:
        self.noise.append(noise.clone())
        return self.distribution.sample(self.logits[observation[:, 0].long()], noise, action_mask), None

    def value(self, observation: Any, state: Any) -> Any:
        return self.values[observation[:, 0].long()]

    def evaluate(self, observation: Any, action: Any, mask: Any, state: Any, start: Any) -> Evaluation:
        logits = self.logits[observation[:, 0].long()]
        log_prob, entropy = self.distribution.log_prob_and_entropy(logits, action, mask)
        return Evaluation(log_prob, entropy, self.value(observation, None))


def steady_policy(network: str, spec: EnvSpec) -> Any:
    """A small network of either kind that acts by `steady`."""
    env = spec.make_one()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        if network == "mlp":
            policy: Any = SteadyMLP(env.observation_space, env.action_space, (8,))
        else:
            policy = SteadyLSTM(env.observation_space, env.action_space, (8,), "tanh", 6)
    env.close()
    return stir(policy)


def table_policy(observation_space: Any, action_space: Any, entries: int = 16) -> TablePolicy:
    return TablePolicy(np.zeros(entries), action_space)


def make_group(spec: EnvSpec, num_envs: int = 2, index: int = 0, first_env: int = 0) -> EnvGroup:
    return EnvGroup(spec, index, num_envs, first_env, SEED)


def make_collector(
    spec: EnvSpec,
    policy: Any = "mlp",
    num_steps: int = 16,
    num_envs: int = 2,
    collects: Any = "steps",
    index: int = 0,
    seed: int = SEED,
) -> Collector:
    """A collector that has started; `policy` is one, or the name of a small one."""
    group = make_group(spec, num_envs, index)
    if isinstance(policy, str):
        policy = make_policy(SMALL[policy], group.observation_space, group.action_space, SEED)
    collector = Collector(group, policy, seed, collects, num_steps)
    collector.start()
    return collector


def collect(spec: EnvSpec, policy: Any = "mlp", **named: Any) -> Trajectory:
    """The first fragment of a new collector."""
    collector = make_collector(spec, policy, **named)
    try:
        return collector.collect(0, 0).trajectory
    finally:
        collector.group.close()


def make_learner(policy: Any, recipe: Recipe = PPO, **named: Any) -> Learner:
    """With the twin of `UPDATE` where it serves the policy."""
    if isinstance(policy, MLPPolicy) and isinstance(policy.distribution, (Categorical, DiagonalGaussian)):
        named = {"update": UPDATE, **named}
    return Learner(policy, recipe, SEED, **named)


def small_policy(name: str, spec: EnvSpec, **options: Any) -> Any:
    """A policy for the spaces of `spec`, its parameters moved off their start so that nothing is near zero."""
    env = spec.make_one()
    policy = make_policy(replace(SMALL[name], **options), env.observation_space, env.action_space, SEED)
    env.close()
    return stir(policy)


@pytest.fixture(params=["torch", "compiled"])
def both_twins(request: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """The test runs with either twin of the update; what the compiled one does not serve has torch's both times."""
    monkeypatch.setattr(sys.modules[__name__], "UPDATE", request.param)
    return str(request.param)


def stir(policy: Any, scale: float = 0.3) -> Any:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return policy


def arrays_of(policy: Any) -> dict[str, np.ndarray]:
    return {name: tensor.detach().numpy().copy() for name, tensor in policy.state_dict().items()}


def assert_same_arrays(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    """Equal to the bit, NaN equal to NaN."""
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)


def fragment(
    network: str = "mlp", spec: EnvSpec = CARTPOLE, collects: Any = "steps", seed: int = SEED
) -> Any:
    """(a policy, what it collected)."""
    policy = small_policy(network, spec)
    named = {"num_steps": 24, "num_envs": 4, "collects": collects, "seed": seed}
    return policy, collect(spec, policy, **named)


COLUMNS = (
    "observation",
    "action",
    "reward",
    "terminated",
    "done",
    "valid",
    "episode_start",
    "value",
    "next_value",
    "log_prob",
)


def columns(trajectory: Trajectory, part: Any) -> Trajectory:
    """Its envs `part`: a slice, or their numbers."""
    state = trajectory.initial_state
    return replace(
        trajectory,
        initial_state=None if state is None else tuple(leaf[part] for leaf in state),
        **{name: tree_map(lambda leaf: leaf[:, part], getattr(trajectory, name)) for name in COLUMNS},
    )


def split(trajectory: Trajectory) -> list[Trajectory]:
    """Its columns as two groups'."""
    return [columns(trajectory, slice(0, 1)), columns(trajectory, slice(1, None))]


def gradient_of(policy: Any, recipe: Recipe, trajectory: Trajectory) -> list[Any]:
    """The (clipped) gradient of an update's one step, told from Adam's first moment, 0.1 of it."""
    learner = make_learner(copy.deepcopy(policy), recipe)
    learner.update([trajectory], 0.0)
    optimiser = learner.state()["optimiser"]
    return [torch.from_numpy(optimiser[number]["exp_avg"]) / 0.1 for number in sorted(optimiser, key=int)]
