"""One's own policy by `module:function`: it is used as it comes, and each way to get it wrong is said."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gymnasium import spaces
from torch import nn

from distrl.envs import EnvSpec
from distrl.errors import BadInput
from distrl.policies import Policy, PolicySpec, make_policy
from distrl.policies.mlp import MLPPolicy
from tests.parts import TablePolicy, arrays_of, collect, make_learner

OBSERVATION, ACTION = spaces.Box(0, 9, (1,)), spaces.Discrete(2)


def mlp(observation_space: Any, action_space: Any, width: int = 4) -> nn.Module:
    return MLPPolicy(observation_space, action_space, (width,))


def not_a_module(observation_space: Any, action_space: Any) -> Any:
    return object()


def incomplete(observation_space: Any, action_space: Any) -> nn.Module:
    return nn.Linear(2, 2)


class Remembering(MLPPolicy):
    def initial_state(self, num_envs: int) -> Any:
        return torch.ones(num_envs, 2)


def remembering(observation_space: Any, action_space: Any) -> nn.Module:
    return Remembering(observation_space, action_space, (4,))


def build(name: str, seed: int = 0, normalize: bool = False, **kwargs: Any) -> Any:
    spec = PolicySpec(policy=name, policy_kwargs=kwargs, normalize_observation=normalize)
    return make_policy(spec, OBSERVATION, ACTION, seed)


def test_a_policy_of_one_s_own_is_built_with_its_arguments_and_from_the_seed():
    policy = build(f"{__name__}:mlp", width=7)
    assert isinstance(policy, Policy) and policy.actor[0].out_features == 7
    same, other = (arrays_of(build(f"{__name__}:mlp", seed)) for seed in (0, 1))
    assert (same["actor.0.weight"] == arrays_of(build(f"{__name__}:mlp"))["actor.0.weight"]).all()
    assert (same["actor.0.weight"] != other["actor.0.weight"]).any()


def test_a_policy_of_one_s_own_collects_and_learns():
    policy = build("tests.parts:table_policy", entries=6)
    assert isinstance(policy, TablePolicy) and len(policy.values) == 6
    trajectory = collect(EnvSpec("tests.parts:Parts/One-v0"), policy)
    before = arrays_of(policy)
    metrics = make_learner(policy).update([trajectory], 0.0)
    assert metrics["skipped_updates"] == 0
    moved = before["values"] != arrays_of(policy)["values"]
    assert moved.tolist() == [True] * 4 + [False] * 2, "the states that it met"


@pytest.mark.parametrize(
    ("name", "kwargs", "said"),
    [
        ("no_such_module:f", {}, "module 'no_such_module' cannot be imported.*PYTHONPATH"),
        (f"{__name__}:mpl", {}, "has no function 'mpl'; did you mean 'mlp'"),
        ("just_a_name", {}, "must be module:function"),
        (f"{__name__}:mlp", {"depth": 2}, "policy_kwargs {'depth': 2}.*unexpected keyword argument 'depth'"),
        (
            f"{__name__}:not_a_module",
            {},
            "must return a Policy.*has no recurrent, distribution, initial_state, act",
        ),
        (f"{__name__}:incomplete", {}, "must return a Policy.*has no recurrent"),
        (f"{__name__}:remembering", {}, "initial_state must be zeros"),
    ],
)
def test_each_way_to_get_it_wrong_is_said(name, kwargs, said):
    with pytest.raises(BadInput, match=said):
        build(name, **kwargs)


def test_normalised_observations_want_a_policy_with_observe():
    with pytest.raises(BadInput, match="--normalize-observation wants.*observe"):
        build("tests.parts:table_policy", normalize=True)
