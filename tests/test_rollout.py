"""Fragments against a replay of the env with a float64 twin of the policy."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from distrl.envs import EnvSpec
from distrl.envs.spaces import to_env_action
from distrl.maths.random import derive_seed
from distrl.recipes import PPO
from distrl.trajectory import Trajectory
from tests import reference
from tests.parts import (
    SEED,
    arrays_of,
    collect,
    make_collector,
    make_group,
    make_learner,
    small_policy,
    steady_policy,
)

SHORT = EnvSpec("CartPole-v1", max_episode_steps=11)
MODES = ("disabled", "same_step", "next_step")


class Twin:
    """V in float64, along one env: `reset` at an episode's start, `value` of an observation, `step` past it."""

    def __init__(self, policy: Any) -> None:
        self.arrays, self.recurrent = arrays_of(policy), policy.recurrent
        self.reset()

    def reset(self) -> None:
        self.h, self.c = np.zeros(6), np.zeros(6)

    def value(self, observation: Any) -> float:
        x = np.asarray(observation, np.float32).astype(np.float64).reshape(1, -1)
        if not self.recurrent:
            return float(reference.dense(self.arrays, "critic", x)[0, 0])
        h, _ = self._after(x)
        return float(self.arrays["critic.weight"][0].astype(np.float64) @ h + self.arrays["critic.bias"][0])

    def step(self, observation: Any) -> None:
        if self.recurrent:
            self.h, self.c = self._after(
                np.asarray(observation, np.float32).astype(np.float64).reshape(1, -1)
            )

    def _after(self, x: Any) -> Any:
        inputs = np.tanh(reference.dense(self.arrays, "trunk", x)[0])
        return reference.lstm_step(self.arrays, "lstm", inputs, self.h, self.c)


def replay(spec: EnvSpec, policy: Any, action: Any, fragments: int) -> dict[str, np.ndarray]:
    """What really happened to each env under `action` [T, N]: one env at a time, by gymnasium alone."""
    rows = {name: np.zeros(action.shape[:2]) for name in ("reward", "value", "next_value")}
    flags = {name: np.zeros(action.shape[:2], bool) for name in ("terminated", "done", "episode_start")}
    for n in range(action.shape[1]):
        env, twin, episode, start = spec.make_one(), Twin(policy), 0, True
        observation, _ = env.reset(seed=derive_seed(SEED, "episode", n, episode))
        for t in range(len(action)):
            if start:
                twin.reset()
            flags["episode_start"][t, n], rows["value"][t, n] = start, twin.value(observation)
            twin.step(observation)
            observation, rows["reward"][t, n], terminated, truncated, _ = env.step(int(action[t, n]))
            rows["next_value"][t, n] = twin.value(observation)  # by the memory carried to it
            start = flags["done"][t, n] = terminated or truncated
            flags["terminated"][t, n] = terminated
            if start:
                episode += 1
                observation, _ = env.reset(seed=derive_seed(SEED, "episode", n, episode))
        env.close()
    return rows | flags


@pytest.mark.parametrize("autoreset", ["disabled", "same_step"])
@pytest.mark.parametrize(("network", "frames"), [("mlp", 1), ("mlp", 3), ("lstm", 1)])
def test_values_and_bootstraps_are_those_of_a_replay_of_the_envs(network, frames, autoreset):
    spec = EnvSpec("CartPole-v1", max_episode_steps=11, autoreset=autoreset, frame_stack=frames)
    policy = steady_policy(network, spec)
    collector = make_collector(spec, policy, num_steps=20, num_envs=3)
    parts = [collector.collect(k, k).trajectory for k in range(3)]
    collector.group.close()
    action = np.concatenate([part.action for part in parts])
    wanted = replay(spec, policy, action, 3)
    got = {name: np.concatenate([getattr(part, name) for part in parts]) for name in wanted}
    for name in ("terminated", "done", "episode_start", "reward"):
        np.testing.assert_array_equal(got[name], wanted[name], err_msg=name)
    np.testing.assert_allclose(got["value"], wanted["value"], rtol=1e-4, atol=1e-4)
    counts = ~got["terminated"]
    np.testing.assert_allclose(got["next_value"][counts], wanted["next_value"][counts], rtol=1e-4, atol=1e-4)
    truncated = got["done"] & ~got["terminated"]
    assert truncated.sum() > 2 and got["terminated"].sum() > 2, "both ways to end are in it"
    inside = (~got["done"])[:-1]
    inside[19::20] = False
    assert (got["next_value"][:-1][inside] == got["value"][1:][inside]).all(), "the row after, to the bit"
    wrong = np.abs(got["next_value"][:-1] - got["value"][1:])[truncated[:-1]]
    assert np.median(wrong) > 0.05, "V of the next episode's first observation would be another number"


@pytest.mark.parametrize("network", ["mlp", "lstm"])
def test_log_probs_of_a_fragment_are_those_of_its_actions(network):
    policy = small_policy(network, SHORT)
    trajectory = collect(SHORT, policy, num_steps=15, num_envs=2)
    arrays = arrays_of(policy)
    for n in range(2):
        twin = Twin(policy)
        for t in range(15):
            if trajectory.episode_start[t, n]:
                twin.reset()
            observation = trajectory.observation[t, n]
            twin.step(observation)
            if network == "mlp":
                logits = reference.dense(arrays, "actor", observation.astype(np.float64)[None])
            else:
                logits = (arrays["actor.weight"].astype(np.float64) @ twin.h + arrays["actor.bias"])[None]
            exact = reference.categorical_log_prob(logits, trajectory.action[t, n][None])[0]
            assert trajectory.log_prob[t, n] == pytest.approx(exact, abs=1e-4)


def finished(trajectory: Trajectory, policy: Any, recipe: Any = PPO) -> list[dict[str, np.ndarray]]:
    """Per env, the valid rows up to its last finished episode, with the learner's own credit."""
    advantage, target = make_learner(policy, recipe)._credit(trajectory)
    columns = {
        name: getattr(trajectory, name)
        for name in ("observation", "reward", "terminated", "done", "episode_start")
    }
    columns |= {"action": trajectory.action, "advantage": advantage, "target": target}
    found = []
    for n in range(trajectory.num_envs):
        last = np.flatnonzero(trajectory.done[:, n])[-1]
        keep = np.flatnonzero(trajectory.valid[: last + 1, n])
        found.append({name: column[keep, n] for name, column in columns.items()})
    return found


@pytest.mark.parametrize("vectorization", ["sync", "async"])
@pytest.mark.parametrize("network", ["mlp", "lstm"])
def test_the_three_autoreset_modes_give_the_same_advantages_on_the_same_episodes(network, vectorization):
    """Actions of the observation alone: the noise of a row goes by its place, which an inserted row moves."""
    policy = steady_policy(network, SHORT)
    found = {}
    for mode in MODES:
        spec = EnvSpec("CartPole-v1", max_episode_steps=11, autoreset=mode, vectorization=vectorization)
        trajectory = collect(spec, policy, num_steps=120, num_envs=3)
        assert trajectory.valid.all() == (mode != "next_step")
        found[mode] = finished(trajectory, policy)
    ends = np.zeros(2, int)
    for n in range(3):
        size = min(len(found[mode][n]["reward"]) for mode in MODES)
        size = 1 + int(np.flatnonzero(found["disabled"][n]["done"][:size])[-1])
        one = found["disabled"][n]
        ends += [(one["terminated"])[:size].sum(), (one["done"] & ~one["terminated"])[:size].sum()]
        for mode in MODES[1:]:
            for name, column in found[mode][n].items():
                if name in ("advantage", "target"):
                    np.testing.assert_allclose(column[:size], one[name][:size], rtol=1e-4, atol=1e-4)
                else:
                    np.testing.assert_array_equal(column[:size], one[name][:size], err_msg=f"{mode} {name}")
    assert ends.min() > 3, f"terminated and truncated episodes are in it: {ends}"


def test_a_vector_entry_point_gives_rows_that_do_not_count_and_the_true_final_values():
    spec = EnvSpec(
        "CartPole-v1", vectorization="vector_entry_point", autoreset="next_step", max_episode_steps=15
    )
    policy = small_policy("mlp", EnvSpec("CartPole-v1"))
    collector = make_collector(spec, policy, num_steps=60, num_envs=3)
    first, second = (collector.collect(k, k) for k in range(2))
    collector.group.close()
    trajectory, value = second.trajectory, Twin(policy).value
    ended = np.concatenate([first.trajectory.done[-1:], trajectory.done[:-1]])
    np.testing.assert_array_equal(~trajectory.valid, ended, err_msg="one row after each end")
    assert (trajectory.reward == trajectory.valid).all() and not trajectory.done[~trajectory.valid].any()
    assert trajectory.num_valid == trajectory.valid.sum() < 180
    truncated = trajectory.done & ~trajectory.terminated
    checked = 0
    for t, n in np.argwhere(truncated[:-1]):  # the next row, which does not count, shows where it arrived
        assert not trajectory.valid[t + 1, n]
        exact = value(trajectory.observation[t + 1, n])
        assert trajectory.next_value[t, n] == pytest.approx(exact, abs=1e-4)
        checked += 1
    assert checked > 2 and trajectory.terminated.any()
    # the dynamics of gymnasium's own single env, from row to row
    single: Any = gym.make("CartPole-v1").unwrapped
    for t, n in np.argwhere(trajectory.valid[:-1]):
        single.reset()
        single.state = trajectory.observation[t, n].astype(np.float64)
        observation = single.step(int(trajectory.action[t, n]))[0]
        np.testing.assert_allclose(trajectory.observation[t + 1, n], observation, rtol=1e-4, atol=1e-5)
    metrics = make_learner(policy).update([first.trajectory, trajectory], 0.0)
    assert np.isfinite(list(metrics.values())).all()


def test_episode_records_are_the_sums_of_the_rows_that_count():
    spec = EnvSpec("toy_envs:Toy/Nested-v0", autoreset="next_step")
    collector = make_collector(spec, num_steps=40, num_envs=2)
    fragment = collector.collect(0, 0)
    collector.group.close()
    trajectory, records = fragment.trajectory, fragment.episodes
    assert len(records) == trajectory.done.sum() > 8
    for record in records:
        before = np.flatnonzero(trajectory.done[: record.step, record.env])
        begin = before[-1] + 1 if len(before) else 0
        rows = slice(begin, record.step + 1)
        keep = trajectory.valid[rows, record.env]
        assert record.length == keep.sum()
        assert record.return_ == trajectory.reward[rows, record.env][keep].sum()


@pytest.mark.parametrize("space", ["box", "discrete", "multi_binary"])
def test_the_env_gets_the_action_that_the_trajectory_names(space):
    """Acts observes its last action; the trajectory keeps the policy's own, unclipped and from 0."""
    trajectory = collect(EnvSpec("toy_envs:Toy/Acts-v0", {"space": space}), num_steps=8, num_envs=2)
    group = make_group(EnvSpec("toy_envs:Toy/Acts-v0", {"space": space}))
    for t in range(7):
        given = to_env_action(group.action_space, trajectory.action[t])
        seen = trajectory.observation[t + 1]
        np.testing.assert_allclose(seen.reshape(2, -1), given.reshape(2, -1).astype(np.float32))
    group.close()
    if space == "box":
        assert (np.abs(trajectory.action) > 2).any(), "some lie outside, and their own log-prob is kept"


def test_whole_episodes_are_collected_one_per_env_and_what_follows_does_not_count():
    collector = make_collector(SHORT, small_policy("mlp", SHORT), collects="episodes", num_envs=4)
    for iteration in range(2):
        fragment = collector.collect(iteration, iteration)
        trajectory = fragment.trajectory
        for n in range(4):
            length = int(trajectory.valid[:, n].sum())
            assert trajectory.valid[:length, n].all(), "the episode comes first"
            assert trajectory.done[length - 1, n] and not trajectory.done[: length - 1, n].any()
            assert trajectory.episode_start[0, n] and not trajectory.episode_start[1:length, n].any()
            seed = derive_seed(SEED, "episode", n, iteration)
            np.testing.assert_array_equal(
                trajectory.observation[0, n], gym.make("CartPole-v1").reset(seed=seed)[0]
            )
        assert trajectory.num_steps == trajectory.valid.sum(0).max(), "no longer than the longest"
        assert sorted(record.env for record in fragment.episodes) == [0, 1, 2, 3]
        assert sorted(r.length for r in fragment.episodes) == sorted(trajectory.valid.sum(0))
        cut = trajectory.valid & trajectory.done & ~trajectory.terminated
        for t, n in np.argwhere(cut):  # bootstrapped, should the credit ask for it
            twin, env = Twin(collector.policy), SHORT.make_one()
            env.reset(seed=derive_seed(SEED, "episode", int(n), iteration))
            for k in range(t + 1):
                observation = env.step(int(trajectory.action[k, n]))[0]
            assert trajectory.next_value[t, n] == pytest.approx(twin.value(observation), abs=1e-4)
    assert collector.snapshot() == {"group": None, "memory": []}
    collector.group.close()


def test_episodes_longer_than_a_block_of_noise_keep_all_their_rows():
    spec = EnvSpec("tests.parts:Parts/One-v0", {"length": 300})
    trajectory = collect(spec, collects="episodes", num_envs=2)
    np.testing.assert_array_equal(trajectory.observation[..., 0], np.tile(np.arange(300.0)[:, None], (1, 2)))
    assert trajectory.valid.all() and trajectory.terminated[-1].all()
    assert 100 < trajectory.action.sum() < 500 and len(np.unique(trajectory.action[:, 0])) == 2


@pytest.mark.parametrize("autoreset", MODES)
@pytest.mark.parametrize("what", ["observation", "reward"])
def test_a_dropped_row_ends_the_episode_at_the_row_before_and_leaks_nothing(what, autoreset):
    spec = EnvSpec(
        "toy_envs:Toy/Spoils-v0", {"what": what, "at": 3, "first": 1}, nonfinite="drop", autoreset=autoreset
    )
    policy = small_policy("mlp", spec)
    collector = make_collector(spec, policy, num_steps=24, num_envs=2)
    fragment = collector.collect(0, 0)
    collector.group.close()
    trajectory = fragment.trajectory
    assert fragment.dropped == 2
    dropped = trajectory.done & ~trajectory.valid
    assert dropped.sum(0).tolist() == [1, 1]
    [t] = {int(t) for t in np.argwhere(dropped)[:, 0]}
    assert trajectory.episode_start[t + 1].all()
    assert trajectory.done[t - 1].all() and not trajectory.terminated[t - 1].any()
    np.testing.assert_array_equal(trajectory.next_value[t - 1], trajectory.value[t])
    np.testing.assert_array_equal(
        trajectory.observation["a"][t, :, 0], [2, 2], err_msg="the last that was seen"
    )

    advantage, _ = make_learner(policy)._credit(trajectory)
    td = trajectory.reward[t - 1] + PPO.gamma * trajectory.value[t] - trajectory.value[t - 1]
    np.testing.assert_allclose(advantage[t - 1], td, rtol=1e-5)
    trajectory.reward[t] = 1e6
    np.testing.assert_array_equal(make_learner(policy)._credit(trajectory)[0][:t], advantage[:t])
    assert [record.length for record in fragment.episodes if record.step < 12] == [5, 5]
