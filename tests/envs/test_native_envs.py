"""The built-in native envs are Gymnasium's, step for step and bit for bit."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest

from distrl.envs.native import NativeVectorEnv
from distrl.envs.native.choice import BUILT_IN
from distrl.envs.native.floats import cos_float32, sin_float32, squared, squared_float32

IDS = ["CartPole-v1", "Acrobot-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Pendulum-v1"]
NUM_STEPS = 100_000


def chosen(env_id: str, step: int, observation: Any, space: Any) -> Any:
    """Random actions, and at times those that reach the goal, push beyond the bounds or stand on them."""
    phase = step // 2000 % 3
    along = 1.0 if observation[1] > 0 else -1.0
    if env_id == "MountainCar-v0" and phase:
        return np.int64(1 + along)
    if env_id == "Acrobot-v1" and phase:
        return np.int64(2 if observation[4] < 0 else 0)
    if env_id == "CartPole-v1" and phase:
        return np.int64(3 * observation[2] + observation[3] > 0)
    if space.shape and phase:
        scale = (1.0, 1.5, 0.7)[step % 3]
        return np.array([along * scale * space.high[0]], np.float32)
    return space.sample()


@pytest.mark.parametrize("env_id", IDS)
def test_a_native_env_is_gymnasiums_to_the_bit(env_id):
    theirs: Any = gymnasium.make(env_id, disable_env_checker=True)
    ours = NativeVectorEnv(env_id, 1, "Disabled")
    theirs.action_space.seed(3)
    ends = {"terminated": 0, "truncated": 0}
    seed = 0
    (expected, _), (seen, _) = theirs.reset(seed=seed), ours.reset(seed=seed)
    assert seen.tobytes() == expected.tobytes()
    for step in range(NUM_STEPS):
        action = chosen(env_id, step, expected, theirs.action_space)
        expected, reward, terminated, truncated, _ = theirs.step(action)
        seen, rewards, *flags, _ = ours.step(np.asarray(action)[None])
        assert seen.tobytes() == expected.tobytes(), (step, seen, expected)
        assert (rewards[0], *(bool(flag[0]) for flag in flags)) == (float(reward), terminated, truncated), (
            step
        )
        if terminated or truncated:
            ends["terminated"] += terminated
            ends["truncated"] += truncated
            seed += 1
            (expected, _), (seen, _) = theirs.reset(seed=seed), ours.reset(seed=seed)
            assert seen.tobytes() == expected.tobytes(), seed
    assert ends["truncated"] or env_id == "CartPole-v1"
    assert ends["terminated"] or env_id == "Pendulum-v1"


@pytest.mark.parametrize("env_id", IDS)
def test_thousands_of_seeds_give_gymnasiums_first_observation(env_id):
    theirs: Any = gymnasium.make(env_id, disable_env_checker=True)
    seeds = [int(seed) for seed in np.random.default_rng(1).integers(0, 2**31, 2000)]
    ours, _ = NativeVectorEnv(env_id, len(seeds)).reset(seed=seeds)
    assert ours.tobytes() == np.stack([theirs.reset(seed=seed)[0] for seed in seeds]).tobytes()


@pytest.mark.parametrize("env_id", IDS)
def test_spaces_and_limits_are_gymnasiums(env_id):
    theirs, ours = gymnasium.make(env_id), NativeVectorEnv(env_id, 2)
    assert ours.single_observation_space == theirs.observation_space
    assert ours.single_action_space == theirs.action_space
    assert ours.limit == theirs.spec.max_episode_steps
    assert gymnasium.registry[env_id].entry_point == BUILT_IN[env_id][1]


def test_float_functions_are_numpys_on_scalars():
    generator = np.random.default_rng(2)
    for x in generator.uniform(-30, 30, 20_000):
        assert squared(x) == x**2
    for x in generator.uniform(-2, 2, 20_000).astype(np.float32):
        assert squared_float32(x) == x**2
    for x in generator.uniform(-0.75, 0.75, 20_000).astype(np.float32):
        assert (cos_float32(x), sin_float32(x)) == (np.cos(x), np.sin(x))
