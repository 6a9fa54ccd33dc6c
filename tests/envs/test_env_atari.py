"""The Atari preprocessing: lives, fire, raw and clipped rewards, sticky actions, the stack."""

from typing import Any

import gymnasium as gym
import numpy as np
import play
import pytest

from distrl.envs import EnvGroup, EnvSpec
from distrl.envs.atari import AtariGame

FAST = {"repeat_action_probability": 0.0}


def lives_of(group: EnvGroup) -> int:
    return int(group._vector.envs[0].unwrapped.ale.lives())


@pytest.mark.parametrize("mode", ["disabled", "next_step", "same_step"])
def test_a_lost_life_is_a_termination_without_a_reset_and_the_game_goes_through_all_lives(mode: str) -> None:
    group = play.make(EnvSpec("ALE/Breakout-v5", FAST, autoreset=mode), num_envs=1)
    group.start()
    lives, lengths, since = [lives_of(group)], [], 0
    for _ in range(400):
        result = group.step(np.zeros(1, np.int64))  # the ball falls past a paddle that does not move
        since += 1
        if result.terminated[0]:
            lengths.append(since)
            since = 0
            if not result.episodes:
                lives.append(lives_of(group))
                assert group.episode_start[0]
                stack = group.observation[0]
                assert (stack == stack[-1]).all(), "the stack of the next life holds nothing of the last"
                final = result.final_observation[0]
                assert not (final == final[-1]).all(), "the true final observation is that of the lost life"
        if result.episodes:
            break
    assert lives == [5, 4, 3, 2, 1]
    assert len(lengths) == 5
    assert result.episodes[0].length == sum(lengths), "a whole game is one episode in the statistics"
    group.close()


def test_rewards_are_clipped_to_learn_from_and_raw_in_the_statistics() -> None:
    # Seaquest pays 20 a hit.
    group = play.make(EnvSpec("ALE/Seaquest-v5", FAST, max_episode_steps=500), num_envs=1)
    group.start()
    learned, episodes = 0.0, []
    for action in play.actions(group, 500):
        result = group.step(action)
        assert result.reward[0] in (-1.0, 0.0, 1.0)
        learned += float(result.reward[0])
        episodes += result.episodes
        if result.episodes:
            break
    assert learned > 0
    assert episodes[0].return_ == 20 * learned
    group.close()


def test_the_time_limit_counts_the_agent_s_steps_and_not_frames() -> None:
    group = play.make(EnvSpec("ALE/Pong-v5", max_episode_steps=7), num_envs=1)
    group.start()
    results = [group.step(np.zeros(1, np.int64)) for _ in range(7)]
    assert [bool(result.truncated[0]) for result in results] == [False] * 6 + [True]
    assert results[-1].episodes[0].length == 7
    group.close()


def test_the_observation_is_the_maximum_of_two_frames_gray_and_small() -> None:
    import cv2

    spec = EnvSpec("ALE/Pong-v5", FAST)
    env: Any = spec.make_one()
    assert env.observation_space == gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)
    observation, _ = env.reset(seed=5)
    assert (observation == observation[-1]).all()
    ale = env.unwrapped.ale
    state = ale.cloneState(include_rng=True)
    observation = env.step(3)[0]
    ale.restoreState(state)
    frames = [env.unwrapped.step(3)[0] for _ in range(4)]
    expected = cv2.resize(np.maximum(*frames[-2:]), (84, 84), interpolation=cv2.INTER_AREA)
    assert np.array_equal(observation[-1], expected)
    assert not np.array_equal(observation[-1], observation[-2])


def test_no_ops_at_the_start_differ_by_episode_and_fire_is_pressed() -> None:
    env: Any = EnvSpec("ALE/Breakout-v5", FAST).make_one()
    frames = set()
    for seed in range(12):
        env.reset(seed=seed)
        frames.add(env.unwrapped.ale.getEpisodeFrameNumber())
    assert len(frames) > 5
    assert min(frames) >= 9 and max(frames) <= 38  # 1 to 30 no-ops, then two actions of four frames
    before, after = (env.step(0)[0][-1].astype(int) for _ in range(2))
    assert np.abs(after - before).sum() > 0, "the ball flies: it was served"


def test_sticky_actions_repeat_with_the_id_s_probability() -> None:
    env: Any = EnvSpec("ALE/Pong-v5").make_one()
    env.reset(seed=0)
    game, taken = env, []
    while not hasattr(game, "_held"):
        game = game.env
    base_step = game.env.step
    game.env.step = lambda action: (taken.append(int(action)), base_step(action))[1]
    asked = []
    for step in range(500):
        asked += [2 + step % 2] * 4
        env.step(2 + step % 2)
    # A frame keeps the former action with probability 1/4; it can show only where the action changes.
    changed = np.flatnonzero(np.diff(asked)) + 1
    stuck = np.mean([taken[frame] != asked[frame] for frame in changed])
    assert 0.19 < stuck < 0.31
    assert env.unwrapped.ale.getFloat("repeat_action_probability") == 0.0


def test_ale_s_own_vector_env_gives_raw_statistics_and_learns_from_clipped_rewards() -> None:
    spec = EnvSpec("ALE/Seaquest-v5", vectorization="vector_entry_point", autoreset="same_step")
    group = play.make(spec)
    group.start()
    assert group.observation.shape == (2, 4, 84, 84)
    learned, episodes = np.zeros(2), []
    for action in play.actions(group, 600):
        result = group.step(action)
        assert set(result.reward.tolist()) <= {-1.0, 0.0, 1.0}
        learned += result.reward
        if result.episodes:
            episodes = result.episodes
            break
    assert episodes
    assert episodes[0].return_ == 20 * learned[episodes[0].env - play.FIRST_ENV] > 0
    group.close()


@pytest.mark.parametrize("name", ["Breakout", "BeamRider", "Enduro"])
def test_a_game_is_the_same_whatever_was_played_before_it(name: str) -> None:
    def game() -> gym.Env[Any, Any]:
        return AtariGame(gym.make(f"ALE/{name}-v5", frameskip=1, obs_type="grayscale", **FAST))

    def played(env: gym.Env[Any, Any], seed: int | None) -> tuple[list[np.ndarray], list[Any]]:
        observation, _ = env.reset(seed=seed)
        observations, rest = [observation], []
        for action in np.random.default_rng(7).integers(env.action_space.n, size=120):
            observation, reward, terminated, truncated, info = env.step(action)
            observations.append(observation)
            rest.append(
                (reward, terminated, truncated, env.unwrapped.ale.getRAM().tolist(), info.get("lives"))
            )
            if terminated or truncated:
                break
        return observations, rest

    old = game()
    for seed in (3, None, 4):
        played(old, seed)
    fresh = game()
    for left, right in zip(played(old, 11), played(fresh, 11), strict=True):
        np.testing.assert_equal(left, right)
    first = [[frame.tobytes() for frame in played(old, seed)[0]] for seed in (12, 13, 14)]
    assert len(set(map(tuple, first))) > 1, "the no-ops are drawn from the seed"
    old.close()
    fresh.close()
