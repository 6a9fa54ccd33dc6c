"""The ladder's identities: where two rungs meet, they are the same number, not nearly."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distrl.maths.advantage import discounted_sum, gae, returns
from distrl.maths.losses import clipped_surrogate, normalise_advantage, policy_gradient
from tests import reference

EXAMPLES = settings(max_examples=30, deadline=None)
SEED = st.integers(0, 2**32)


class _Batch(NamedTuple):
    weight: torch.Tensor  # of a softmax policy over 4 actions, [3, 4]
    observation: torch.Tensor  # [B, 3]
    action: torch.Tensor  # [B]
    log_prob: torch.Tensor  # [B]
    advantage: torch.Tensor  # [B]


def _policy_and_batch(seed: int, count: int = 12) -> _Batch:
    generator = torch.Generator().manual_seed(seed)
    observation = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    weight = torch.randn(3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    action = torch.randint(4, (count,), generator=generator)
    log_prob = torch.log_softmax(observation @ weight, dim=-1).gather(1, action[:, None])[:, 0]
    advantage = torch.randn(count, generator=generator, dtype=torch.float64)
    return _Batch(weight, observation, action, log_prob, advantage)


@EXAMPLES
@given(SEED, st.sampled_from([0.1, 0.2, 0.9]), st.booleans())
def test_the_first_ppo_step_on_a_batch_is_the_a2c_step_to_the_bit(seed, clip, masked):
    """One epoch, one minibatch: the ratio is exactly 1, nothing is clipped, the gradients are equal."""
    weight, _, _, log_prob, advantage = _policy_and_batch(seed)
    mask = torch.arange(12) % 3 != 0 if masked else None
    a2c, _ = policy_gradient(log_prob, advantage, mask)
    ppo, metrics = clipped_surrogate(log_prob, log_prob.detach().clone(), advantage, clip, mask)
    (a2c_gradient,) = torch.autograd.grad(a2c, weight, retain_graph=True)
    (ppo_gradient,) = torch.autograd.grad(ppo, weight)
    assert torch.equal(ppo_gradient, a2c_gradient)
    assert metrics["clip_fraction"] == 0 and metrics["approx_kl"] == 0
    assert metrics["ratio"] == 1


@EXAMPLES
@given(SEED)
def test_the_policy_gradient_of_a_softmax_is_the_textbook_one(seed):
    """d log pi(a|s) / d logits = onehot(a) - pi(s), so grad W = -mean of s (onehot - pi)^T A."""
    weight, observation, action, log_prob, advantage = _policy_and_batch(seed)
    (gradient,) = torch.autograd.grad(policy_gradient(log_prob, advantage)[0], weight)

    logits = observation.numpy() @ weight.detach().numpy()
    pi = np.exp(
        [[reference.categorical_log_prob(row[None], np.array([a]))[0] for a in range(4)] for row in logits]
    )
    expected = -observation.numpy().T @ ((np.eye(4)[action.numpy()] - pi) * advantage.numpy()[:, None]) / 12
    np.testing.assert_allclose(gradient, expected, rtol=1e-9, atol=1e-12)


@EXAMPLES
@given(SEED, st.floats(-5, 5))
def test_a_constant_baseline_moves_no_normalised_advantage(seed, baseline):
    advantage = _policy_and_batch(seed).advantage
    torch.testing.assert_close(normalise_advantage(advantage - baseline), normalise_advantage(advantage))


def test_a_baseline_keeps_the_expected_gradient_and_lowers_its_variance():
    """Exact expectations over a two-armed bandit with pi = (p, 1 - p): enumerated, not sampled."""
    logits = torch.tensor([0.3, -0.4], dtype=torch.float64, requires_grad=True)
    reward = torch.tensor([10.0, 11.0], dtype=torch.float64)
    log_pi = torch.log_softmax(logits, dim=0)
    pi = log_pi.detach().exp()
    moments = {}
    for name, baseline in (("reinforce", 0.0), ("baseline", float(pi @ reward))):
        gradients = torch.stack(
            [
                torch.autograd.grad(
                    policy_gradient(log_pi[[a]], reward[[a]] - baseline)[0], logits, retain_graph=True
                )[0]
                for a in range(2)
            ]
        )
        mean = pi @ gradients
        moments[name] = mean, float(pi @ ((gradients - mean) ** 2).sum(dim=1))
    torch.testing.assert_close(moments["reinforce"][0], moments["baseline"][0])
    assert moments["baseline"][1] < 0.01 * moments["reinforce"][1]


@EXAMPLES
@given(SEED, st.integers(1, 15), st.sampled_from([0.9, 1.0]))
def test_reinforce_with_a_baseline_is_actor_critic_at_lambda_one_on_whole_episodes(seed, num_steps, gamma):
    rng = np.random.default_rng(seed)
    reward, value = rng.standard_normal((2, num_steps, 2))
    end = np.broadcast_to(np.arange(num_steps)[:, None] == num_steps - 1, (num_steps, 2))
    next_value = np.concatenate([value[1:], np.full((1, 2), np.nan)])
    advantage = gae(reward, value, next_value, end, end, gamma, 1.0)
    np.testing.assert_allclose(advantage, discounted_sum(reward, end, gamma) - value, rtol=1e-10, atol=1e-11)


def _chain(num_steps: int, start: int) -> tuple[np.ndarray, np.ndarray]:
    """States s, s+1, ... of a chain of 8 that dies after the last; reward s + 1 for leaving state s."""
    state = (start + np.arange(num_steps)) % 8
    return state, state == 7


@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("start", [0, 3])
def test_with_the_true_value_function_of_a_chain_every_advantage_is_zero(lam, start):
    """V solves the Bellman equation V(s) = s + 1 + gamma V(s + 1), V(8) = 0: bootstraps and ends are all consistent."""
    gamma = 0.8
    transition = gamma * np.eye(8, k=1)
    true_value = np.linalg.solve(np.eye(8) - transition, np.arange(8) + 1.0)
    state, terminated = _chain(20, start)
    columns = [(state + 1.0), true_value[state], true_value[(state + 1) % 8]]
    reward, value, next_value = (column[:, None] for column in columns)
    advantage = gae(reward, value, next_value, terminated[:, None], terminated[:, None], gamma, lam)
    np.testing.assert_allclose(advantage, 0.0, atol=1e-12)
    np.testing.assert_allclose(
        returns(reward, next_value, *[terminated[:, None]] * 2, gamma), value, rtol=1e-12
    )
