"""Each rule of how the learner uses a batch, by itself: schedules, clips, the KL stop, normalisation, masks, lag."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from distrl.envs import EnvSpec
from distrl.learner import Learner
from distrl.maths.losses import normalise_advantage
from distrl.recipes import A2C, PPO
from distrl.updates.torch import TorchUpdate
from tests.parts import (
    SEED,
    arrays_of,
    assert_same_arrays,
    both_twins,
    collect,
    columns,
    fragment,
    gradient_of,
    make_learner,
    small_policy,
    split,
)

pytestmark = pytest.mark.usefixtures(both_twins.__name__)


@pytest.mark.parametrize(
    ("schedule", "progress", "rate"),
    [("linear", 0.0, 1e-3), ("linear", 0.25, 7.5e-4), ("linear", 0.9, 1e-4), ("constant", 0.9, 1e-3)],
)
def test_the_learning_rate_falls_with_progress(schedule, progress, rate):
    policy, trajectory = fragment()
    learner = make_learner(policy, replace(PPO, learning_rate_schedule=schedule, epochs=1, minibatches=1))
    before = arrays_of(policy)["critic.2.bias"]
    metrics = learner.update([trajectory], progress)
    assert metrics["learning_rate"] == pytest.approx(rate)
    assert abs(arrays_of(policy)["critic.2.bias"] - before)[0] == pytest.approx(rate, rel=1e-2), (
        "Adam's first step"
    )


def test_the_clip_falls_with_progress_and_more_ratios_lie_outside():
    found = {}
    for schedule, progress in (("constant", 0.9), ("linear", 0.0), ("linear", 0.9), ("linear", 1.0)):
        policy, trajectory = fragment()
        recipe = replace(PPO, clip=0.1, clip_schedule=schedule, learning_rate_schedule="constant", epochs=8)
        found[schedule, progress] = make_learner(policy, recipe).update([trajectory], progress)[
            "clip_fraction"
        ]
    assert found["constant", 0.9] == found["linear", 0.0] < found["linear", 0.9] < found["linear", 1.0]


def test_the_kl_stop_is_asked_once_an_epoch_and_stops_the_epochs():
    def run(target_kl: float | None) -> dict[str, float]:
        policy, trajectory = fragment()
        recipe = replace(PPO, epochs=6, minibatches=4, learning_rate=3e-2, target_kl=target_kl)
        return make_learner(policy, recipe).update([trajectory], 0.0)

    free, never = run(None), run(1e9)
    assert free == never and free["num_updates"] == 24
    assert run(1e-9)["num_updates"] == 4, "a whole epoch, although the second minibatch is over it"
    between = run(0.01)["num_updates"]
    assert between in (4, 8, 12, 16, 20)


def test_the_kl_stop_still_works_beside_a_minibatch_that_is_skipped():
    policy, trajectory = fragment()
    trajectory.log_prob[0, 0] = np.nan  # one row of one minibatch
    recipe = replace(PPO, epochs=6, minibatches=4, learning_rate=3e-2, target_kl=1e-4)
    metrics = make_learner(policy, recipe).update([trajectory], 0.0)
    assert metrics["num_updates"] == 4 and metrics["skipped_updates"] == 1


def test_the_entropy_bonus_raises_entropy():
    policy, trajectory = fragment()
    with torch.no_grad():
        policy.actor[-1].bias.copy_(torch.tensor([1.0, -1.0]))
    recipe = replace(
        PPO, entropy_coef=1.0, value_coef=0.0, clip=None, epochs=1, minibatches=1, learning_rate=0.01
    )
    trajectory.reward[:] = 0
    trajectory.value[:] = trajectory.next_value[:] = 0  # nothing but the bonus
    learner = make_learner(policy, recipe)
    entropy = [learner.update([trajectory], 0.0)["entropy"] for _ in range(12)]
    assert (np.diff(entropy) > 0).all() and entropy[-1] > entropy[0] + 0.02
    without = make_learner(policy, replace(recipe, entropy_coef=0.0))
    before = arrays_of(policy)
    without.update([trajectory], 0.0)
    assert_same_arrays(arrays_of(policy), before)


def test_value_clipping_stops_the_value_where_it_has_moved_far_enough():
    moves = {}
    for clip_value in (None, 0.05, 0.01):
        policy, trajectory = fragment()
        recipe = replace(PPO, clip_value=clip_value, epochs=20, minibatches=1, learning_rate=1e-2)
        make_learner(policy, recipe).update([trajectory], 0.0)
        with torch.no_grad():
            value = policy.value(torch.from_numpy(trajectory.observation.reshape(-1, 4)), None).numpy()
        moves[clip_value] = np.abs(value - trajectory.value.reshape(-1)).mean()
    assert moves[0.01] < moves[0.05] < 0.5 * moves[None]


def test_the_gradient_s_global_norm_is_clipped():
    policy, trajectory = fragment()
    whole = gradient_of(policy, replace(A2C, max_grad_norm=None), trajectory)
    norm = float(torch.stack([g.norm() for g in whole]).norm())
    assert norm > 1
    clipped = gradient_of(policy, replace(A2C, max_grad_norm=0.5), trajectory)
    for one, other in zip(clipped, whole, strict=True):
        torch.testing.assert_close(one, other * (0.5 / norm), rtol=1e-4, atol=1e-7)
    above = gradient_of(policy, replace(A2C, max_grad_norm=2 * norm), trajectory)
    assert all(torch.equal(one, other) for one, other in zip(above, whole, strict=True))


def test_advantages_are_normalised_within_each_minibatch():
    policy, trajectory = fragment()
    recipe = replace(PPO, epochs=1, minibatches=1, max_grad_norm=None, value_coef=0.0)
    scaled = replace(
        trajectory,
        reward=trajectory.reward * 5,
        value=trajectory.value * 5,
        next_value=trajectory.next_value * 5,
    )
    for one, other in zip(
        gradient_of(policy, recipe, trajectory), gradient_of(policy, recipe, scaled), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    raw = replace(recipe, normalize_advantage=False)
    for one, other in zip(
        gradient_of(policy, raw, trajectory), gradient_of(policy, raw, scaled), strict=True
    ):
        torch.testing.assert_close(5 * one, other, rtol=1e-3, atol=1e-4)


def test_a_batch_of_one_episode_is_not_normalised_and_one_of_two_is():
    recipe = replace(PPO, epochs=1, minibatches=1, max_grad_norm=None, value_coef=0.0)
    policy, trajectory = fragment()
    no = np.zeros_like(trajectory.done)
    whole = replace(trajectory, episode_start=no, done=no, terminated=no)
    alone = columns(whole, slice(0, 1))

    def gradients(batch: Any, normalize: bool) -> Any:
        return gradient_of(policy, replace(recipe, normalize_advantage=normalize), batch)

    for one, other in zip(gradients(alone, True), gradients(alone, False), strict=True):
        torch.testing.assert_close(one, other)
    begun = alone.episode_start.copy()
    begun[10] = True
    for batch in (columns(whole, slice(0, 2)), replace(alone, episode_start=begun)):
        pairs = zip(gradients(batch, True), gradients(batch, False), strict=True)
        assert not all(torch.allclose(one, other, rtol=1e-2) for one, other in pairs)


def test_columns_of_one_episode_are_normalised_by_the_whole_batch_for_a_policy_with_memory():
    recipe = replace(PPO, epochs=1, minibatches=4, max_grad_norm=None, value_coef=0.0)
    policy, trajectory = fragment("lstm")
    no = np.zeros_like(trajectory.done)
    whole = replace(trajectory, episode_start=no, done=no, terminated=no)
    update = TorchUpdate(policy, recipe)
    advantage = np.random.default_rng(0).normal(3, 5, whole.reward.shape).astype(np.float32)
    batch = update.batch(whole, advantage, advantage)
    column = batch.take(torch.tensor([2]))
    found = normalise_advantage(column.advantage, column.valid, episode=column.episode, alone=column.alone)
    wanted = (advantage - advantage.mean()) / advantage.std()
    np.testing.assert_allclose(found.numpy(), wanted[:, [2]], rtol=1e-4, atol=1e-5)
    two = batch.take(torch.tensor([2, 3]))
    found = normalise_advantage(two.advantage, two.valid, episode=two.episode, alone=two.alone)
    wanted = (advantage[:, 2:] - advantage[:, 2:].mean()) / advantage[:, 2:].std()
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-4, atol=1e-5)


def test_the_permutation_is_a_function_of_seed_iteration_and_epoch():
    _, trajectory = fragment()

    def updated(version: int, seed: int = SEED) -> Any:
        policy, _ = fragment()
        learner = Learner(policy, replace(PPO, epochs=1), seed)
        learner.version = version
        learner.update([trajectory], 0.0)
        return arrays_of(policy)["actor.0.weight"]

    first = updated(0)
    np.testing.assert_array_equal(first, updated(0))
    assert not np.array_equal(first, updated(1)) and not np.array_equal(first, updated(0, seed=8))


def test_the_oldest_fragment_gives_the_policy_lag():
    policy, trajectory = fragment()
    learner = make_learner(policy)
    left, right = split(trajectory)
    lags = [
        learner.update([replace(left, version=k), replace(right, version=max(k - 2, 0))], 0.0)["policy_lag"]
        for k in range(4)
    ]
    assert lags == [0, 1, 2, 2] and learner.version == 4
    assert learner.snapshot().version == 4


def test_a_fragment_without_a_valid_row_changes_nothing():
    policy, trajectory = fragment()
    before = arrays_of(policy)
    empty = replace(trajectory, valid=np.zeros_like(trajectory.valid))
    metrics = make_learner(policy, normalize_reward=True, recipe=replace(PPO, num_envs=4)).update(
        [empty], 0.0
    )
    assert metrics["num_updates"] == 0
    assert_same_arrays(arrays_of(policy), before)


def test_masked_actions_have_no_part_in_an_update():
    """The head's row of an action that was never allowed stays where it is."""
    spec = EnvSpec("toy_envs:Toy/Nested-v0")
    policy = small_policy("mlp", spec)
    trajectory = collect(spec, policy, num_steps=24, num_envs=3)
    trajectory.extra["action_mask"][..., 1] = False  # the middle action of the first part, now never
    trajectory.action[..., 0][trajectory.action[..., 0] == 1] = 0
    learner = make_learner(policy, replace(PPO, entropy_coef=0.01))
    before = arrays_of(policy)
    metrics = learner.update([trajectory], 0.0)
    after = arrays_of(policy)
    assert np.isfinite(list(metrics.values())).all()
    moved = (before["actor.2.weight"] != after["actor.2.weight"]).any(axis=1)
    assert moved.tolist() == [True, False, True, True, True]
