"""A fragment depends on the policy, the state of its group, the seed and the iteration, and on nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from distrl.envs import EnvGroup, EnvSpec
from distrl.maths.random import stream
from distrl.rollout import Collector
from distrl.trajectory import Trajectory
from distrl.trees import tree_leaves
from tests.parts import (
    SEED,
    TablePolicy,
    collect,
    make_collector,
    make_group,
    small_policy,
)

SHORT = EnvSpec("CartPole-v1", max_episode_steps=11)
MODES = ("disabled", "same_step", "next_step")


def equal(left: Trajectory, right: Trajectory) -> bool:
    one, other = (list(tree_leaves(tuple(vars(trajectory).values())[:-1])) for trajectory in (left, right))
    return len(one) == len(other) and all(
        np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in zip(one, other, strict=True)
    )


def test_sync_and_async_give_identical_trajectories():
    """Nested observations, a MultiDiscrete with a start, action masks, episodes of random length."""
    parts = [
        collect(EnvSpec("toy_envs:Toy/Nested-v0", vectorization=kind), num_steps=30, num_envs=3)
        for kind in ("sync", "async")
    ]
    assert equal(*parts)
    assert parts[0].done.sum() > 5
    mask = parts[0].extra["action_mask"]
    assert mask.shape == (30, 3, 5) and not mask.all()
    assert mask[..., :3][np.arange(30)[:, None], np.arange(3), parts[0].action[..., 0]].all(), (
        "never a masked action"
    )


def test_action_noise_is_a_function_of_seed_group_and_iteration_alone():
    def noise(
        seed: int = SEED, index: int = 0, iteration: int = 2, num_steps: int = 5, length: int = 4
    ) -> Any:
        policy = TablePolicy(np.zeros(999), spaces.Discrete(2))
        spec = EnvSpec("tests.parts:Parts/One-v0", {"length": length})
        collector = make_collector(spec, policy, num_steps, seed=seed, index=index)
        collector.collect(iteration, version=9)
        collector.group.close()
        return torch.stack(policy.noise).numpy()

    expected = TablePolicy(np.zeros(1), spaces.Discrete(2)).distribution.noise(
        stream(SEED, "action", 0, 2, 0), (128, 2)
    )
    np.testing.assert_array_equal(noise(), expected[:5])
    long = noise(num_steps=140, length=7)
    np.testing.assert_array_equal(long[:128], expected, err_msg="whatever the env does")
    assert not np.array_equal(long[128:], expected[:12]), "a block of its own"
    for other in (noise(seed=8), noise(index=1), noise(iteration=3)):
        assert not np.array_equal(other, expected[:5])


@pytest.mark.parametrize("network", ["mlp", "lstm"])
@pytest.mark.parametrize("autoreset", MODES)
def test_a_collector_that_was_put_back_collects_the_same_bits(network, autoreset):
    spec = EnvSpec("CartPole-v1", max_episode_steps=11, autoreset=autoreset)
    policy = small_policy(network, spec)
    one = make_collector(spec, policy, num_steps=13)
    one.collect(0, 0)
    state = one.snapshot()
    expected = [one.collect(k, k).trajectory for k in (1, 2)]
    one.group.close()

    other = Collector(make_group(spec), policy, SEED, "steps", 13)
    other.restore(state)
    got = [other.collect(k, k).trajectory for k in (1, 2)]
    assert all(equal(*pair) for pair in zip(got, expected, strict=True))
    other.restore(state)  # once more, where it stands elsewhere
    assert equal(other.collect(1, 1).trajectory, expected[0])
    assert not equal(other.collect(3, 2).trajectory, expected[1]), "another iteration, other noise"
    other.group.close()
    if network == "lstm":
        assert np.abs(expected[0].initial_state[0]).max() > 0, "its memory was carried"


def test_whole_episodes_depend_on_the_iteration_alone():
    policy = small_policy("lstm", SHORT)
    one = make_collector(SHORT, policy, collects="episodes")
    expected = [one.collect(k, 0).trajectory for k in range(3)][2]
    one.group.close()
    other = make_collector(SHORT, policy, collects="episodes")
    other.restore(one.snapshot())
    assert equal(other.collect(2, 0).trajectory, expected)
    other.group.close()


def test_what_was_collected_is_not_overwritten_by_what_follows():
    collector = make_collector(SHORT, num_steps=9)
    trajectory = collector.collect(0, 0).trajectory
    copies = [
        leaf.copy() for leaf in tree_leaves((trajectory.observation, trajectory.action, trajectory.reward))
    ]
    collector.collect(1, 1)
    collector.group.close()
    for copy, leaf in zip(
        copies, tree_leaves((trajectory.observation, trajectory.action, trajectory.reward)), strict=True
    ):
        np.testing.assert_array_equal(leaf, copy)
    assert trajectory.version == 0 and trajectory.reward.dtype == trajectory.value.dtype == np.float32


def test_a_group_s_index_and_envs_are_its_own_whatever_else_the_process_hosts():
    """Two groups with one policy in one process, interleaved, against each alone."""
    spec = EnvSpec("CartPole-v1", max_episode_steps=11)
    policy = small_policy("lstm", spec)

    def group(index: int) -> Collector:
        collector = Collector(EnvGroup(spec, index, 2, 2 * index, SEED), policy, SEED, "steps", 10)
        collector.start()
        return collector

    together = [group(0), group(1)]
    mixed = [[collector.collect(k, k).trajectory for collector in together] for k in range(2)]
    for index in range(2):
        alone = group(index)
        for k in range(2):
            assert equal(alone.collect(k, k).trajectory, mixed[k][index])
        alone.group.close()
        together[index].group.close()
    assert not equal(mixed[0][0], mixed[0][1])
