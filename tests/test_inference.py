"""The compiled inference beside torch's, the ratio of 1 where update and rollout share a kernel, and who is chosen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from distrl.build import work_spec
from distrl.config import TrainConfig
from distrl.envs import EnvSpec
from distrl.errors import BadInput
from distrl.inference import CompiledInference, TorchInference
from distrl.learner import Learner
from distrl.policies import PolicySpec, make_policy
from distrl.recipes import PPO
from distrl.rollout import Collector
from distrl.trees import tree_leaves, tree_map
from tests.parts import SEED, make_group, small_policy, stir

OBSERVATIONS: dict[str, spaces.Space] = {
    "numbers": spaces.Box(-5, 5, (6,), np.float64),
    "matrix": spaces.Box(-5, 5, (2, 3), np.float32),
    "category": spaces.Discrete(5, start=-2),
    "image": spaces.Box(0, 255, (4, 4, 3), np.uint8),
    "nested": spaces.Dict(
        z=spaces.Tuple((spaces.MultiDiscrete([3, 2], start=[1, 4]), spaces.MultiBinary(3))),
        a=spaces.Box(0, 255, (5, 4), np.uint8),
        body=spaces.Dict(x=spaces.Box(-1, 1, (2,), np.float32), y=spaces.Discrete(4)),
    ),
}
ACTIONS: dict[str, spaces.Space] = {
    "two": spaces.Discrete(2),
    "many": spaces.Discrete(19, start=3),
    "vector": spaces.Box(-2, 2, (3,)),
    "table": spaces.Box(-2, 2, (2, 2), np.float64),
    "scalar": spaces.Box(-2, 2, ()),
}


def rows_of(space: spaces.Space, shape: tuple[int, ...]) -> Any:
    """Observations [*shape, ...] drawn from the space."""
    space.seed(3)
    drawn = [space.sample() for _ in range(int(np.prod(shape)))]
    return tree_map(
        lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]).reshape(*shape, *np.shape(leaves[0])),
        *drawn,
    )


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("action", sorted(ACTIONS))
@pytest.mark.parametrize("observation", sorted(OBSERVATIONS))
def test_the_compiled_policy_is_the_one_in_torch(observation, action, normalize, masked):
    spec = PolicySpec("mlp", (24, 16), normalize_observation=normalize)
    policy: Any = stir(make_policy(spec, OBSERVATIONS[observation], ACTIONS[action], 0))
    n = policy.distribution.num_outputs
    generator = np.random.default_rng(1)
    if normalize:
        policy.observe.set_moments(
            generator.standard_normal(policy.observe.num_features), np.full(policy.observe.num_features, 2.0)
        )
    mask = generator.random((5, 4, n)) < 0.5
    mask[..., 0] = True
    mask = mask if masked and action in ("two", "many") else None
    rows = {"observation": rows_of(OBSERVATIONS[observation], (5, 4)), "reward": np.zeros((5, 4), np.float32)}
    first = tree_map(lambda leaf: leaf[0], rows["observation"])
    noise = policy.distribution.noise(generator, (4,))
    with torch.inference_mode():
        ours, torchs = CompiledInference(policy), TorchInference(policy)
        chosen = [one.act(first, None, noise, None if mask is None else mask[0])[0] for one in (ours, torchs)]
        assert chosen[0].dtype == chosen[1].dtype
        np.testing.assert_allclose(*chosen, rtol=1e-5, atol=1e-5)
        drawn = policy.distribution.noise(generator, (5, 4))
        rows["action"] = (
            drawn.reshape(5, 4, *policy.distribution.action_shape)
            if action in ("vector", "table", "scalar")
            else (np.zeros((5, 4), np.int64) if mask is not None else generator.integers(0, n, (5, 4)))
        )
        for got, wanted in zip(ours.evaluate(rows, mask, None), torchs.evaluate(rows, mask, None)):
            assert got.shape == wanted.shape == (5, 4)
            np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(ours.value(first, None), torchs.value(first, None), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize("normalize", [False, True])
def test_the_first_minibatch_has_a_ratio_of_exactly_one(env, normalize):
    spec = EnvSpec(env, max_episode_steps=20)
    policy = small_policy("mlp", spec, normalize_observation=normalize, hidden_sizes=(40, 64))
    learner = Learner(
        policy,
        replace(PPO, epochs=1, minibatches=1),
        SEED,
        normalize_observation=normalize,
        update="compiled",
    )
    inference = CompiledInference(policy)
    collector = Collector(make_group(spec, 3), policy, SEED, "steps", 41, inference=inference)
    collector.start()
    for iteration in range(3):
        inference.load()
        fragment = collector.collect(iteration, iteration)
        metrics = learner.update([fragment.trajectory], 0.0)
        assert metrics["ratio"] == 1.0
        assert metrics["approx_kl"] == 0.0
    collector.group.close()


def test_a_compiled_fragment_is_torchs_up_to_rounding():
    spec = EnvSpec("CartPole-v1", max_episode_steps=9)
    policy = small_policy("mlp", spec)
    fragments = []
    for inference in (CompiledInference(policy), TorchInference(policy)):
        collector = Collector(make_group(spec, 3), policy, SEED, "steps", 30, inference=inference)
        collector.start()
        fragments.append(collector.collect(0, 0))
        collector.group.close()
    ours, torchs = (fragment.trajectory for fragment in fragments)
    assert fragments[0].episodes == fragments[1].episodes
    for name, wanted in vars(torchs).items():
        for got, leaf in zip(tree_leaves(getattr(ours, name)), tree_leaves(wanted), strict=True):
            np.testing.assert_allclose(got, leaf, rtol=1e-5, atol=1e-5, err_msg=name)


def paths(**fields: Any) -> dict[str, str]:
    return {
        name: path
        for name, path in work_spec(TrainConfig(**fields)).paths.items()
        if name in ("learner", "inference")
    }


def test_the_twin_is_chosen_from_the_configuration_and_the_spaces():
    both = {"learner": "compiled", "inference": "compiled"}
    neither = {"learner": "torch", "inference": "torch"}
    assert paths(env="CartPole-v1") == both
    assert paths(env="Pendulum-v1", normalize_observation=True) == both
    assert paths(env="CartPole-v1", learner="torch", inference="torch") == neither
    assert paths(env="CartPole-v1", inference="torch") == {"learner": "compiled", "inference": "torch"}
    assert paths(env="CartPole-v1", network="lstm") == neither
    assert paths(env="CartPole-v1", policy="tests.parts:table_policy") == neither
    on_gpu = work_spec(TrainConfig(env="CartPole-v1"), device="cuda").paths
    assert (on_gpu["learner"], on_gpu["inference"]) == ("torch", "compiled")


@pytest.mark.parametrize("part", ["learner", "inference"])
def test_asking_for_the_compiled_twin_where_it_cannot_serve_is_refused_with_the_reason(part):
    with pytest.raises(BadInput, match=f"--{part} compiled: the network is a lstm"):
        paths(env="CartPole-v1", network="lstm", **{part: "compiled"})
    with pytest.raises(BadInput, match=f"--{part} compiled: --policy tests.parts:table_policy is one's own"):
        paths(env="CartPole-v1", policy="tests.parts:table_policy", **{part: "compiled"})
    with pytest.raises(BadInput, match=f"--{part} compiled: the actions are MultiDiscrete"):
        paths(env="toy_envs:Toy/Nested-v0", network="mlp", **{part: "compiled"})
    if part == "learner":
        with pytest.raises(BadInput, match="--learner compiled: the learner's device is cuda"):
            work_spec(TrainConfig(env="CartPole-v1", learner="compiled"), device="cuda")
