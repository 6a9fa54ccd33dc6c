"""The learner's update against a slow one in float64, rung by rung; what counts in it and what it tells."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from distrl.envs import EnvSpec
from distrl.maths.random import stream
from distrl.recipes import A2C, ACTOR_CRITIC, LADDER, PPO, REINFORCE, REINFORCE_BASELINE, Recipe
from distrl.trajectory import Trajectory, column_minibatches, flat_minibatches
from tests import reference
from tests.parts import (
    CARTPOLE,
    SEED,
    arrays_of,
    assert_same_arrays,
    both_twins,
    fragment,
    gradient_of,
    make_collector,
    make_learner,
    small_policy,
    split,
)

pytestmark = pytest.mark.usefixtures(both_twins.__name__)

RESETS = EnvSpec("CartPole-v1", max_episode_steps=9, autoreset="next_step")  # rows that do not count
FULL = replace(
    PPO,
    epochs=2,
    minibatches=3,
    clip=0.05,
    clip_value=0.1,
    entropy_coef=0.02,
    clip_schedule="linear",
    num_envs=4,
)


def slow_credit(recipe: Recipe, t: Trajectory) -> tuple[np.ndarray, np.ndarray]:
    if recipe.credit == "return":
        target = reference.discounted_sum(t.reward, t.done, recipe.gamma)
        return (target - t.value if recipe.baseline else target), target
    advantage = reference.gae(t.reward, t.value, t.next_value, t.terminated, t.done, recipe.gamma, recipe.lam)
    return advantage, advantage + t.value


def slow_update(
    policy: Any, recipe: Recipe, trajectory: Trajectory, progress: float
) -> dict[str, np.ndarray]:
    """The same update in float64: autograd for the policy's own gradient, every other formula written out."""
    policy = copy.deepcopy(policy).double()
    policy.observe.register_forward_hook(lambda module, inputs, output: output.double())
    named = [(name, p) for name, p in policy.named_parameters() if p.requires_grad]
    adam = reference.Adam([p.detach().numpy() for _, p in named], recipe.adam_eps)
    advantage, target = slow_credit(recipe, trajectory)
    remaining = 1 - progress
    rate = recipe.learning_rate * (remaining if recipe.learning_rate_schedule == "linear" else 1)
    clip = recipe.clip and recipe.clip * (remaining if recipe.clip_schedule == "linear" else 1)
    for epoch in range(recipe.epochs):
        permutation = stream(SEED, "permutation", 0, epoch)
        if policy.recurrent:
            parts = column_minibatches(trajectory.num_envs, recipe.minibatches, permutation)
        else:
            parts = flat_minibatches(trajectory.valid, recipe.minibatches, permutation)
        for part in parts:
            loss = slow_loss(policy, recipe, trajectory, advantage, target, part, clip)
            gradients = torch.autograd.grad(loss, [p for _, p in named], allow_unused=True)
            arrays = [
                np.zeros(p.shape) if g is None else g.numpy()
                for g, (_, p) in zip(gradients, named, strict=True)
            ]
            adam.step(arrays, rate, recipe.max_grad_norm)
            with torch.no_grad():
                for (_, parameter), value in zip(named, adam.parameters, strict=True):
                    parameter.copy_(torch.from_numpy(value))
    return {name: p.detach().numpy() for name, p in named}


def slow_loss(
    policy: Any, recipe: Recipe, t: Trajectory, advantage: Any, target: Any, part: Any, clip: Any
) -> Any:
    if policy.recurrent:
        pick = lambda array: array[:, part]  # noqa: E731
        state = tuple(torch.from_numpy(leaf[part]).double() for leaf in t.initial_state)
        start = torch.from_numpy(pick(t.episode_start))
    else:
        pick = lambda array: array.reshape(-1, *array.shape[2:])[part]  # noqa: E731
        state = start = None
    valid = pick(t.valid)
    own = policy.evaluate(
        torch.from_numpy(pick(t.observation)).double(), torch.from_numpy(pick(t.action)), None, state, start
    )
    log_prob, entropy, value = (column[torch.from_numpy(valid)] for column in own)
    column = {
        name: torch.from_numpy(pick(array)[valid].astype(np.float64))
        for name, array in (("a", advantage), ("target", target), ("old_v", t.value), ("old_p", t.log_prob))
    }
    weight = column["a"]
    if recipe.normalize_advantage:
        weight = torch.from_numpy(reference.normalised(weight.numpy()))
    if clip is None:
        loss = -(log_prob * weight).sum() / len(weight)
    else:
        ratio = (log_prob - column["old_p"]).exp()
        inside = torch.where(ratio > 1 + clip, 1 + clip, torch.where(ratio < 1 - clip, 1 - clip, ratio))
        loss = -torch.minimum(ratio * weight, inside * weight).sum() / len(weight)
    loss = loss - recipe.entropy_coef * entropy.sum() / len(weight)
    if recipe.credit == "gae" or recipe.baseline:
        error = (value - column["target"]) ** 2
        if recipe.clip_value is not None:
            low, high = column["old_v"] - recipe.clip_value, column["old_v"] + recipe.clip_value
            error = torch.maximum(
                error, (torch.minimum(torch.maximum(value, low), high) - column["target"]) ** 2
            )
        loss = loss + recipe.value_coef * 0.5 * error.sum() / len(weight)
    return loss


@pytest.mark.parametrize(
    ("network", "recipe", "spec"),
    [
        ("mlp", replace(PPO, epochs=1, minibatches=1), CARTPOLE),
        ("mlp", FULL, CARTPOLE),
        ("mlp", FULL, RESETS),
        ("mlp", replace(FULL, normalize_advantage=False, max_grad_norm=None), RESETS),
        ("lstm", replace(FULL, minibatches=2), CARTPOLE),
        ("lstm", replace(FULL, minibatches=2), RESETS),
        *(("mlp", recipe, CARTPOLE) for recipe in LADDER.values()),
        ("mlp", REINFORCE_BASELINE, RESETS),
        ("lstm", REINFORCE_BASELINE, CARTPOLE),
    ],
)
def test_an_update_is_the_slow_one_in_float64(network, recipe, spec):
    policy, trajectory = fragment(network, spec, recipe.collects)
    before = arrays_of(policy)
    wanted = slow_update(policy, recipe, trajectory, progress=0.25)
    metrics = make_learner(policy, recipe).update(split(trajectory), progress=0.25)
    got = arrays_of(policy)
    assert metrics["skipped_updates"] == 0
    steps = recipe.epochs * recipe.minibatches
    assert metrics["num_updates"] == steps
    moved = []
    for name, value in wanted.items():
        np.testing.assert_allclose(
            got[name], value, rtol=1e-5, atol=2e-3 * recipe.learning_rate * steps, err_msg=name
        )
        moved.append(np.abs(got[name] - before[name]).max() > 0.3 * recipe.learning_rate)
    trains_value = recipe.baseline or recipe.credit == "gae"
    assert sum(moved) == len(moved) * (1 if trains_value or network == "lstm" else 0.5)


@pytest.mark.parametrize("network", ["mlp", "lstm"])
@pytest.mark.parametrize("spec", [CARTPOLE, RESETS])
@pytest.mark.parametrize("normalize", [False, True])
def test_ppo_with_one_epoch_and_one_minibatch_has_a2c_s_gradient(network, spec, normalize):
    policy, trajectory = fragment(network, spec)
    alike = {"normalize_advantage": normalize, "max_grad_norm": 0.5}  # what PPO adds beside reusing a batch
    a2c = gradient_of(policy, replace(A2C, **alike), trajectory)
    ppo = gradient_of(policy, replace(PPO, epochs=1, minibatches=1, **alike), trajectory)
    for one, other in zip(ppo, a2c, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert max(float(one.abs().max()) for one in a2c) > 1e-2


def test_the_rungs_give_credit_each_by_its_own_idea():
    policy, episodes = fragment(collects="episodes")
    _, steps = fragment()
    to_go = np.zeros_like(episodes.reward)
    for n in range(4):
        length = int(episodes.valid[:, n].sum())
        for t in range(length):  # reward 1 a step: a geometric sum
            to_go[t, n] = (1 - 0.99 ** (length - t)) / 0.01
    credit = {name: make_learner(policy, recipe)._credit for name, recipe in LADDER.items()}
    keep = episodes.valid
    for name, minus in (("reinforce", 0), ("reinforce-baseline", episodes.value)):
        advantage, target = credit[name](episodes)
        np.testing.assert_allclose(target[keep], to_go[keep], rtol=1e-5)
        np.testing.assert_allclose(advantage[keep], (to_go - minus)[keep], rtol=1e-4, atol=1e-4)
    gae = reference.gae(steps.reward, steps.value, steps.next_value, steps.terminated, steps.done, 0.99, 0.95)
    for name in ("actor-critic", "a2c", "ppo"):
        advantage, target = credit[name](steps)
        np.testing.assert_allclose(advantage, gae, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(target, gae + steps.value, rtol=1e-4, atol=1e-4)


def test_lambda_one_is_the_bootstrapped_return_minus_the_value_and_lambda_zero_the_td_error():
    policy, t = fragment()
    one = make_learner(policy, replace(ACTOR_CRITIC, lam=1.0))._credit(t)[0]
    exact = reference.returns(t.reward, t.next_value, t.terminated, t.done, 0.99) - t.value
    np.testing.assert_allclose(one, exact, rtol=1e-4, atol=1e-4)
    zero = make_learner(policy, replace(ACTOR_CRITIC, lam=0.0))._credit(t)[0]
    exact = reference.td_errors(t.reward, t.value, t.next_value, t.terminated, 0.99)
    np.testing.assert_allclose(zero, exact, rtol=1e-4, atol=1e-5)


def test_reinforce_trains_no_value_and_says_so():
    policy, trajectory = fragment(collects="episodes")
    before = arrays_of(policy)
    metrics = make_learner(policy, REINFORCE).update([trajectory], 0.0)
    after = arrays_of(policy)
    assert not {"value_loss", "explained_variance", "value_mean", "clip_fraction"} & set(metrics)
    for name in before:
        assert np.array_equal(before[name], after[name]) == name.startswith("critic"), name


SPOILT = {"reward": np.nan, "value": np.nan, "next_value": np.nan, "log_prob": np.nan}


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("network", ["mlp", "lstm"])
def test_rows_that_are_not_valid_count_nowhere(network, normalize):
    """NaN in all that they hold changes no bit of parameters, moments, metrics; nor does the KL stop see them."""
    recipe = replace(FULL, minibatches=2, epochs=4, target_kl=1e-6, learning_rate=5e-3)
    results = []
    for spoil in (False, True):
        policy = small_policy(network, RESETS, normalize_observation=normalize)
        collector = make_collector(RESETS, policy, num_steps=24, num_envs=4)
        learner = make_learner(policy, recipe, normalize_observation=normalize, normalize_reward=normalize)
        metrics = []
        for k in range(3):
            trajectory = collector.collect(k, k).trajectory
            invalid = ~trajectory.valid
            assert 4 <= invalid.sum() <= 24
            if spoil:
                for name, value in SPOILT.items():
                    getattr(trajectory, name)[invalid] = value
                trajectory.observation[invalid] = np.nan if network == "mlp" else 7e3
                trajectory.action[invalid] = 1
            metrics.append(learner.update([trajectory], 0.1 * k))
        collector.group.close()
        results.append((metrics, learner))
    (clean, one), (spoilt, other) = results
    assert spoilt == clean and np.isfinite([list(row.values()) for row in clean]).all()
    assert clean[0]["num_updates"] < recipe.epochs * recipe.minibatches, "the KL stop is at work"
    assert_same_arrays(arrays_of(other.policy), arrays_of(one.policy))
    if normalize:
        assert one.observation_moments is not None and other.observation_moments is not None
        assert one.observation_moments.moments.count == other.observation_moments.moments.count
        assert_same_arrays(
            {"m": one.reward_scale.running, "v": one.reward_scale.moments.m2},
            {"m": other.reward_scale.running, "v": other.reward_scale.moments.m2},
        )


def test_metrics_are_means_over_the_rows_that_count():
    policy, trajectory = fragment("mlp", RESETS)
    recipe = replace(PPO, epochs=1, minibatches=1)
    _, target = slow_credit(recipe, trajectory)
    metrics = make_learner(policy, recipe).update([trajectory], 0.0)
    keep = trajectory.valid
    assert metrics["value_mean"] == pytest.approx(trajectory.value[keep].mean(), rel=1e-5)
    exact = reference.explained_variance(trajectory.value[keep], target[keep])
    assert metrics["explained_variance"] == pytest.approx(exact, rel=1e-3, abs=1e-4)
    error = reference.value_loss(trajectory.value[keep].astype(np.float64), target[keep], None, None)
    assert metrics["value_loss"] == pytest.approx(error, rel=1e-4)
    assert metrics["policy_loss"] == pytest.approx(0, abs=1e-6), "normalised advantages at ratio 1"
    assert metrics["approx_kl"] == pytest.approx(0, abs=1e-6) and metrics["clip_fraction"] == 0
    assert metrics["ratio"] == pytest.approx(1, abs=1e-5)
    logits = reference.dense(arrays_of(small_policy("mlp", RESETS)), "actor", trajectory.observation[keep])
    assert metrics["entropy"] == pytest.approx(reference.categorical_entropy(logits).mean(), rel=1e-4)
