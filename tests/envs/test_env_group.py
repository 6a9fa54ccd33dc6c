"""What a group's step gives: the three autoreset modes, seeds, statistics, spaces, masks."""

from typing import Any

import gymnasium as gym
import numpy as np
import play
import pytest

from distrl.envs import EnvGroup, EnvSpec
from distrl.envs.spaces import to_env_action
from distrl.errors import BadInput, RunFailed
from distrl.maths.advantage import gae
from distrl.maths.random import derive_seed

MODES = ("disabled", "next_step", "same_step")
GAMMA, LAM = 0.9, 0.8


def value_of(observation: Any) -> Any:
    return (observation @ np.linspace(-0.7, 0.9, observation.shape[-1])).astype(np.float32)


def action_of(observation: Any) -> Any:
    """A deterministic policy that fails soon, of the observation alone: the modes meet the same episodes."""
    return ((observation[:, 2] * 1e4).astype(np.int64) % 3 > 0).astype(np.int64)


def valid_columns(spec: EnvSpec, num_steps: int) -> list[dict[str, Any]]:
    """Per env, the valid rows up to its last finished episode, with their advantages from the whole [T, N]."""
    group = play.make(spec, num_envs=3)
    group.start()
    rows = []
    for _ in range(num_steps):
        observation, start = group.observation, group.episode_start
        result = group.step(action_of(observation))
        done = result.terminated | result.truncated
        next_value = np.where(done, value_of(result.final_observation), value_of(group.observation))
        rows.append(
            {
                "observation": observation,
                "reward": result.reward,
                "terminated": result.terminated,
                "done": done,
                "valid": result.valid,
                "start": start,
                "value": value_of(observation),
                "next_value": next_value,
                "final": result.final_observation,
            }
        )
    group.close()
    table = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
    table["advantage"] = gae(
        table["reward"], table["value"], table["next_value"], table["terminated"], table["done"], GAMMA, LAM
    )
    columns = []
    for env in range(3):
        last = np.flatnonzero(table["done"][:, env])[-1]
        keep = np.flatnonzero(table["valid"][: last + 1, env])
        columns.append({key: column[keep, env] for key, column in table.items()})
    return columns


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_the_three_autoreset_modes_give_the_same_advantages_on_the_same_episodes(vectorization: str) -> None:
    # 11 steps cut some episodes off; others fall before.
    columns = {
        mode: valid_columns(
            EnvSpec("CartPole-v1", vectorization=vectorization, autoreset=mode, max_episode_steps=11), 140
        )
        for mode in MODES
    }
    for env in range(3):
        shortest = min(len(columns[mode][env]["reward"]) for mode in MODES)
        reference = columns["disabled"][env]
        done = np.flatnonzero(reference["done"][:shortest])
        assert len(done) > 5
        ends = reference["terminated"][done]
        assert 0 < ends.sum() < len(done), "both ways to end are in it"
        for mode in MODES:
            for key in ("observation", "reward", "terminated", "done", "start", "advantage"):
                np.testing.assert_array_equal(
                    columns[mode][env][key][: done[-1] + 1],
                    reference[key][: done[-1] + 1],
                    err_msg=f"{mode} {key}",
                )
            np.testing.assert_array_equal(columns[mode][env]["final"][done], reference["final"][done])


def test_next_step_mode_inserts_one_row_that_is_not_valid_after_each_end() -> None:
    group = play.make(EnvSpec("toy_envs:Toy/Counts-v0", {"length": 3}, autoreset="next_step"))
    group.start()
    seen = []
    for _ in range(8):
        before = group.observation[0, 0], bool(group.episode_start[0])
        result = group.step(np.zeros(2, np.int64))
        seen.append((*before, float(result.reward[0]), bool(result.terminated[0]), bool(result.valid[0])))
    assert seen == [
        (0, True, 1.0, False, True),
        (1, False, 2.0, False, True),
        (2, False, 3.0, True, True),
        (3, False, 0.0, False, False),
        (0, True, 1.0, False, True),
        (1, False, 2.0, False, True),
        (2, False, 3.0, True, True),
        (3, False, 0.0, False, False),
    ]
    group.close()


@pytest.mark.parametrize("vectorization", ["sync", "async"])
@pytest.mark.parametrize("mode", MODES)
def test_the_final_observation_is_the_true_one_and_the_next_is_the_first(
    vectorization: str, mode: str
) -> None:
    spec = EnvSpec(
        "toy_envs:Toy/Counts-v0",
        {"length": 3, "truncates": True},
        vectorization=vectorization,
        autoreset=mode,
    )
    group = play.make(spec)
    group.start()
    for _ in range(3):
        result = group.step(np.zeros(2, np.int64))
    assert result.truncated.all() and not result.terminated.any()
    assert result.final_observation.tolist() == [[3, 1], [3, 1]]
    assert result.final_observation.dtype == np.float32
    if mode == "next_step":
        group.step(np.zeros(2, np.int64))
    assert group.observation.tolist() == [[0, 1], [0, 1]]
    assert group.episode_start.all()
    [first, second] = result.episodes
    assert (first.env, second.env) == (play.FIRST_ENV, play.FIRST_ENV + 1)
    assert (first.return_, first.length) == (6.0, 3)
    assert first.info == {"progress": 1.0, "nested/t": 3.0}
    group.close()


@pytest.mark.parametrize("mode", MODES)
def test_episode_k_of_env_e_depends_on_the_seed_and_on_e_and_k_alone(mode: str) -> None:
    expected = []
    for env in range(4):
        for episode in range(3):
            reset = gym.make("CartPole-v1").reset(seed=derive_seed(play.SEED, "episode", env, episode))
            expected.append(reset[0])
    firsts: dict[tuple[int, int], Any] = {}
    for first_env, num_envs in ((0, 1), (1, 3)):
        spec = EnvSpec("CartPole-v1", autoreset=mode, max_episode_steps=4)
        group = EnvGroup(spec, index=first_env, num_envs=num_envs, first_env=first_env, seed=play.SEED)
        group.start()
        count = np.zeros(num_envs, int)
        for _ in range(15):
            for slot in np.flatnonzero(group.episode_start):
                firsts[first_env + int(slot), int(count[slot])] = group.observation[slot]
            count += group.episode_start
            group.step(np.zeros(num_envs, np.int64))
        group.close()
    assert np.array_equal([firsts[env, episode] for env in range(4) for episode in range(3)], expected)


@pytest.mark.parametrize("mode", MODES)
def test_reset_all_starts_the_episode_that_it_names_in_every_env(mode: str) -> None:
    group = play.make(EnvSpec("CartPole-v1", autoreset=mode, max_episode_steps=3))
    group.reset_all(2)
    play.play(group, play.actions(group, 3))  # next_step: a reset is due, and does not happen
    group.reset_all(7)
    env = gym.make("CartPole-v1")
    expected = [env.reset(seed=derive_seed(play.SEED, "episode", play.FIRST_ENV + e, 7))[0] for e in range(2)]
    assert np.array_equal(group.observation, expected)
    assert group.episode_start.all()
    assert [e.length for _ in range(3) for e in group.step(np.zeros(2, np.int64)).episodes] == [3, 3]
    group.close()


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_nested_observations_keep_their_types_and_float64_becomes_float32(vectorization: str) -> None:
    group = play.make(EnvSpec("toy_envs:Toy/Nested-v0", vectorization=vectorization))
    group.start()
    for action in play.actions(group, 9):
        group.step(action)
    observation = group.observation
    assert observation["camera"].dtype == np.uint8 and observation["camera"].shape == (2, 4, 4, 1)
    count, noise = observation["body"]
    assert count.dtype == np.int64 and count.shape == (2,)
    assert noise.dtype == np.float32 and noise.shape == (2, 3)
    assert observation["flags"].dtype == np.int8
    assert np.array_equal(observation["camera"][:, 0, 0, 0], count)
    group.close()


def test_action_masks_belong_to_the_current_observation_also_after_a_reset() -> None:
    group = play.make(EnvSpec("toy_envs:Toy/Nested-v0"))
    group.start()
    resets = 0
    for action in play.actions(group, 30):
        resets += int(group.step(action).terminated.sum())
        step_number = group.observation["camera"][:, 0, 0, 0]
        assert group.action_mask is not None and group.action_mask.dtype == np.bool_
        assert np.array_equal(group.action_mask[:, 1], step_number % 2 == 1)
        assert group.action_mask[:, [0, 2, 3, 4]].all()
    assert resets > 4
    group.close()


@pytest.mark.parametrize("vectorization", ["sync", "async"])
@pytest.mark.parametrize(
    ("where", "said"), [("step", "in the info of a step"), ("reset", "in the info of a later reset")]
)
def test_an_action_mask_that_comes_late_is_refused(vectorization: str, where: str, said: str) -> None:
    group = play.make(EnvSpec("toy_envs:Toy/Masks-v0", {"where": where}, vectorization=vectorization))
    group.start()
    with pytest.raises(
        RunFailed, match=f"gives its first action_mask {said}; give one in that of every reset"
    ):
        play.play(group, play.actions(group, 4))
    group.close()


def test_an_observation_is_not_overwritten_by_later_steps() -> None:
    group = play.make(EnvSpec("CartPole-v1", vectorization="async"))
    group.start()
    kept = [group.observation, group.step(np.ones(2, np.int64)).final_observation, group.observation]
    copies = [array.copy() for array in kept]
    for action in play.actions(group, 10):
        group.step(action)
    assert all(np.array_equal(array, copy) for array, copy in zip(kept, copies, strict=True))
    group.close()


def test_policy_actions_are_moved_shaped_and_clipped_into_the_env_s_own_format() -> None:
    for space, action, expected in (
        ("discrete", np.array([0, 2]), [[-1], [1]]),
        ("multi_binary", np.array([[1, 0, 0, 1], [0, 0, 1, 1]]), [[[1, 0], [0, 1]], [[0, 0], [1, 1]]]),
        ("box", np.full((2, 6), 5.0, np.float32), np.full((2, 2, 3), 2.0).tolist()),
    ):
        group = play.make(EnvSpec("toy_envs:Toy/Acts-v0", {"space": space}))
        group.start()
        group.step(to_env_action(group.action_space, action))
        assert group.observation.tolist() == expected
        group.close()
    shifted = to_env_action(
        gym.spaces.MultiDiscrete([3, 2], start=np.array([1, -1])), np.array([[0, 1], [2, 0]])
    )
    assert shifted.tolist() == [[1, 0], [3, -1]]


def test_an_action_array_that_the_caller_reuses_does_not_change_what_is_replayed() -> None:
    spec = EnvSpec("toy_envs:Toy/Acts-v0", {"space": "box"})
    group, other = play.make(spec), play.make(spec)
    group.start()
    action = np.empty((2, 2, 3))
    for number in (0.25, 0.5, 0.75):
        action[:] = number
        group.step(action)
    action[:] = -1
    other.restore(group.snapshot())
    assert other.reproducibility == "exact"
    group.close()
    other.close()


def test_frames_are_stacked_oldest_first_and_the_stack_starts_with_the_first_observation() -> None:
    group = play.make(EnvSpec("toy_envs:Toy/Counts-v0", frame_stack=3))
    group.start()
    assert group.observation.shape == (2, 3, 2)
    assert group.observation[0, :, 0].tolist() == [0, 0, 0]
    group.step(np.zeros(2, np.int64))
    group.step(np.zeros(2, np.int64))
    assert group.observation[0, :, 0].tolist() == [0, 1, 2]
    group.close()


def test_a_vector_entry_point_runs_in_its_own_mode_and_refuses_another() -> None:
    spec = EnvSpec(
        "CartPole-v1", vectorization="vector_entry_point", autoreset="next_step", max_episode_steps=6
    )
    group = play.make(spec)
    group.start()
    valid, lengths = [], []
    for _ in range(13):
        result = group.step(np.zeros(2, np.int64))
        valid.append(bool(result.valid[0]))
        lengths += [episode.length for episode in result.episodes]
        assert result.reward[0] == valid[-1]
    assert valid == [True] * 6 + [False] + [True] * 6
    assert lengths == [6, 6, 6, 6]
    group.close()
    with pytest.raises(BadInput, match="autoreset must be 'next_step'.*got 'disabled'"):
        play.make(EnvSpec("CartPole-v1", vectorization="vector_entry_point"))
    with pytest.raises(BadInput, match="no vector entry point"):
        play.make(EnvSpec("Acrobot-v1", vectorization="vector_entry_point"))
