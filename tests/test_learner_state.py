"""What the learner carries from update to update: its state, the count of skipped minibatches, its values."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from distrl.checkpoint import load_tree, save_tree
from distrl.envs import EnvSpec
from distrl.errors import RunFailed
from distrl.learner import Learner, Snapshot
from distrl.policies import PolicySpec, load_parameters, make_policy
from distrl.recipes import ACTOR_CRITIC, PPO
from distrl.trajectory import Trajectory
from tests.parts import (
    SEED,
    TablePolicy,
    arrays_of,
    assert_same_arrays,
    both_twins,
    collect,
    make_collector,
    make_learner,
    small_policy,
)

pytestmark = pytest.mark.usefixtures(both_twins.__name__)

CARTPOLE = EnvSpec("CartPole-v1", max_episode_steps=15)
GOLDEN = Path(__file__).parent / "assets" / "losses" / "ppo-cartpole.txt"


def leaves(tree: Any, at: str = "") -> dict[str, Any]:
    if isinstance(tree, dict):
        return {
            name: leaf for key, value in tree.items() for name, leaf in leaves(value, f"{at}/{key}").items()
        }
    return {at: np.asarray(tree)}


def batches(network: str = "mlp", count: int = 4, **options: Any) -> tuple[Any, list[Trajectory]]:
    policy = small_policy(network, CARTPOLE, **options)
    collector = make_collector(CARTPOLE, policy, num_steps=24, num_envs=4)
    trajectories = [collector.collect(k, k).trajectory for k in range(count)]
    collector.group.close()
    return policy, trajectories


@pytest.mark.parametrize("network", ["mlp", "lstm"])
def test_a_learner_that_was_put_back_continues_to_the_bit(network, tmp_path):
    _, trajectories = batches(network)
    recipe = replace(PPO, num_envs=4, minibatches=2, clip_value=0.2)

    def learner() -> Learner:
        policy = small_policy(network, CARTPOLE, normalize_observation=True)
        return make_learner(policy, recipe, normalize_observation=True, normalize_reward=True)

    one = learner()
    spoilt = replace(trajectories[1], reward=trajectories[1].reward * np.nan)
    one.update([trajectories[0]], 0.0)
    one.update([spoilt], 0.1) if network == "lstm" else one.update([trajectories[1]], 0.1)
    save_tree(tmp_path, "learner", one.state())
    other = learner()
    other.load_state(load_tree(tmp_path, "learner"))
    assert other.snapshot().digest == one.snapshot().digest
    for k in (2, 3):
        assert other.update([trajectories[k]], 0.2 * k) == pytest.approx(
            one.update([trajectories[k]], 0.2 * k), rel=0, abs=0, nan_ok=True
        )
    assert_same_arrays(leaves(one.state()), leaves(other.state()))
    assert one.version == other.version == 4


def test_the_state_is_a_copy():
    policy, trajectories = batches()
    learner = make_learner(policy)
    learner.update(trajectories[:1], 0.0)
    state = learner.state()
    kept = {name: array.copy() for name, array in leaves(state).items()}
    learner.update(trajectories[1:2], 0.0)
    assert_same_arrays(leaves(state), kept)
    assert not np.array_equal(
        leaves(learner.state())["/policy/actor.0.weight"], kept["/policy/actor.0.weight"]
    )


def test_parts_that_get_no_gradient_survive_the_round_trip():
    """REINFORCE never touches the critic: the optimiser has no moments of it."""
    from distrl.recipes import REINFORCE

    policy, trajectories = batches()
    one = make_learner(policy, REINFORCE)
    one.update(trajectories[:1], 0.0)
    other = make_learner(small_policy("mlp", CARTPOLE), REINFORCE)
    other.load_state(one.state())
    one.update(trajectories[1:2], 0.0)
    other.update(trajectories[1:2], 0.0)
    assert_same_arrays(arrays_of(other.policy), arrays_of(one.policy))


def test_a_snapshot_is_named_by_its_bytes_and_gives_the_same_policy_elsewhere():
    policy, trajectories = batches()
    learner = make_learner(policy)
    first = learner.snapshot()
    assert first.digest == Snapshot.of(policy, 99).digest, "the version is not in it"
    learner.update(trajectories[:1], 0.0)
    second = learner.snapshot()
    assert second.digest != first.digest and (first.version, second.version) == (0, 1)
    other = small_policy("mlp", CARTPOLE)
    assert Snapshot.of(other, 0).digest == first.digest, "what was given out has not changed"
    load_parameters(other, second.arrays)
    assert Snapshot.of(other, 0).digest == second.digest
    renamed = {f"{name}.": array for name, array in second.arrays.items()}
    assert Snapshot(renamed, 0, "").arrays.keys() != second.arrays.keys()


@pytest.mark.parametrize(
    ("column", "value"),
    [("log_prob", np.nan), ("reward", np.nan), ("reward", np.inf), ("value", np.nan), ("value", -np.inf)],
)
def test_a_minibatch_that_is_not_finite_is_skipped_and_counted_and_leaves_no_trace(column, value):
    policy, trajectories = batches()
    recipe = replace(PPO, epochs=1, minibatches=1)
    learner = make_learner(policy, recipe)
    learner.update(trajectories[:1], 0.0)
    before = leaves(learner.state())
    getattr(trajectories[1], column)[3, 1] = value
    metrics = learner.update(trajectories[1:2], 0.0)
    after = leaves(learner.state())
    assert metrics["skipped_updates"] == 1 and metrics["num_updates"] == 1
    assert np.isnan(metrics["policy_loss"]), "there is no minibatch to take the mean of"
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert moved == {"/version", "/skipped", "/streak"}
    steps = {float(after[name]) for name in after if name.endswith("/step")}
    assert steps == {1.0}, "Adam has not counted it either"
    assert learner.update(trajectories[2:3], 0.0)["skipped_updates"] == 1


def test_means_are_over_the_minibatches_that_were_taken():
    policy, trajectories = batches()
    trajectories[0].log_prob[2, 2] = np.nan
    metrics = make_learner(policy, replace(PPO, epochs=1, minibatches=4)).update(trajectories[:1], 0.0)
    assert metrics["skipped_updates"] == 1 and metrics["num_updates"] == 4
    assert metrics["ratio"] == pytest.approx(1, abs=0.02) and metrics["entropy"] > 0.3


def test_so_many_skipped_in_a_row_end_the_run_also_across_updates_and_a_resume():
    policy, trajectories = batches()
    recipe = replace(PPO, epochs=1, minibatches=2)
    bad = replace(trajectories[0], reward=trajectories[0].reward * np.nan)
    learner = make_learner(policy, recipe, max_skipped_updates=5)
    learner.update([bad], 0.0)
    learner.update([bad], 0.0)  # 4 in a row
    learner.update([trajectories[1]], 0.0)  # and the row is broken
    learner.update([bad], 0.0)
    learner.update([bad], 0.0)
    resumed = make_learner(small_policy("mlp", CARTPOLE), recipe, max_skipped_updates=5)
    resumed.load_state(learner.state())
    for each in (learner, resumed):
        with pytest.raises(
            RunFailed, match=r"5|6 minibatches in a row.*--max-skipped-updates 5.*--learning-rate"
        ):
            each.update([bad], 0.0)


def test_a_row_of_skips_that_ends_inside_an_update_still_ends_the_run():
    policy, trajectories = batches()
    recipe = replace(PPO, epochs=3, minibatches=2)
    learner = make_learner(policy, recipe, max_skipped_updates=6)
    bad = replace(trajectories[0], reward=trajectories[0].reward * np.nan)
    with pytest.raises(RunFailed, match="6 minibatches in a row"):
        learner.update([bad], 0.0)


# -- truncation against termination, where the values are known --------------------------------------

GAMMA = 0.9


def known(length: int, truncates: bool) -> np.ndarray:
    """V(t) of reward 1 a step: 1 / (1 - gamma) where a time limit only cuts; where it ends after `length` steps
    (1 - gamma^(length - t)) / (1 - gamma)."""
    t = np.arange(length + 1)
    if truncates:
        return np.full(length + 1, 1 / (1 - GAMMA))
    return np.append((1 - GAMMA ** (length - t[:-1])) / (1 - GAMMA), 1e6)  # V of what is over is never read


@pytest.mark.parametrize("autoreset", ["disabled", "same_step", "next_step"])
@pytest.mark.parametrize("lam", [0.0, 0.95, 1.0])
@pytest.mark.parametrize("by", ["env", "time limit"])
@pytest.mark.parametrize("truncates", [True, False])
def test_with_the_true_values_a_time_limit_and_an_end_both_leave_no_advantage(truncates, by, lam, autoreset):
    if by == "time limit" and not truncates:
        spec = EnvSpec(
            "tests.parts:Parts/One-v0", {"length": 5}, max_episode_steps=5, autoreset=autoreset
        )  # both at once
    elif by == "time limit":
        spec = EnvSpec("tests.parts:Parts/One-v0", {"length": 99}, max_episode_steps=5, autoreset=autoreset)
    else:
        spec = EnvSpec("tests.parts:Parts/One-v0", {"length": 5, "truncates": truncates}, autoreset=autoreset)
    policy = TablePolicy(known(5, truncates), spaces.Discrete(2))
    trajectory = collect(spec, policy, num_steps=13, num_envs=2)
    assert trajectory.done.sum() == 4 and trajectory.terminated.any() == (not truncates)
    recipe = replace(ACTOR_CRITIC, gamma=GAMMA, lam=lam)
    advantage, target = make_learner(policy, recipe)._credit(trajectory)
    keep = trajectory.valid
    np.testing.assert_allclose(advantage[keep], 0, atol=1e-4)
    exact = known(5, truncates)[trajectory.observation[..., 0].astype(int)]
    np.testing.assert_allclose(target[keep], exact[keep], rtol=1e-5)


@pytest.mark.parametrize("truncates", [True, False])
def test_the_critic_learns_the_known_values(truncates):
    """One state, looped: cut off after 4 steps it is worth 1 / (1 - gamma), whatever the limit; ending after 4, the
    mean of what is left of the episode."""
    spec = EnvSpec("tests.parts:Parts/One-v0", {"length": 4, "truncates": truncates, "blind": True})
    policy = TablePolicy(np.zeros(1), spaces.Discrete(2))
    collector = make_collector(spec, policy, num_steps=16, num_envs=2)
    recipe = replace(PPO, gamma=GAMMA, lam=1.0, learning_rate=0.2, max_grad_norm=None, value_coef=1.0)
    learner = make_learner(policy, recipe)
    for k in range(100):
        learner.update([collector.collect(k, k).trajectory], k / 100)
    collector.group.close()
    assert policy.values.item() == pytest.approx(known(4, truncates)[:4].mean(), rel=0.01)


# -- a golden ----------------------------------------------------------------------------------------


def losses_of_a_seeded_run() -> str:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        spec = EnvSpec("CartPole-v1")
        env = spec.make_one()
        policy = make_policy(PolicySpec(), env.observation_space, env.action_space, SEED)
        env.close()
        collector = make_collector(spec, policy, num_steps=128, num_envs=4)
        learner = make_learner(policy, replace(PPO, entropy_coef=0.01))
        lines = ["iteration policy_loss value_loss entropy approx_kl explained_variance"]
        for k in range(5):
            metrics = learner.update([collector.collect(k, k).trajectory], k / 5)
            lines.append(" ".join([str(k), *(f"{metrics[name]:.9g}" for name in lines[0].split()[1:])]))
        collector.group.close()
    finally:
        torch.set_num_threads(before)
    return "\n".join(lines) + "\n"


def test_the_losses_of_a_seeded_ppo_run_are_those_that_were_kept():
    """A refactor must not move them. Where they are meant to move:

    python -c "import tests.test_learner_state as t; t.GOLDEN.write_text(t.losses_of_a_seeded_run())"
    """
    got, kept = (text.splitlines() for text in (losses_of_a_seeded_run(), GOLDEN.read_text()))
    assert got[0] == kept[0] and len(got) == len(kept) == 6
    numbers = [np.array([line.split() for line in lines[1:]], float) for lines in (got, kept)]
    np.testing.assert_allclose(*numbers, rtol=1e-4, atol=1e-6)
