"""The learner with V-trace: credit to a policy for what an older one collected."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from distrl.inference import make_inference
from distrl.recipes import A2C, PPO, Recipe
from distrl.trajectory import Trajectory
from tests import reference
from tests.parts import (
    CARTPOLE,
    arrays_of,
    assert_same_arrays,
    both_twins,
    fragment,
    gradient_of,
    make_collector,
    make_learner,
    small_policy,
    split,
    stir,
)
from tests.test_learner import RESETS

pytestmark = pytest.mark.usefixtures(both_twins.__name__)

VTRACE = replace(PPO, credit="vtrace", num_envs=4)
NETWORKS = pytest.mark.parametrize("network", ["mlp", "lstm"])


def moved_on(policy: Any) -> Any:
    """The policy some versions later."""
    return stir(copy.deepcopy(policy), scale=0.05)


def slow_evaluation(policy: Any, t: Trajectory) -> tuple[np.ndarray, np.ndarray]:
    """log-probs and values [T, N] in float64, by the policy's own evaluation, column by column."""
    policy = copy.deepcopy(policy).double()
    policy.observe.register_forward_hook(lambda module, inputs, output: output.double())
    observation, action = torch.from_numpy(t.observation).double(), torch.from_numpy(t.action)
    log_prob, value = np.zeros(t.reward.shape), np.zeros(t.reward.shape)
    for n in range(t.num_envs):
        if policy.recurrent:
            state = tuple(torch.from_numpy(leaf[[n]]).double() for leaf in t.initial_state)
            start = torch.from_numpy(t.episode_start[:, [n]])
            column = policy.evaluate(observation[:, [n]], action[:, [n]], None, state, start)
        else:
            column = policy.evaluate(observation[:, n], action[:, n], None, None, None)
        log_prob[:, n] = column.log_prob.detach().numpy().reshape(-1)
        value[:, n] = column.value.detach().numpy().reshape(-1)
    return log_prob, value


@pytest.mark.parametrize("rung", [PPO, A2C])
@NETWORKS
def test_credit_is_the_slow_twins_with_log_probs_and_values_of_the_policy_as_it_stands(
    network: str, rung: Recipe
) -> None:
    old = small_policy(network, RESETS)
    _, t = fragment(network, RESETS)
    new = moved_on(old)
    learner = make_learner(copy.deepcopy(new), replace(rung, credit="vtrace", num_envs=4))
    advantage, target = learner._credit(*learner._seen_now(t))

    log_prob, value = slow_evaluation(new, t)
    next_value = t.next_value.astype(np.float64)
    for step, env in np.ndindex(t.reward.shape):
        if step < t.num_steps - 1 and not t.done[step, env]:
            next_value[step, env] = value[step + 1, env]
    expected_target, expected_advantage = reference.vtrace(
        t.reward, value, next_value, t.terminated, t.done, t.log_prob, log_prob, 0.99, 0.95, 1.0, 1.0
    )
    if rung.clip is not None:  # the loss has the ratio in itself
        expected_advantage = expected_advantage / np.minimum(1.0, np.exp(log_prob - t.log_prob))
    rows = t.valid
    assert np.abs(log_prob - t.log_prob)[rows].max() > 0.01, "the policy did move"
    np.testing.assert_allclose(advantage[rows], expected_advantage[rows], rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(target[rows], expected_target[rows], rtol=2e-4, atol=2e-5)


@NETWORKS
def test_on_policy_an_update_is_that_of_gae(network: str) -> None:
    policy, trajectory = fragment(network)
    trained = []
    for credit in ("gae", "vtrace"):
        learner = make_learner(copy.deepcopy(policy), replace(VTRACE, credit=credit))
        metrics = learner.update([trajectory], 0.0)
        trained.append((arrays_of(learner.policy), metrics))
    for name, array in trained[0][0].items():
        np.testing.assert_allclose(trained[1][0][name], array, rtol=1e-3, atol=1e-4, err_msg=name)
    assert trained[1][1]["behaviour_kl"] == pytest.approx(0.0, abs=1e-6)
    assert "behaviour_kl" not in trained[0][1]


def test_the_clipped_loss_starts_at_the_ratio_to_the_policy_that_collected() -> None:
    """So that the clip bounds how far the two part, however many updates lie between them."""
    policy, trajectory = fragment()
    once = replace(VTRACE, epochs=1, minibatches=1)
    metrics = make_learner(moved_on(policy), once).update([trajectory], 0.0)
    assert metrics["behaviour_kl"] > 1e-3
    assert metrics["approx_kl"] == pytest.approx(metrics["behaviour_kl"], rel=1e-3)
    lagging = replace(once, credit="gae")
    assert make_learner(moved_on(policy), lagging).update([trajectory], 0.0)["approx_kl"] == pytest.approx(
        metrics["approx_kl"], rel=1e-5
    )


def test_an_actor_critics_gradient_is_impalas() -> None:
    """rho (r + gamma v' - V) times the gradient of log-prob: autograd of that sum, by the policy as it stands."""
    policy, t = fragment()
    new = moved_on(policy)
    recipe = replace(
        A2C, credit="vtrace", num_envs=4, value_coef=0.0, normalize_advantage=False, max_grad_norm=None
    )
    learner = make_learner(copy.deepcopy(new), recipe)
    advantage, _ = learner._credit(*learner._seen_now(t))
    own = copy.deepcopy(new)
    rows = own.evaluate(
        torch.from_numpy(t.observation).flatten(0, 1),
        torch.from_numpy(t.action).flatten(0, 1),
        None,
        None,
        None,
    )
    (-(rows.log_prob * torch.from_numpy(advantage).flatten()).mean()).backward()
    expected = [p.grad for p in own.parameters() if p.grad is not None]
    for got, gradient in zip(
        (g for g in gradient_of(new, recipe, t) if g.abs().max() > 0), expected, strict=True
    ):
        np.testing.assert_allclose(got.numpy(), gradient.numpy(), rtol=1e-3, atol=1e-6)


def test_groups_apart_or_together_give_the_same_update() -> None:
    policy, trajectory = fragment()
    new = moved_on(policy)
    trained = []
    for trajectories in ([trajectory], split(trajectory)):
        learner = make_learner(copy.deepcopy(new), VTRACE)
        learner.update(trajectories, 0.0)
        trained.append(arrays_of(learner.policy))
    assert_same_arrays(*trained)


def test_the_compiled_learners_threads_change_no_bit() -> None:
    policy, trajectory = fragment()
    new = moved_on(policy)
    before = torch.get_num_threads()
    trained = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            learner = make_learner(copy.deepcopy(new), VTRACE, update="compiled", threads=threads)
            learner.update([trajectory], 0.0)
            trained.append(arrays_of(learner.policy))
    finally:
        torch.set_num_threads(before)
    assert_same_arrays(*trained)


def test_the_compiled_learner_sees_a_rollouts_rows_as_the_rollout_did(both_twins: str) -> None:
    """The same kernels: with the policy that collected, log-probs and values are equal to the bit."""
    policy = small_policy("mlp", CARTPOLE)
    collector = make_collector(CARTPOLE, policy, num_steps=24, num_envs=4)
    collector.inference = make_inference(policy, "compiled")
    trajectory = collector.collect(0, 0).trajectory
    seen, log_prob = make_learner(copy.deepcopy(policy), VTRACE)._seen_now(trajectory)
    agree = np.testing.assert_array_equal if both_twins == "compiled" else np.testing.assert_allclose
    more: dict[str, Any] = {} if both_twins == "compiled" else {"rtol": 1e-4, "atol": 1e-5}
    agree(log_prob, trajectory.log_prob, **more)
    agree(seen.value, trajectory.value, **more)
    agree(seen.next_value, trajectory.next_value, **more)
