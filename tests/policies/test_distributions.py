"""Every action space: samples follow the probabilities, log-probs and entropies equal slow twins, masks hold."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from distrl.maths.random import stream
from distrl.policies import make_distribution
from tests import reference

EXAMPLES = settings(max_examples=30, deadline=None)
SEED = st.integers(0, 2**32)
DRAWS = 20_000


def outputs(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape).astype(np.float32) * 2)


def draw(distribution: Any, output: torch.Tensor, mask: Any = None, count: int = DRAWS) -> np.ndarray:
    noise = torch.from_numpy(distribution.noise(stream(5, "action"), (count,)))
    mask = None if mask is None else torch.as_tensor(mask).expand(count, -1)
    return distribution.sample(output.expand(count, -1), noise, mask).numpy()


def chi_square(counts: np.ndarray, probabilities: np.ndarray) -> float:
    """Standard deviations by which Pearson's statistic exceeds what chance gives."""
    expected = counts.sum() * probabilities
    statistic = ((counts - expected) ** 2 / expected).sum()
    freedom = len(counts) - 1
    return float((statistic - freedom) / math.sqrt(2 * freedom))


@pytest.mark.parametrize("mask", [None, [True, False, True, True, False]])
def test_categories_are_drawn_as_often_as_the_softmax_says_and_masked_ones_never(mask):
    output = outputs(0, 5)
    counts = np.bincount(draw(make_distribution(spaces.Discrete(5, start=3)), output, mask), minlength=5)
    allowed = np.ones(5, bool) if mask is None else np.array(mask)
    assert (counts[~allowed] == 0).all()
    exact = np.exp(output.numpy().astype(np.float64))[allowed]
    assert abs(chi_square(counts[allowed], exact / exact.sum())) < 4


def test_the_statistic_tells_a_wrong_distribution():
    counts = np.bincount(draw(make_distribution(spaces.Discrete(5)), outputs(0, 5)), minlength=5)
    exact = np.exp(outputs(0, 5).numpy().astype(np.float64) * 1.1)
    assert chi_square(counts, exact / exact.sum()) > 8


def test_a_multidiscrete_draws_its_parts_independently_each_by_its_own_softmax():
    output = outputs(1, 5)
    actions = draw(make_distribution(spaces.MultiDiscrete([3, 2], start=[1, -1])), output)
    joint = np.bincount(actions[:, 0] * 2 + actions[:, 1], minlength=6)
    parts = [np.exp(part.numpy().astype(np.float64)) for part in output.split([3, 2])]
    exact = np.outer(*[part / part.sum() for part in parts]).ravel()
    assert abs(chi_square(joint, exact)) < 4


def test_bits_are_drawn_independently_by_the_sigmoid():
    output = outputs(2, 3)
    actions = draw(make_distribution(spaces.MultiBinary(3)), output)
    joint = np.bincount(actions @ np.array([4, 2, 1]), minlength=8)
    on = 1 / (1 + np.exp(-output.numpy().astype(np.float64)))
    exact = [np.prod([p if bit == "1" else 1 - p for p, bit in zip(on, f"{k:03b}")]) for k in range(8)]
    assert abs(chi_square(joint, np.array(exact))) < 4


def test_box_actions_are_gaussian_with_their_own_mean_and_deviation():
    distribution: Any = make_distribution(spaces.Box(-1, 1, (2, 3)))
    with torch.no_grad():
        distribution.log_std.copy_(torch.linspace(-1, 1, 6))
        mean = outputs(3, 6)
        actions = draw(distribution, mean)
    assert actions.shape == (DRAWS, 2, 3) and actions.dtype == np.float32
    standard = (actions.reshape(DRAWS, 6) - mean.numpy()) / np.exp(np.linspace(-1, 1, 6))
    inside = np.sort(standard.ravel())
    cdf = 0.5 * (1 + np.vectorize(math.erf)(inside[::20] / math.sqrt(2)))
    assert np.abs(cdf - np.linspace(0, 1, len(inside))[::20]).max() < 1.6 / math.sqrt(len(inside))
    correlation = np.corrcoef(standard.T) - np.eye(6)
    assert np.abs(correlation).max() < 4 / math.sqrt(DRAWS)


@EXAMPLES
@given(SEED, st.integers(1, 6), st.integers(2, 6), st.booleans())
def test_a_category_s_log_prob_and_entropy_are_the_softmax_s(seed, rows, actions, masked):
    rng = np.random.default_rng(seed)
    output = outputs(seed, rows, actions)
    mask = rng.random((rows, actions)) < 0.6
    mask[np.arange(rows), rng.integers(actions, size=rows)] = True
    mask |= not masked
    taken = np.array([rng.choice(np.flatnonzero(row)) for row in mask])
    got = make_distribution(spaces.Discrete(actions)).log_prob_and_entropy(
        output, torch.from_numpy(taken), torch.from_numpy(mask) if masked else None
    )
    exact = np.where(mask, output.numpy().astype(np.float64), -np.inf)
    np.testing.assert_allclose(got[0], reference.categorical_log_prob(exact, taken), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got[1], reference.categorical_entropy(exact), rtol=1e-5, atol=1e-5)


@EXAMPLES
@given(SEED, st.integers(1, 6), st.lists(st.integers(2, 4), min_size=1, max_size=3), st.booleans())
def test_a_multidiscrete_s_log_prob_and_entropy_are_sums_over_its_parts(seed, rows, sizes, masked):
    rng = np.random.default_rng(seed)
    output = outputs(seed, rows, sum(sizes))
    mask = np.ones((rows, sum(sizes)), bool)
    if masked:
        mask[:, 0] = False  # the first action of the first part
    taken = np.stack([rng.integers(k == 0 and masked, size, rows) for k, size in enumerate(sizes)], -1)
    got = make_distribution(spaces.MultiDiscrete(sizes)).log_prob_and_entropy(
        output, torch.from_numpy(taken), torch.from_numpy(mask) if masked else None
    )
    exact = np.where(mask, output.numpy().astype(np.float64), -np.inf)
    parts = np.split(exact, np.cumsum(sizes)[:-1], axis=1)
    log_prob = sum(reference.categorical_log_prob(part, taken[:, k]) for k, part in enumerate(parts))
    entropy = sum(reference.categorical_entropy(part) for part in parts)
    np.testing.assert_allclose(got[0], log_prob, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got[1], entropy, rtol=1e-5, atol=1e-5)


@EXAMPLES
@given(SEED, st.integers(1, 6), st.sampled_from([(1,), (4,), (2, 3)]))
def test_bits_log_prob_and_entropy_are_sums_over_the_bits(seed, rows, shape):
    rng = np.random.default_rng(seed)
    output, taken = outputs(seed, rows, math.prod(shape)), rng.integers(2, size=(rows, *shape))
    got = make_distribution(spaces.MultiBinary(shape)).log_prob_and_entropy(
        output, torch.from_numpy(taken), None
    )
    exact, flat = output.numpy().astype(np.float64), taken.reshape(rows, -1)
    np.testing.assert_allclose(got[0], reference.bernoulli_log_prob(exact, flat), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got[1], reference.bernoulli_entropy(exact), rtol=1e-5, atol=1e-5)


@EXAMPLES
@given(SEED, st.integers(1, 6), st.sampled_from([(1,), (4,), (2, 3)]))
def test_a_gaussian_s_log_prob_and_entropy_are_sums_over_the_dimensions(seed, rows, shape):
    rng = np.random.default_rng(seed)
    distribution: Any = make_distribution(spaces.Box(-1, 1, shape))
    log_std = rng.normal(size=math.prod(shape)).astype(np.float32)
    with torch.no_grad():
        distribution.log_std.copy_(torch.from_numpy(log_std))
    mean = outputs(seed, rows, math.prod(shape))
    action = rng.normal(size=(rows, *shape)).astype(np.float32)
    with torch.no_grad():
        log_prob, entropy = distribution.log_prob_and_entropy(mean, torch.from_numpy(action), None)
    wide = np.tile(log_std.astype(np.float64), (rows, 1))
    exact = reference.gaussian_log_prob(mean.numpy().astype(np.float64), wide, action.reshape(rows, -1))
    np.testing.assert_allclose(log_prob, exact, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(entropy, reference.gaussian_entropy(wide), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("space", "width"),
    [(spaces.Discrete(4), 4), (spaces.MultiDiscrete([2, 3]), 5)],
)
def test_a_mask_leaves_log_prob_entropy_and_gradient_finite_and_masked_logits_without_gradient(space, width):
    output = torch.full((3, width), 30.0).requires_grad_()
    mask = torch.ones(3, width, dtype=torch.bool)
    mask[:, 0] = False
    if width == 4:
        mask[1, 1:3] = False  # one action is left
    distribution = make_distribution(space)
    action = distribution.sample(output, None, mask)
    log_prob, entropy = distribution.log_prob_and_entropy(output, action, mask)
    (gradient,) = torch.autograd.grad((log_prob + entropy).sum(), output)
    for tensor in (log_prob, entropy, gradient):
        assert torch.isfinite(tensor).all()
    assert (gradient[~mask] == 0).all()
    assert (log_prob <= 0).all() and (entropy >= 0).all()


def test_a_row_that_allows_one_action_takes_it_with_certainty():
    mask = torch.tensor([[False, True, False]])
    distribution = make_distribution(spaces.Discrete(3))
    log_prob, entropy = distribution.log_prob_and_entropy(outputs(0, 1, 3), torch.tensor([1]), mask)
    assert log_prob.item() == 0 and entropy.item() == 0


@pytest.mark.parametrize("mask", [None, [[True, True, False, True, True]]])
def test_without_noise_the_most_likely_action_is_taken(mask):
    output = torch.tensor([[0.1, 0.4, 0.9, -0.3, 0.2]])
    mask = None if mask is None else torch.tensor(mask)
    assert make_distribution(spaces.Discrete(5)).sample(output, None, mask).item() == (
        2 if mask is None else 1
    )
    parts = make_distribution(spaces.MultiDiscrete([3, 2])).sample(output, None, mask)
    assert parts.tolist() == [[2 if mask is None else 1, 1]]
    assert make_distribution(spaces.MultiBinary(5)).sample(output, None, None).tolist() == [[1, 1, 1, 0, 1]]
    box = make_distribution(spaces.Box(-1, 1, (5,))).sample(output, None, None)
    assert torch.equal(box, output)


def test_the_rarest_uniforms_give_finite_noise():
    class Ends:
        """A generator at the ends of its range."""

        def random(self, shape: Any, dtype: Any) -> Any:
            return np.array([0.0, np.nextafter(np.float32(1), np.float32(0))], dtype).reshape(shape)

    for space in (spaces.Discrete(2), spaces.MultiBinary(2)):
        noise = make_distribution(space).noise(Ends(), ())  # type: ignore[arg-type]
        assert np.isfinite(noise).all() and noise[0] < noise[1]


@pytest.mark.parametrize(
    "space",
    [
        spaces.Dict(a=spaces.Discrete(2)),
        spaces.Tuple((spaces.Discrete(2),)),
        spaces.Text(3),
    ],
)
def test_a_space_without_a_distribution_is_refused_by_name(space):
    with pytest.raises(ValueError, match="actions must be Discrete.*got.*wrap the env"):
        make_distribution(space)
