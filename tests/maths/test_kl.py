"""KL to the reference: rewards that add up, estimators against the whole vocabulary, and the controller's unit."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distrl.maths.kl import AdaptiveBeta, FixedBeta, kl_per_response, kl_shaped_reward
from distrl.maths.losses import kl_penalty
from tests import reference

EXAMPLES = settings(max_examples=40, deadline=None)
ESTIMATORS = ("k1", "k2", "k3")


def _batch(seed: int, rows: int = 6, columns: int = 4):
    """score [N], log-ratio [T, N] (NaN where not valid), valid and last [T, N]: responses of any length."""
    rng = np.random.default_rng(seed)
    length_N = rng.integers(1, rows + 1, columns)
    valid = np.arange(rows)[:, None] < length_N
    last = np.arange(rows)[:, None] == length_N - 1
    log_ratio = np.where(valid, rng.standard_normal((rows, columns)), np.nan)
    return rng.standard_normal(columns), log_ratio, valid, last


@EXAMPLES
@given(st.integers(0, 2**32), st.floats(0, 2))
def test_shaped_rewards_equal_the_equation_and_sum_to_the_score_less_beta_times_the_summed_kl(seed, beta):
    score, log_ratio, valid, last = _batch(seed)
    found = kl_shaped_reward(score, log_ratio, valid, last, beta)
    for n in range(len(score)):
        count = int(valid[:, n].sum())
        ratios = log_ratio[:count, n].tolist()
        expected = reference.shaped_rewards(float(score[n]), ratios, [0.0] * count, beta)
        np.testing.assert_allclose(found[:count, n], expected, rtol=1e-12, atol=1e-12)
        assert not found[count:, n].any(), "padding gets nothing"
        assert math.isclose(found[:, n].sum(), score[n] - beta * math.fsum(ratios), abs_tol=1e-12)
        late = [*[-beta * x for x in ratios], score[n]]  # the score a slot after the last action
        assert not np.allclose(found[:count, n], late[:count]) or abs(score[n]) < 1e-6


def test_the_score_lies_on_the_slot_of_the_last_action():
    valid = np.array([[True, True], [True, False], [True, False]])
    last = np.array([[False, True], [False, False], [True, False]])
    found = kl_shaped_reward(np.array([5.0, 7.0]), np.zeros((3, 2)), valid, last, 0.1)
    assert found.tolist() == [[0, 7], [0, 0], [5, 0]]


def test_a_beta_of_zero_leaves_the_score_alone_whatever_the_log_ratio():
    score, _, valid, last = _batch(1)
    found = kl_shaped_reward(score, np.where(valid, np.inf, np.nan), valid, last, 0.0)
    np.testing.assert_array_equal(found, kl_shaped_reward(score, 0 * valid.astype(float), valid, last, 1.0))
    np.testing.assert_array_equal(found.sum(axis=0), score)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"beta": -0.1}, "beta must be 0 or more"),
        ({"beta": math.nan}, "beta must be 0 or more"),
        ({"score": np.zeros(3)}, "score \\[N\\]"),
        ({"last": np.ones((6, 4), bool)}, "at most one last action"),
    ],
)
def test_what_makes_no_sense_is_refused(changed, said):
    names = ("score", "log_ratio", "valid", "last")
    given_ = dict(zip(names, _batch(0), strict=True)) | {"beta": 0.1} | changed
    with pytest.raises(ValueError, match=said):
        kl_shaped_reward(**given_)


def test_the_kl_of_a_response_is_the_sum_over_its_tokens_and_reads_no_padding():
    _, log_ratio, valid, _ = _batch(3)
    expected = [math.fsum(log_ratio[valid[:, n], n]) for n in range(valid.shape[1])]
    found = kl_per_response(log_ratio, valid)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert not np.allclose(found, [np.mean(log_ratio[valid[:, n], n]) for n in range(valid.shape[1])])


# the controller


@EXAMPLES
@given(st.integers(0, 2**32))
def test_the_adaptive_weight_follows_the_closed_form(seed):
    kls = (12 * np.random.default_rng(seed).random(20)).tolist()
    controller, found = AdaptiveBeta(0.15, 6.0, 10_000.0), []
    for kl in kls:
        controller = controller.after(kl, 64)
        found.append(controller.beta)
    np.testing.assert_allclose(found, reference.adapted_beta(0.15, kls, 64, 6.0, 10_000.0), rtol=1e-12)


def test_the_controller_wants_nats_a_response_and_a_mean_over_tokens_would_drive_its_weight_the_wrong_way():
    log_ratio, valid = np.full((53, 8), 0.2), np.ones((53, 8), bool)
    summed, token_mean = float(kl_per_response(log_ratio, valid).mean()), float(log_ratio[valid].mean())
    assert math.isclose(summed, 53 * 0.2)
    right = wrong = AdaptiveBeta(0.1, target=6.0, horizon=1000.0)
    for _ in range(30):
        right, wrong = right.after(summed, 64), wrong.after(token_mean, 64)
    assert math.isclose(right.beta, 0.1 * (1 + 0.2 * 64 / 1000) ** 30), (
        "10.6 nats are above 6: the weight grows"
    )
    assert math.isclose(wrong.beta, 0.1 * (1 - 0.2 * 64 / 1000) ** 30), (
        "0.2 nats a token are not 6: it shrinks"
    )


def test_at_the_target_the_weight_stays_and_a_kl_that_is_not_finite_changes_nothing():
    controller = AdaptiveBeta(0.3, target=6.0)
    assert controller.after(6.0, 512) == controller
    assert controller.after(math.nan, 512) == controller and controller.after(math.inf, 512) == controller
    assert FixedBeta(0.3).after(100.0, 512) == FixedBeta(0.3)


def test_a_batch_so_large_that_the_weight_could_reach_zero_is_refused():
    assert 0 < AdaptiveBeta(0.1, horizon=100.0).after(0.0, 499).beta < 1e-3
    with pytest.raises(ValueError, match="above a fifth of the responses of a batch, 100, got 100"):
        AdaptiveBeta(0.1, horizon=100.0).after(0.0, 500)


# the estimators


def _two_policies(seed: int = 0, size: int = 12):
    """Logits of pi (a leaf), and log pi_ref, [V] float64."""
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.standard_normal(size)).requires_grad_()
    return logits, torch.log_softmax(torch.from_numpy(rng.standard_normal(size)), -1)


def _expected(estimator, logits, log_ref):
    """The mean over all tokens, each with its probability under pi, and of its gradient: no sampling."""
    log_pi = torch.log_softmax(logits, -1)
    weight = log_pi.detach().exp()
    each = [
        kl_penalty(log_pi[v : v + 1], log_ref[v : v + 1], estimator)[0] * weight[v]
        for v in range(len(log_pi))
    ]
    total = torch.stack(each).sum()
    return float(total.detach()), torch.autograd.grad(total, logits)[0].numpy()


def _kl_gradient(logits, log_ref, reverse=False):
    log_pi = torch.log_softmax(logits, -1)
    p, q = (log_ref, log_pi) if reverse else (log_pi, log_ref)
    return torch.autograd.grad((p.exp() * (p - q)).sum(), logits)[0].numpy()


@pytest.mark.parametrize("seed", range(3))
def test_k1_and_k3_have_the_mean_of_the_exact_kl_and_k2_has_another(seed):
    logits, log_ref = _two_policies(seed)
    log_pi = torch.log_softmax(logits, -1).detach().numpy()
    exact = reference.full_kl(log_pi, log_ref.numpy())
    found = {name: _expected(name, logits, log_ref)[0] for name in ESTIMATORS}
    assert math.isclose(found["k1"], exact, rel_tol=1e-12)
    assert math.isclose(found["k3"], exact, rel_tol=1e-12)
    l_V = log_pi - log_ref.numpy()
    assert math.isclose(found["k2"], math.fsum(np.exp(log_pi) * l_V**2 / 2), rel_tol=1e-12)
    assert abs(found["k2"] / exact - 1) > 0.02


@pytest.mark.parametrize("seed", range(3))
def test_only_k2_has_the_gradient_of_the_kl_while_k3_has_the_reverse_one_s_and_k1_none(seed):
    logits, log_ref = _two_policies(seed)
    gradient = {name: _expected(name, logits, log_ref)[1] for name in ESTIMATORS}
    forward, backward = _kl_gradient(logits, log_ref), _kl_gradient(logits, log_ref, reverse=True)
    np.testing.assert_allclose(gradient["k1"], 0, atol=1e-15)
    np.testing.assert_allclose(gradient["k2"], forward, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(gradient["k3"], backward, rtol=1e-10, atol=1e-14)
    assert np.abs(forward - backward).max() > 0.01 * np.abs(forward).max()


def test_means_over_sampled_tokens_find_the_exact_kl_within_their_standard_error():
    logits, other = _two_policies(5)
    log_pi = torch.log_softmax(logits.detach(), -1)
    log_ref = torch.log_softmax(logits.detach() + 0.3 * other, -1)
    token = np.random.default_rng(0).choice(len(log_pi), 200_000, p=log_pi.exp().numpy())
    exact = reference.full_kl(log_pi.numpy(), log_ref.numpy())
    spread = {}
    for name in ("k1", "k3"):
        found, metrics = kl_penalty(log_pi[token], log_ref[token], name)
        each = torch.stack([kl_penalty(log_pi[v : v + 1], log_ref[v : v + 1], name)[0] for v in range(12)])
        spread[name] = float(each[token].std())
        assert abs(float(found) - exact) < 4 * spread[name] / math.sqrt(len(token))
        assert metrics["reference_kl"] == found
    assert spread["k3"] < spread["k1"], "near the reference, and what k3 is for"


def test_an_unknown_estimator_is_refused():
    with pytest.raises(ValueError, match="k1, k2 or k3, got 'k4'"):
        kl_penalty(torch.zeros(2), torch.zeros(2), "k4")
