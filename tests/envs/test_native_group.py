"""An env group on the native backend is one on gymnasium's, to the bit; and it is put back exactly."""

from __future__ import annotations

import dataclasses

import numpy as np
import play
import pytest

from distrl.envs import EnvSpec
from distrl.errors import BadInput, RunFailed

IDS = ["CartPole-v1", "Acrobot-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Pendulum-v1"]


@pytest.mark.parametrize("env_id", IDS)
def test_both_backends_play_the_same_episodes(env_id):
    digests = {}
    for backend in ("gymnasium", "native"):
        group = play.make(EnvSpec(env_id, backend=backend, max_episode_steps=60), num_envs=3)
        group.start()
        digests[backend] = play.play(group, play.actions(group, 200))
        group.reset_all(5)
        digests[backend] += play.play(group, play.actions(group, 20))
        group.close()
    assert digests["native"] == digests["gymnasium"]


@pytest.mark.parametrize("env_id", IDS)
def test_a_native_group_is_put_back_exactly_from_a_tree_on_disk(env_id, tmp_path):
    from distrl.checkpoint import load_tree, save_tree

    spec = EnvSpec(env_id, backend="native", max_episode_steps=30)
    group = play.make(spec)
    group.start()
    taken = play.actions(group, 90)
    play.play(group, taken[:45])
    save_tree(tmp_path, "group", {"state": group.snapshot()})
    expected = play.play(group, taken[45:])
    other = play.make(spec)
    other.restore(load_tree(tmp_path, "group")["state"])
    assert play.play(other, taken[45:]) == expected
    assert other.reproducibility == group.reproducibility == "exact" and not other.warnings


@pytest.mark.parametrize(
    ("spec", "backend"),
    [
        (EnvSpec("CartPole-v1", backend="auto"), "native"),
        (EnvSpec("Pendulum-v1", backend="auto", max_episode_steps=7), "native"),
        (EnvSpec("Pendulum-v1", {"g": 9.8}, backend="auto"), "gymnasium"),
        (EnvSpec("CartPole-v1", wrapper="toy_envs:wrapped", backend="auto"), "gymnasium"),
        (EnvSpec("CartPole-v1", frame_stack=2, backend="auto"), "gymnasium"),
        (EnvSpec("CartPole-v1", vectorization="async", backend="auto"), "gymnasium"),
        (EnvSpec("CartPole-v1", autoreset="next_step", backend="auto"), "gymnasium"),
        (EnvSpec("toy_envs:Toy/Counts-v0", backend="auto"), "gymnasium"),
        (EnvSpec("native_envs:WALK", backend="auto"), "native"),
        (EnvSpec("native_envs:WALK", wrapper="toy_envs:wrapped", backend="auto"), "gymnasium"),
    ],
)
def test_auto_is_native_where_nothing_else_is_asked_for(spec, backend):
    assert spec.settled() == dataclasses.replace(spec, backend=backend)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (
            EnvSpec("Pendulum-v1", {"g": 9.8}, frame_stack=2, backend="native"),
            r"native cannot be with env_kwargs \{'g': 9.8\}, frame_stack 2: use env_backend gymnasium",
        ),
        (
            EnvSpec("HalfCheetah-v5", backend="native"),
            "no native env: there are CartPole-v0, CartPole-v1, Acr",
        ),
        (EnvSpec("native_envs:NOTHING", backend="native"), "is no native env"),
        (EnvSpec("nowhere:WALK", backend="native"), "module 'nowhere' cannot be imported"),
    ],
)
def test_native_elsewhere_is_refused_with_what_there_is(spec, said):
    with pytest.raises(BadInput, match=said):
        spec.settled()


def test_ones_own_env_plays_alike_as_a_compiled_loop_and_as_single_gymnasium_envs():
    digests = {}
    for backend in ("gymnasium", "native"):
        group = play.make(EnvSpec("native_envs:WALK", backend=backend), num_envs=3)
        assert group.max_episode_steps == 25
        group.start()
        taken = play.actions(group, 80)
        digests[backend] = play.play(group, taken[:40])
        state = group.snapshot()
        digests[backend] += play.play(group, taken[40:])
        group.restore(state)
        assert play.play(group, taken[40:]) == digests[backend][40:]
        group.close()
    assert digests["native"] == digests["gymnasium"]


def test_what_a_native_env_raises_names_the_group():
    group = play.make(EnvSpec("native_envs:RAISES", backend="native"))
    group.start()
    with pytest.raises(RunFailed, match=r"env group 0 \(native_envs:RAISES\): ValueError: the walk broke"):
        play.play(group, play.actions(group, 20))


def test_a_nan_of_a_native_env_fails_or_is_dropped():
    spec = EnvSpec("native_envs:SPOILS", backend="native")
    group = play.make(spec)
    group.start()
    with pytest.raises(RunFailed, match="observation is NaN or Inf at step 11"):
        play.play(group, play.actions(group, 20))
    group = play.make(dataclasses.replace(spec, nonfinite="drop"))
    group.start()
    play.play(group, play.actions(group, 25))
    assert group.dropped == 4
    assert np.isfinite(group.observation).all()
