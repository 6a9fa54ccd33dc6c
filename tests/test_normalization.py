"""Moments are those of all rows that count, whoever collected them; rewards are scaled as a slow twin scales them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from distrl.envs import EnvSpec
from distrl.normalization import ObservationMoments, RewardScale
from distrl.policies import Observe, PolicySpec, make_policy
from distrl.recipes import PPO
from distrl.trajectory import Trajectory
from distrl.trees import tree_map
from tests import reference
from tests.parts import (
    SEED,
    arrays_of,
    collect,
    columns,
    make_collector,
    make_learner,
    small_policy,
    steady_policy,
)
from tests.test_trajectory import make as counted

EXAMPLES = settings(max_examples=30, deadline=None)
NESTED = EnvSpec("toy_envs:Toy/Nested-v0", autoreset="next_step")


def seen_by(policy: Any, trajectories: list[Trajectory]) -> np.ndarray:
    """The features [B, F] of every row that counts, in float64."""
    rows = [
        policy.observe.features(
            tree_map(lambda leaf, t=t: torch.from_numpy(leaf[t.valid]), t.observation)
        ).numpy()
        for t in trajectories
    ]
    return np.concatenate(rows).astype(np.float64)


@pytest.mark.parametrize("network", ["mlp", "lstm"])
def test_observation_moments_are_numpy_s_over_all_valid_rows_of_all_iterations(network):
    spec = EnvSpec("CartPole-v1", max_episode_steps=9, autoreset="next_step")
    policy = small_policy(network, spec, normalize_observation=True)
    collector = make_collector(spec, policy, num_steps=20, num_envs=3)
    learner = make_learner(policy, replace(PPO, minibatches=1), normalize_observation=True)
    past: list[Trajectory] = []
    for k in range(4):
        frozen = arrays_of(policy.observe)
        past.append(collector.collect(k, k).trajectory)
        for name, array in arrays_of(policy.observe).items():
            np.testing.assert_array_equal(array, frozen[name], err_msg="frozen while it collects")
        assert not past[-1].valid.all()
        learner.update([past[-1]], 0.0)
        rows = seen_by(policy, past)
        mean, variance = reference.moments(rows)
        pooled = learner.observation_moments.moments  # type: ignore[union-attr]
        assert pooled.count == len(rows)
        np.testing.assert_allclose(pooled.mean, mean, rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(pooled.variance, variance, rtol=1e-10)
        np.testing.assert_allclose(policy.observe.mean, mean, rtol=1e-6)
        np.testing.assert_allclose(policy.observe.std, np.sqrt(variance + 1e-8), rtol=1e-6)
    collector.group.close()


def test_the_moments_that_an_update_uses_are_those_that_collected_its_batch():
    """Else the ratio of the first minibatch would not be 1."""
    spec = EnvSpec("CartPole-v1", max_episode_steps=9)
    policy = small_policy("mlp", spec, normalize_observation=True)
    collector = make_collector(spec, policy, num_steps=20, num_envs=3)
    learner = make_learner(policy, replace(PPO, epochs=1, minibatches=1), normalize_observation=True)
    for k in range(3):
        metrics = learner.update([collector.collect(k, k).trajectory], 0.0)
        assert metrics["ratio"] == pytest.approx(1, abs=1e-5) and metrics["approx_kl"] < 1e-6
    collector.group.close()


def test_a_group_split_changes_no_bit_of_the_moments():
    policy = small_policy("mlp", NESTED, normalize_observation=True)
    whole = counted_like(collect(NESTED, policy, num_steps=30, num_envs=4))
    results = []
    for cuts in ([], [1], [1, 2, 3]):
        parts = np.split(np.arange(4), cuts)
        moments = ObservationMoments(policy.observe)
        moments.include(Trajectory.concatenate([columns(whole, part) for part in parts]))
        results.append(moments.state())
    for result in results[1:]:
        for name in ("count", "mean", "m2"):
            np.testing.assert_array_equal(result[name], results[0][name])


def counted_like(trajectory: Trajectory) -> Trajectory:
    return replace(trajectory, extra={})


def test_one_hot_entries_and_images_are_left_alone():
    policy = small_policy("mlp", NESTED, normalize_observation=True)
    observe = policy.observe
    moments = ObservationMoments(observe)
    moments.include(collect(NESTED, policy, num_steps=30, num_envs=3))
    mean, std = observe.mean.numpy(), observe.std.numpy()
    number = observe.is_number
    assert number.sum() == 3 + 16 and (~number).sum() == 9 + 2
    assert (mean[~number] == 0).all() and (std[~number] == 1).all()
    assert (std[number] != 1).all() and (mean[number] != 0).any()


def test_an_observation_that_is_an_image_alone_has_nothing_to_normalise():
    space = spaces.Box(0, 255, (36, 36, 1), np.uint8)
    policy: Any = make_policy(PolicySpec("cnn", normalize_observation=True), space, spaces.Discrete(2), SEED)
    trajectory = replace(counted(3, 2), observation=np.zeros((3, 2, 36, 36, 1), np.uint8))
    moments = ObservationMoments(policy.observe)
    moments.include(trajectory)
    assert moments.moments.count == 6 and moments.moments.mean.shape == (0,)


def test_padded_rows_of_whole_episodes_are_counted_nowhere_also_where_zero_is_no_observation():
    space = spaces.Discrete(3, start=5)
    observe = Observe(space, normalize=True)
    short, long = counted(2, 1), counted(4, 1)
    parts = [replace(t, observation=np.full((t.num_steps, 1), 6)) for t in (short, long)]
    moments = ObservationMoments(observe)
    moments.include(Trajectory.concatenate(parts))
    assert moments.moments.count == 6
    assert moments.moments.mean.tolist() == [0, 1, 0]


def test_moments_go_out_and_in():
    policy = small_policy("mlp", NESTED, normalize_observation=True)
    trajectory = collect(NESTED, policy, num_steps=9, num_envs=2)
    one, other = ObservationMoments(policy.observe), ObservationMoments(policy.observe)
    one.include(trajectory)
    other.load_state(one.state())
    one.include(trajectory)
    other.include(trajectory)
    np.testing.assert_array_equal(one.moments.m2, other.moments.m2)
    assert one.moments.count == other.moments.count == 2 * trajectory.num_valid


@EXAMPLES
@given(
    st.integers(0, 2**32),
    st.integers(1, 3),
    st.integers(1, 7),
    st.integers(1, 3),
    st.sampled_from([0.0, 0.9, 1.0]),
)
def test_rewards_are_divided_by_the_deviation_of_all_discounted_returns_so_far(
    seed, fragments, steps, envs, gamma
):
    rng = np.random.default_rng(seed)
    shape = (fragments, steps, envs)
    reward = (rng.normal(size=shape) * 3).astype(np.float32)
    valid = rng.random(shape) < 0.8
    done = rng.random(shape) < 0.3  # also in rows that do not count, as a dropped one is
    scaled, variances = (
        reference.scaled_rewards(reward, done, valid, gamma) if valid[0].any() else (None, None)
    )
    if scaled is None or min(variances) < 1e-6:
        return
    scale = RewardScale(envs, gamma)
    for k in range(fragments):
        spoilt = np.where(valid[k], reward[k], np.nan).astype(np.float32)
        got = scale.scale(spoilt, done[k], valid[k])
        assert got.dtype == np.float32
        assert float(scale.moments.variance) == pytest.approx(variances[k], rel=1e-6)
        np.testing.assert_allclose(got[valid[k]], scaled[k][valid[k]], rtol=1e-5)


def test_running_returns_go_on_across_fragments_and_a_state_round_trip_and_start_anew_after_an_end():
    scale = RewardScale(2, 0.5)
    one, nothing, valid = np.ones((1, 2), np.float32), np.zeros((1, 2), bool), np.ones((1, 2), bool)
    scale.scale(one, nothing, valid)
    assert scale.running.tolist() == [1.0, 1.0]
    scale.scale(one, np.array([[True, False]]), valid)
    assert scale.running.tolist() == [0.0, 1.5]
    other = RewardScale(2, 0.5)
    other.load_state(scale.state())
    for each in (scale, other):
        each.scale(one, nothing, valid)
        assert each.running.tolist() == [1.0, 1.75]
    assert float(scale.moments.m2) == float(other.moments.m2) and scale.moments.count == 6
    assert reference.moments(np.array([1, 1, 1.5, 1.5, 1, 1.75]))[1] == pytest.approx(
        float(scale.moments.variance)
    )


def test_scaled_rewards_are_clipped_to_ten_and_their_mean_is_kept():
    scale = RewardScale(1, 0.0)
    reward = np.ones((1000, 1), np.float32)
    reward[500] = 1e6
    flags = np.zeros((1000, 1), bool)
    scaled = scale.scale(reward, flags, ~flags)
    assert scaled[500] == 10 and (scaled[:500] > 0).all()


def test_a_reward_that_is_no_number_does_not_stay_in_the_moments():
    scale, other = RewardScale(1, 0.5), RewardScale(1, 0.5)
    valid = np.ones((3, 1), bool)
    done = np.array([[False], [True], [False]])
    scale.scale(np.array([[1], [np.nan], [3]], np.float32), done, valid)
    other.scale(np.array([[1], [7], [3]], np.float32), done, np.array([[True], [False], [True]]))
    assert float(scale.moments.m2) == float(other.moments.m2) and scale.moments.count == 2
    assert scale.running.tolist() == other.running.tolist() == [3.0]


def test_after_whole_episodes_nothing_of_what_followed_them_is_carried_on():
    """The envs play on behind the end of their episode until the longest is over: those rewards are no one's."""
    spec = EnvSpec("CartPole-v1", max_episode_steps=40)
    policy = steady_policy("mlp", spec)
    collector = make_collector(spec, policy, collects="episodes", num_envs=3)
    scale, seen = RewardScale(3, 0.9), []
    for k in range(3):
        t = collector.collect(k, k).trajectory
        assert not t.valid.all()
        scale.scale(t.reward, t.done, t.valid)
        seen += [(1 - 0.9 ** (row + 1)) / 0.1 for length in t.valid.sum(0) for row in range(length)]
        assert (scale.running == 0).all()
    collector.group.close()
    assert float(scale.moments.variance) == pytest.approx(
        float(reference.moments(np.array(seen))[1]), rel=1e-9
    )
