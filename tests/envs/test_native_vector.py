"""NativeVectorEnv is a Gymnasium vector env as any: in each autoreset mode it plays what SyncVectorEnv plays."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from distrl.envs.native import NativeEnv, NativeVectorEnv
from distrl.errors import BadInput

NUM_ENVS, LIMIT = 3, 35


def pair(env_id: str, mode: AutoresetMode) -> tuple[Any, NativeVectorEnv]:
    def make() -> Any:
        return gymnasium.make(env_id, max_episode_steps=LIMIT, disable_env_checker=True)

    theirs = SyncVectorEnv([make] * NUM_ENVS, autoreset_mode=mode)
    theirs.action_space.seed(1)
    return theirs, NativeVectorEnv(env_id, NUM_ENVS, mode, LIMIT)


def assert_same_infos(ours: Any, theirs: Any) -> None:
    assert ours.keys() == theirs.keys()
    for key in ours:
        if isinstance(ours[key], dict):
            assert_same_infos(ours[key], theirs[key])
        elif ours[key].dtype == object:
            for one, other in zip(ours[key], theirs[key], strict=True):
                np.testing.assert_array_equal(one, other)
        else:
            np.testing.assert_array_equal(ours[key], theirs[key])


def assert_same_result(ours: Any, theirs: Any) -> None:
    for one, other in zip(ours[:-1], theirs[:-1], strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        np.testing.assert_array_equal(one, other)
    assert_same_infos(ours[-1], theirs[-1])


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Acrobot-v1", "Pendulum-v1", "MountainCarContinuous-v0"])
def test_it_resets_by_itself_as_syncvectorenv_does(env_id, mode):
    theirs, ours = pair(env_id, mode)
    assert (ours.observation_space, ours.action_space) == (theirs.observation_space, theirs.action_space)
    assert ours.metadata["autoreset_mode"] == theirs.metadata["autoreset_mode"]
    assert_same_result(ours.reset(seed=11), theirs.reset(seed=11))
    for _ in range(150):
        action = theirs.action_space.sample()
        assert_same_result(ours.step(action), theirs.step(action))
    assert_same_result(ours.reset(), theirs.reset())
    assert_same_result(ours.reset(seed=[3, None, 5]), theirs.reset(seed=[3, None, 5]))


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Acrobot-v1", "Pendulum-v1"])
def test_in_disabled_mode_only_the_masked_envs_begin_anew_each_from_its_seed(env_id):
    theirs, ours = pair(env_id, AutoresetMode.DISABLED)
    assert_same_result(ours.reset(seed=[4, 5, 6]), theirs.reset(seed=[4, 5, 6]))
    for step in range(150):
        action = theirs.action_space.sample()
        (*_, terminated, truncated, _), expected = ours.step(action), theirs.step(action)
        np.testing.assert_array_equal(terminated, expected[2])
        if (over := terminated | truncated).any():
            seeds = [step if one else None for one in over]
            options = {"reset_mask": over}
            assert_same_result(
                ours.reset(seed=seeds, options=dict(options)), theirs.reset(seed=seeds, options=dict(options))
            )


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_a_snapshot_puts_it_back_in_another_object(mode):
    def play(env: NativeVectorEnv, num_steps: int) -> list[Any]:
        results = []
        for _ in range(num_steps):
            result = env.step(env.action_space.sample())
            results.append(result)
            over = result[2] | result[3]
            if mode == AutoresetMode.DISABLED and over.any():
                env.reset(options={"reset_mask": over})
        return results

    env, other = (NativeVectorEnv("CartPole-v1", NUM_ENVS, mode, 12) for _ in range(2))
    env.reset(seed=1)
    env.action_space.seed(2)
    play(env, 12)  # in next_step mode some resets are due
    state = env.snapshot()
    env.action_space.seed(3)
    expected = play(env, 40)
    other.restore(state)
    other.action_space.seed(3)
    for one, two in zip(play(other, 40), expected, strict=True):
        assert_same_result(one, two)


def test_gymnasiums_vector_wrappers_go_around_it():
    env: Any = gymnasium.wrappers.vector.RecordEpisodeStatistics(NativeVectorEnv("Pendulum-v1", 2))
    env.reset(seed=0)
    for _ in range(200):
        *_, info = env.step(env.action_space.sample())
    assert info["episode"]["l"].tolist() == [200, 200]


def test_the_default_is_a_fresh_seed_and_arrays_of_ones_own():
    one, other = NativeVectorEnv("CartPole-v1", 2), NativeVectorEnv("CartPole-v1", 2)
    first = one.reset()[0]
    assert (first != other.reset()[0]).all()
    kept = first.copy()
    one.step(np.zeros(2, np.int64))
    np.testing.assert_array_equal(first, kept)


def test_wrong_seeds_masks_actions_and_snapshots_are_refused():
    env = NativeVectorEnv("CartPole-v1", NUM_ENVS, "Disabled")
    with pytest.raises(ValueError, match="seed must be one number or 3, got 2"):
        env.reset(seed=[1, 2])
    with pytest.raises(ValueError, match=r"0\.\.2\*\*64-1, got -4"):
        env.reset(seed=-4)
    with pytest.raises(ValueError, match="bool array of shape \\(3,\\) with a True"):
        env.reset(options={"reset_mask": np.zeros(3, bool)})
    with pytest.raises(ValueError, match="is for autoreset mode DISABLED"):
        NativeVectorEnv("CartPole-v1", 1).reset(options={"reset_mask": np.ones(1, bool)})
    with pytest.raises(ValueError, match="actions must have shape \\(3,\\), got \\(2,\\)"):
        env.step(np.zeros(2, np.int64))
    with pytest.raises(ValueError, match="state has shape \\(2, 4\\), these envs' is \\(3, 4\\)"):
        env.restore(NativeVectorEnv("CartPole-v1", 2).snapshot())
    with pytest.raises(BadInput, match="is no native env"):
        NativeVectorEnv("HalfCheetah-v5")


def test_a_native_env_that_cannot_serve_is_refused_with_all_that_is_wrong():
    with pytest.raises(BadInput) as caught:
        NativeEnv(
            observation_space=gymnasium.spaces.Box(0, 1, (2,), np.float64),
            action_space=gymnasium.spaces.Text(3),
            state_size=0,
            reset=lambda state: None,
            step=lambda state, action, rng: (0.0, False),
            observe="no",  # type: ignore[arg-type]
            max_episode_steps=0,
        )
    said = "\n".join(caught.value.problems)
    for part in (
        "observation_space must be",
        "action_space must be",
        "state_size",
        "reset(state, rng)",
        "observe(state, out)",
        "max_episode",
    ):
        assert part in said
