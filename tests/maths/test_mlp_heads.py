"""The nopython distributions beside torch's, on the same outputs, actions, noise and masks."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distrl.maths.mlp_heads import (
    categorical_choose,
    categorical_log_probs,
    exp32,
    gaussian_choose,
    gaussian_entropy,
    gaussian_log_prob,
    log32,
)
from distrl.policies.distributions import Categorical, DiagonalGaussian


def test_exp_and_log_are_those_of_float64_within_float32_rounding():
    x = np.linspace(-87, 88.5, 100_001).astype(np.float32)
    ours = np.array([exp32(one) for one in x])
    np.testing.assert_allclose(ours, np.exp(x.astype(np.float64)), rtol=2e-7)
    y = np.geomspace(1e-37, 1e38, 100_001).astype(np.float32)
    ours = np.array([log32(one) for one in y])
    np.testing.assert_allclose(ours, np.log(y.astype(np.float64)), rtol=2e-7, atol=1e-7)


def test_exp_at_its_ends():
    assert exp32(np.float32(89)) == np.inf
    assert exp32(np.float32(-104)) == 0
    assert exp32(np.float32(0)) == 1
    assert np.isnan(exp32(np.float32(np.nan)))


@settings(max_examples=100, deadline=None)
@given(
    n=st.integers(1, 20),
    masked=st.booleans(),
    scale=st.sampled_from([0.1, 3.0, 60.0]),
    seed=st.integers(0, 999),
)
def test_a_categorical_row_is_torchs(n, masked, scale, seed):
    generator = np.random.default_rng(seed)
    twin = Categorical(n)
    logits = (scale * generator.standard_normal((1, n))).astype(np.float32)
    mask = generator.random((1, n)) < 0.6
    mask[0, generator.integers(n)] = True
    noise = twin.noise(generator, (1,))
    torch_mask = torch.from_numpy(mask) if masked else None
    action = twin.sample(torch.from_numpy(logits), torch.from_numpy(noise), torch_mask)
    flat = logits.reshape(-1), noise.reshape(-1), mask.reshape(-1)
    assert categorical_choose(flat[0], 0, n, flat[1], 0, flat[2], 0, masked) == action.item()

    log_probs = np.empty(n, np.float32)
    entropy = categorical_log_probs(flat[0], 0, n, flat[2], 0, masked, log_probs)
    log_prob, expected = twin.log_prob_and_entropy(torch.from_numpy(logits), action, torch_mask)
    np.testing.assert_allclose(log_probs[action], log_prob.numpy(), rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(entropy, expected.item(), rtol=1e-5, atol=1e-5)


@settings(max_examples=100, deadline=None)
@given(n=st.integers(1, 20), seed=st.integers(0, 999))
def test_a_gaussian_row_is_torchs(n, seed):
    generator = np.random.default_rng(seed)
    twin = DiagonalGaussian((n,))
    log_std = generator.normal(-0.5, 0.7, n).astype(np.float32)
    twin.log_std.data.copy_(torch.from_numpy(log_std))
    mean = generator.standard_normal((1, n), np.float32)
    noise = twin.noise(generator, (1,))
    with torch.no_grad():
        action = twin.sample(torch.from_numpy(mean), torch.from_numpy(noise), None)
        log_prob, entropy = twin.log_prob_and_entropy(torch.from_numpy(mean), action, None)
    ours = np.empty(n, np.float32)
    gaussian_choose(mean.reshape(-1), 0, n, noise.reshape(-1), 0, log_std, ours, 0)
    np.testing.assert_allclose(ours, action.numpy()[0], rtol=1e-6, atol=1e-6)
    density = gaussian_log_prob(mean.reshape(-1), 0, n, action.numpy().reshape(-1), 0, log_std)
    np.testing.assert_allclose(density, log_prob.item(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(gaussian_entropy(log_std, n), entropy.item(), rtol=1e-5, atol=1e-5)
