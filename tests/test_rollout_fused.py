"""The fused rollout is the stepwise one to the bit: rows, episodes, and the state that it leaves behind."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from distrl.checkpoint import load_tree, save_tree
from distrl.envs import EnvGroup, EnvSpec
from distrl.errors import RunFailed
from distrl.inference import make_inference
from distrl.policies import PolicySpec, make_policy
from distrl.policies.distributions import Categorical
from distrl.rollout import Collector, Fragment
from distrl.rollout_fused import FusedCollector, why_not_fused
from distrl.trees import tree_leaves
from tests.parts import stir

IDS = ["CartPole-v1", "Acrobot-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Pendulum-v1"]
SEED, NUM_ENVS = 7, 5


def make(
    kind: type[Collector],
    spec: EnvSpec,
    collects: Any = "steps",
    num_steps: int = 150,
    normalize: bool = False,
    num_envs: int = NUM_ENVS,
    rescale: bool = False,
) -> Any:
    group = EnvGroup(spec, 1, num_envs, NUM_ENVS, SEED)
    policy: Any = stir(
        make_policy(
            PolicySpec("mlp", (16, 16), normalize_observation=normalize, rescale_action=rescale),
            group.observation_space,
            group.action_space,
            SEED,
        )
    )
    if normalize:
        count = policy.observe.num_features
        policy.observe.set_moments(np.linspace(-0.3, 0.2, count), np.linspace(0.001, 0.5, count))
    inference = make_inference(policy, "compiled")
    collector = kind(group, policy, SEED, collects, num_steps, inference=inference)
    collector.start()
    return collector


def native(env_id: str, limit: int | None = 60) -> EnvSpec:
    return EnvSpec(env_id, backend="native", max_episode_steps=limit)


def assert_same(fused: Fragment, stepwise: Fragment) -> None:
    for column in dataclasses.fields(stepwise.trajectory):
        one, other = (getattr(fragment.trajectory, column.name) for fragment in (fused, stepwise))
        if column.name == "version":
            assert one == other
            continue
        for left, right in zip(tree_leaves(one), tree_leaves(other), strict=True):
            assert (left.dtype, left.shape) == (right.dtype, right.shape), column.name
            np.testing.assert_array_equal(left, right, err_msg=column.name)
    assert fused.episodes == stepwise.episodes
    assert fused.dropped == stepwise.dropped


def assert_same_tree(one: Any, other: Any) -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same_tree(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_same_tree(left, right)
    else:
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("collects", ["steps", "episodes"])
@pytest.mark.parametrize("env_id", [*IDS, "native_envs:WALK"])
def test_a_fused_fragment_is_the_stepwise_one(env_id, collects, normalize):
    limit = 200 if collects == "episodes" else 60  # over and under a block of noise
    fused, stepwise = (
        make(kind, native(env_id, limit), collects, normalize=normalize)
        for kind in (FusedCollector, Collector)
    )
    for iteration in range(3):
        one, other = fused.collect(iteration, 4), stepwise.collect(iteration, 4)
        assert_same(one, other)
        assert_same_tree(fused.snapshot(), stepwise.snapshot())
    assert one.episodes


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "MountainCarContinuous-v0"])
def test_a_fused_rollout_rescales_actions_as_the_stepwise_one(env_id):
    fused, stepwise = (make(kind, native(env_id), rescale=True) for kind in (FusedCollector, Collector))
    one, other = fused.collect(0, 0), stepwise.collect(0, 0)
    assert_same(one, other)
    clipped = make(FusedCollector, native(env_id)).collect(0, 0).trajectory
    same = np.array_equal(one.trajectory.reward, clipped.reward)
    assert same == (env_id == "MountainCarContinuous-v0"), "whose actions lie in [-1, 1] anyway"


def test_either_rollout_goes_on_from_where_the_other_stood(tmp_path):
    one, expected = make(FusedCollector, native("CartPole-v1")), make(FusedCollector, native("CartPole-v1"))
    one.collect(0, 0)
    expected.collect(0, 0)
    save_tree(tmp_path, "state", one.snapshot())
    last = expected.collect(1, 1)
    for kind in (FusedCollector, Collector):
        other = make(kind, native("CartPole-v1"))
        other.restore(load_tree(tmp_path, "state"))
        assert_same(other.collect(1, 1), last)


def test_an_env_does_the_same_alone_and_among_more(monkeypatch):
    """Row-exact: what an env does depends on its own seeds, not on who is stepped beside it."""
    monkeypatch.setattr(
        Categorical, "noise", lambda self, generator, shape: np.zeros((*shape, 2), np.float32)
    )
    many, few = (
        make(FusedCollector, native("CartPole-v1"), num_envs=count).collect(0, 0).trajectory
        for count in (70, 3)
    )
    for name in ("observation", "action", "reward", "log_prob", "value", "next_value"):
        np.testing.assert_array_equal(getattr(many, name)[:, :3], getattr(few, name))


@pytest.mark.parametrize("kind", [Collector, FusedCollector])
def test_a_nan_and_an_exception_name_the_env_and_the_episode(kind):
    collector = make(kind, native("native_envs:SPOILS", 25))
    with pytest.raises(
        RunFailed, match=r"env 5 \(native_envs:SPOILS\): observation is NaN or Inf at step 11 of the"
    ):
        collector.collect(0, 0)
    collector = make(kind, native("native_envs:RAISES", 25))
    with pytest.raises(RunFailed, match=r"env group 1 \(native_envs:RAISES\): ValueError: the walk broke"):
        collector.collect(0, 0)


def test_what_cannot_be_fused_is_named():
    assert why_not_fused(native("CartPole-v1")) is None
    assert why_not_fused(EnvSpec("CartPole-v1")) == "the env's backend is gymnasium"
    assert "drop" in str(why_not_fused(EnvSpec("CartPole-v1", backend="native", nonfinite="drop")))


def test_what_was_compiled_is_kept_for_the_next_process():
    code = (
        "from distrl.envs import EnvGroup, EnvSpec\n"
        "from distrl.envs.native.fused import infer, pick, to_env\n"
        "from distrl.inference import make_inference\n"
        "from distrl.policies import PolicySpec, make_policy\n"
        "from distrl.rollout_fused import FusedCollector\n"
        "group = EnvGroup(EnvSpec('CartPole-v1', backend='native'), 0, 2, 0, 1)\n"
        "policy = make_policy(PolicySpec('mlp', (8,)), group.observation_space, group.action_space, 1)\n"
        "collector = FusedCollector(group, policy, 1, 'steps', 4, inference=make_inference(policy, 'compiled'))\n"
        "kernels = group.native.kernels\n"
        "for one in (collector.block, infer, pick, to_env, kernels.begin, kernels.begin_unseeded, kernels.step):\n"
        "    print(sum(one.stats.cache_misses.values()))\n"
    )
    for _ in range(2):
        told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=280)
    assert told.returncode == 0, told.stderr
    assert told.stdout.split() == ["0"] * 7
