"""A group is put back exactly: in this process, in another one, by every strategy. Bits are compared."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import play
import pytest

from distrl.envs import EnvSpec

CUT, AFTER = 23, 25
SPECS = {
    "replay": EnvSpec("CartPole-v1"),
    "replay-async": EnvSpec("CartPole-v1", vectorization="async"),
    "replay-next-step": EnvSpec("CartPole-v1", autoreset="next_step", max_episode_steps=12),
    "replay-same-step": EnvSpec("CartPole-v1", autoreset="same_step", max_episode_steps=12),
    "replay-next-step-async": EnvSpec(
        "CartPole-v1", vectorization="async", autoreset="next_step", max_episode_steps=12
    ),
    "replay-acrobot": EnvSpec("Acrobot-v1", max_episode_steps=40),
    "replay-trees": EnvSpec("toy_envs:Toy/Nested-v0"),
    "replay-trees-async": EnvSpec("toy_envs:Toy/Nested-v0", vectorization="async", autoreset="same_step"),
    "replay-wrapper": EnvSpec("Pendulum-v1", wrapper="toy_envs:Remembers", max_episode_steps=30),
    "snapshot-mujoco": EnvSpec("HalfCheetah-v5", max_episode_steps=40),
    "snapshot-mujoco-kinematics": EnvSpec("Ant-v5"),
    "snapshot-own": EnvSpec("toy_envs:Toy/Own-v0"),
    "snapshot-own-stacked": EnvSpec("toy_envs:Toy/Own-v0", frame_stack=3, max_episode_steps=5),
    "snapshot-ale": EnvSpec("ALE/Breakout-v5"),
    "snapshot-ale-async": EnvSpec("ALE/Breakout-v5", vectorization="async", autoreset="next_step"),
}


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[str]]]:
    """States taken after CUT steps, and the digests of the AFTER steps that followed."""
    folder = tmp_path_factory.mktemp("states")
    digests = {}
    for name, spec in SPECS.items():
        group = play.make(spec)
        group.start()
        taken = play.actions(group, CUT + AFTER)
        play.play(group, taken[:CUT])
        state = group.snapshot()
        strategies = {env["strategy"] for env in state["envs"]} - {"pending"}
        assert strategies <= {name.split("-")[0]}, name
        digests[name] = play.play(group, taken[CUT:])
        assert (group.reproducibility, group.warnings) == ("exact", []), name
        play.save(folder, name, spec, state, taken[CUT:])
        group.close()
    return folder, digests


def test_a_group_restored_in_another_process_plays_on_with_the_same_bits(
    played: tuple[Path, dict[str, list[str]]],
) -> None:
    folder, digests = played
    done = subprocess.run(
        [sys.executable, "-W", "error", play.__file__, str(folder)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    restored = json.loads(done.stdout.splitlines()[-1])
    assert restored == {name: [expected, "exact"] for name, expected in digests.items()}


@pytest.mark.parametrize("name", ["replay-next-step", "replay-trees", "snapshot-own-stacked"])
def test_a_group_in_the_middle_of_other_episodes_can_be_put_back(
    name: str, played: tuple[Path, dict[str, list[str]]]
) -> None:
    saved = play.load_tree(played[0], name)
    group = play.make(SPECS[name])
    group.start()
    play.play(group, play.actions(group, 9, seed=5))
    group.restore(saved["state"])
    assert play.play(group, list(saved["actions"])) == played[1][name]
    group.close()


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_a_reset_that_is_due_in_the_next_step_is_still_due_after_a_restore(vectorization: str) -> None:
    spec = EnvSpec(
        "toy_envs:Toy/Counts-v0", {"length": 3}, vectorization=vectorization, autoreset="next_step"
    )
    group, other = play.make(spec), play.make(spec)
    group.start()
    taken = play.actions(group, 12)
    play.play(group, taken[:3])
    other.restore(group.snapshot())
    assert play.play(other, taken[3:]) == play.play(group, taken[3:])
    group.close()
    other.close()


def test_a_snapshot_does_not_disturb_the_episode() -> None:
    digests = []
    for snapshots in (False, True):
        group = play.make(SPECS["snapshot-mujoco"])
        group.start()
        for action in play.actions(group, 12):
            if snapshots:
                group.snapshot()
            digests.append(play.digest(group, group.step(action)))
        group.close()
    assert digests[:12] == digests[12:]


def test_a_snapshot_before_the_start_restores_to_nothing_begun() -> None:
    group = play.make(SPECS["replay"])
    state = group.snapshot()
    group.start()
    first = group.observation
    group.restore(state)
    group.start()
    assert np.array_equal(group.observation, first)
    group.close()


def test_an_episode_over_the_replay_budget_is_replaced_by_the_next_one_and_says_so() -> None:
    spec = EnvSpec("CartPole-v1", max_replay_steps=4)
    group = play.make(spec)
    group.start()
    for _ in range(3):
        group.step(np.zeros(play.NUM_ENVS, np.int64))
    assert group.snapshot()["envs"][0]["strategy"] == "replay"
    for _ in range(3):
        group.step(np.zeros(play.NUM_ENVS, np.int64))
    state = group.snapshot()
    assert group.reproducibility == "episode"
    assert "max_replay_steps" in group.warnings[0]
    assert group.warnings[0].startswith("env 3 ")

    restored, other = play.make(spec), play.make(spec)
    restored.restore(state)
    assert restored.reproducibility == "episode"
    assert "fresh one begins" in restored.warnings[0]
    assert restored.episode_start.all()
    other.reset_all(1)
    assert np.array_equal(restored.observation, other.observation)
    ended = next(
        result.episodes for result in map(restored.step, play.actions(restored, 50)) if result.episodes
    )
    assert all(episode.return_ == episode.length for episode in ended), (
        "steps of the dropped episode count nowhere"
    )
    for each in (group, restored, other):
        each.close()


def test_an_env_that_replays_differently_is_reported_and_its_episode_dropped() -> None:
    group = play.make(EnvSpec("toy_envs:Toy/Drifts-v0"))
    group.start()
    play.play(group, play.actions(group, 5))
    state = group.snapshot()
    again = play.make(EnvSpec("toy_envs:Toy/Drifts-v0"))
    again.restore(state)
    assert again.reproducibility == "episode"
    assert any("env 3" in warning and "replays differently" in warning for warning in again.warnings)
    assert again.observation[:, 0].tolist() == [0, 0]
    assert again.episode_start.all()
    group.close()
    again.close()


def test_a_wrapper_that_is_not_known_is_replayed_and_not_snapshotted() -> None:
    group = play.make(EnvSpec("HalfCheetah-v5", wrapper="toy_envs:Remembers"))
    group.start()
    assert group.snapshot()["envs"][0]["strategy"] == "replay"
    group.close()


def test_raw_sticky_actions_are_replayed_because_ale_keeps_them_outside_of_its_state() -> None:
    group = play.make(EnvSpec("ALE/Breakout-v5", {"obs_type": "ram", "repeat_action_probability": 0.25}))
    group.start()
    assert group.snapshot()["envs"][0]["strategy"] == "replay"
    group.close()


def test_a_vector_entry_point_without_snapshots_says_at_once_that_episodes_may_be_lost() -> None:
    group = play.make(EnvSpec("CartPole-v1", vectorization="vector_entry_point", autoreset="next_step"))
    assert group.reproducibility == "episode"
    assert "vector_entry_point" in group.warnings[0]
    group.start()
    play.play(group, play.actions(group, 5))
    state, before = group.snapshot(), group.observation
    observations = []
    for _ in range(2):
        group.restore(state)
        observations.append(group.observation)
    assert np.array_equal(*observations), "the fresh episodes are keyed, not drawn"
    assert not np.array_equal(observations[0], before)
    assert group.episode_start.all()
    group.close()
