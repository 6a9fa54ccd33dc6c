"""Losses: their slow twins, masks that select, micro-batches that add up, errors that name the argument."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distrl.maths.losses import (
    clipped_surrogate,
    entropy_bonus,
    normalise_advantage,
    policy_gradient,
    surrogate_terms,
    value_loss,
)
from tests import reference

EXAMPLES = settings(max_examples=40, deadline=None)
SEED, ROWS = st.integers(0, 2**32), st.integers(1, 30)
CLIP = 0.2


def _batch(seed: int, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """log_prob (a leaf), old_log_prob, advantage; float64 [B]; ratios well on both sides of the bounds."""
    rng = np.random.default_rng(seed)
    log_prob, noise, advantage = torch.from_numpy(rng.standard_normal((3, count)))
    return (log_prob - 2).requires_grad_(), log_prob - 2 + 0.4 * noise, advantage


def _mask(seed: int, count: int) -> torch.Tensor:
    mask = torch.from_numpy(np.random.default_rng(seed + 1).random(count) < 0.6)
    mask[0] = True
    return mask


def _losses(log_prob, old, advantage, mask=None, count=None):
    """Every loss on one batch, by name: (loss, metrics); all of them functions of log_prob."""
    return {
        "policy_gradient": policy_gradient(log_prob, advantage, mask, count),
        "clipped_surrogate": clipped_surrogate(log_prob, old, advantage, CLIP, mask, count),
        "value_loss": value_loss(log_prob, advantage, mask=mask, count=count),
        "clipped value_loss": value_loss(log_prob, advantage, old, 0.1, mask, count),
        "entropy_bonus": entropy_bonus(log_prob, mask, count),
    }


LOSSES = ["policy_gradient", "clipped_surrogate", "value_loss", "clipped value_loss", "entropy_bonus"]


@EXAMPLES
@given(SEED, ROWS)
def test_the_clipped_surrogate_and_its_gradient_equal_the_equation_case_by_case(seed, count):
    log_prob, old, advantage = _batch(seed, count)
    loss, metrics = clipped_surrogate(log_prob, old, advantage, CLIP)
    expected, gradient = reference.clipped_surrogate(
        log_prob.tolist(), old.tolist(), advantage.tolist(), CLIP
    )
    assert loss.item() == pytest.approx(expected, rel=1e-10, abs=1e-12)
    loss.backward()
    np.testing.assert_allclose(log_prob.grad, gradient, rtol=1e-9, atol=1e-12)

    ratio = np.exp((log_prob.detach() - old).numpy())
    assert metrics["clip_fraction"].item() == pytest.approx(np.mean(np.abs(ratio - 1) > CLIP))
    assert metrics["approx_kl"].item() == pytest.approx(
        np.mean(ratio - 1 - np.log(ratio)), rel=1e-9, abs=1e-12
    )
    assert metrics["ratio"].item() == pytest.approx(ratio.mean())


@pytest.mark.parametrize(
    ("advantage", "ratio", "used_clipped", "objective", "gradient"),
    [
        (+1.0, 0.7, False, 0.7, 0.7),
        (+1.0, 1.0, False, 1.0, 1.0),
        (+1.0, 1.3, True, 1.2, 0.0),
        (-1.0, 0.7, True, -0.8, 0.0),
        (-1.0, 1.0, False, -1.0, -1.0),
        (-1.0, 1.3, False, -1.3, -1.3),
    ],
)
def test_the_six_cases_of_the_clip_picture(advantage, ratio, used_clipped, objective, gradient):
    log_prob = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    terms = surrogate_terms(log_prob, torch.zeros(1), torch.tensor([advantage], dtype=torch.float64), CLIP)
    assert terms["used_clipped"].tolist() == [used_clipped]
    assert terms["objective"].item() == pytest.approx(objective)
    terms["objective"].sum().backward()
    assert log_prob.grad.item() == pytest.approx(gradient, abs=1e-12)


@EXAMPLES
@given(SEED, ROWS)
def test_the_surrogate_loss_is_minus_the_mean_of_the_terms_that_the_picture_shows(seed, count):
    log_prob, old, advantage = _batch(seed, count)
    loss, _ = clipped_surrogate(log_prob, old, advantage, CLIP)
    assert loss.item() == -surrogate_terms(log_prob, old, advantage, CLIP)["objective"].mean().item()


@EXAMPLES
@given(SEED, ROWS, st.sampled_from([None, 0.05, 0.5, 10.0]))
def test_the_value_loss_equals_the_equation(seed, count, clip_value):
    value, old, target = _batch(seed, count)
    loss, metrics = value_loss(value, target, old, clip_value)
    assert loss.item() == pytest.approx(
        reference.value_loss(value.tolist(), target.tolist(), old.tolist(), clip_value)
    )
    assert metrics["value_mean"].item() == pytest.approx(value.mean().item())


def test_a_wide_value_clip_is_no_clip():
    value, old, target = _batch(0, 20)
    assert value_loss(value, target, old, 1e6)[0].item() == value_loss(value, target)[0].item()


def test_the_entropy_loss_falls_as_entropy_rises_and_its_metric_is_the_entropy():
    loss, metrics = entropy_bonus(torch.tensor([1.0, 3.0]))
    assert loss.item() == -2.0
    assert metrics["entropy"].item() == 2.0


@pytest.mark.parametrize("name", LOSSES)
@EXAMPLES
@given(SEED, ROWS, st.sampled_from([torch.bool, torch.float32]))
def test_masked_rows_count_for_nothing_even_if_they_are_nan(name, seed, count, mask_dtype):
    log_prob, old, advantage = _batch(seed, count)
    mask = _mask(seed, count)
    kept = [x.detach()[mask].clone() for x in (log_prob, old, advantage)]
    kept[0].requires_grad_()
    expected, expected_metrics = _losses(*kept)[name]
    expected.backward()

    spoiled = [torch.where(mask, x.detach(), torch.nan) for x in (log_prob, old, advantage)]
    spoiled[0].requires_grad_()
    loss, metrics = _losses(*spoiled, mask.to(mask_dtype))[name]
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12, abs=1e-14)
    assert torch.equal(spoiled[0].grad[~mask], torch.zeros(int((~mask).sum()), dtype=torch.float64))
    torch.testing.assert_close(spoiled[0].grad[mask], kept[0].grad)
    for key, metric in expected_metrics.items():
        assert metrics[key].item() == pytest.approx(metric.item(), rel=1e-12, abs=1e-14)


@pytest.mark.parametrize("name", LOSSES)
@EXAMPLES
@given(SEED, st.integers(2, 30), st.booleans(), st.data())
def test_micro_batches_add_up_to_the_minibatch_however_it_is_split(name, seed, count, masked, data):
    log_prob, old, advantage = _batch(seed, count)
    mask = _mask(seed, count) if masked else None
    whole, whole_metrics = _losses(log_prob, old, advantage, mask)[name]
    (whole_gradient,) = torch.autograd.grad(whole, log_prob)

    rows = int(mask.sum()) if masked else count
    cut = data.draw(st.integers(1, count - 1))
    total, gradient, sums = 0.0, torch.zeros_like(whole_gradient), dict.fromkeys(whole_metrics, 0.0)
    for part in (slice(cut), slice(cut, None)):
        part_mask = mask[part] if masked else None
        loss, metrics = _losses(log_prob[part], old[part], advantage[part], part_mask, torch.tensor(rows))[
            name
        ]
        total += loss.item()
        gradient += torch.autograd.grad(loss, log_prob)[0]
        for key in sums:
            sums[key] += metrics[key].item()
    assert total == pytest.approx(whole.item(), rel=1e-12, abs=1e-13)
    torch.testing.assert_close(gradient, whole_gradient)
    for key, metric in whole_metrics.items():
        assert sums[key] == pytest.approx(metric.item(), rel=1e-10, abs=1e-13)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_of_no_valid_row_is_zero_and_has_no_gradient(name):
    log_prob, old, advantage = _batch(0, 4)
    loss, metrics = _losses(log_prob, old, advantage, torch.zeros(4, dtype=torch.bool))[name]
    loss.backward()
    assert loss.item() == 0.0
    assert not log_prob.grad.any()
    assert all(metric.item() == 0.0 for metric in metrics.values())


@pytest.mark.parametrize("name", LOSSES)
def test_only_the_first_argument_carries_a_gradient_and_metrics_carry_none(name):
    tensors = [x.detach().requires_grad_() for x in _batch(0, 8)]
    loss, metrics = _losses(*tensors)[name]
    loss.backward()
    assert tensors[0].grad is not None
    assert tensors[1].grad is None and tensors[2].grad is None
    assert all(metric.ndim == 0 and not metric.requires_grad for metric in metrics.values())


@EXAMPLES
@given(SEED, st.integers(2, 40), st.booleans())
def test_normalised_advantages_have_mean_zero_and_deviation_one_over_the_valid_rows(seed, count, masked):
    advantage = 3 + 5 * _batch(seed, count)[2].float()
    mask = _mask(seed, count) if masked else torch.ones(count, dtype=torch.bool)
    mask[1] = True
    spoiled = torch.where(mask, advantage, torch.nan)
    normalised = normalise_advantage(spoiled, mask if masked else None)
    mean, variance = reference.moments(advantage[mask].numpy())
    expected = (advantage[mask].numpy().astype(np.float64) - mean) / (np.sqrt(variance) + 1e-8)
    assert normalised.dtype == torch.float32
    np.testing.assert_allclose(normalised[mask], expected, rtol=1e-5, atol=1e-6)
    assert not normalised[~mask].any()


def test_one_advantage_alone_or_many_equal_ones_become_zero_not_nan():
    assert normalise_advantage(torch.tensor([7.0])).tolist() == [0.0]
    assert normalise_advantage(torch.full((5,), 3.0)).tolist() == [0.0] * 5


def test_rows_of_one_episode_stay_as_they_are_and_of_two_are_normalised() -> None:
    advantage = torch.tensor([0.81, 0.9, 1.0, 5.0])
    mask = torch.tensor([True, True, True, False])
    alone = torch.tensor([3, 3, 3, 4], dtype=torch.int32)
    assert normalise_advantage(advantage, mask, episode=alone).tolist() == [*advantage[:3].tolist(), 0.0]
    torch.testing.assert_close(normalise_advantage(advantage, episode=alone), normalise_advantage(advantage))
    two = torch.tensor([3, 3, 5, 4], dtype=torch.int32)
    torch.testing.assert_close(
        normalise_advantage(advantage, mask, episode=two), normalise_advantage(advantage, mask)
    )
    one_row = normalise_advantage(torch.tensor([7.0]), episode=torch.tensor([0], dtype=torch.int32))
    assert one_row.tolist() == [7.0]
    none = normalise_advantage(advantage, torch.zeros(4, dtype=torch.bool), episode=two)
    assert none.tolist() == [0.0] * 4


def test_advantages_far_from_zero_are_normalised_in_float64():
    advantage = 2.0**22 + torch.arange(4.0).repeat(2500)  # exact in float32, whose sum of them is not
    expected = (np.tile(np.arange(4.0), 2500) - 1.5) / math.sqrt(1.25)
    np.testing.assert_allclose(normalise_advantage(advantage), expected, rtol=1e-6)


def test_shapes_that_would_broadcast_are_refused():
    row, column = torch.ones(3), torch.ones(3, 1)
    with pytest.raises(ValueError, match=r"one shape, got \[\(3,\), \(3, 1\)\]"):
        value_loss(row, column)
    with pytest.raises(ValueError, match=r"mask \(3, 1\)"):
        policy_gradient(row, row, column.bool())
    with pytest.raises(ValueError, match="one shape"):
        value_loss(row, row, column, 0.2)


def test_clip_ranges_must_be_positive_and_value_clipping_needs_old_values():
    row = torch.ones(3)
    with pytest.raises(ValueError, match="clip must be positive, got 0"):
        clipped_surrogate(row, row, row, 0.0)
    with pytest.raises(ValueError, match="needs old_value"):
        value_loss(row, row, clip_value=0.2)
    with pytest.raises(ValueError, match="positive clip_value, got clip_value -1"):
        value_loss(row, row, row, -1.0)
