"""Where the numbers of a network are rounded, and how images lie in memory: neither changes what is computed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces

from distrl.errors import BadInput
from distrl.policies import PolicySpec, make_policy
from distrl.policies.layers import ROWS_OF_A_BATCH, NatureCNN
from distrl.policies.observe import Observe
from distrl.updates.torch import channels_last, pick_rows
from tests.parts import SEED, stir

VECTOR = spaces.Box(-1, 1, (4,), np.float32)
IMAGE = spaces.Box(0, 255, (4, 36, 36), np.uint8)
ACTIONS = spaces.Discrete(3)
NETWORKS = [("mlp", VECTOR), ("cnn", IMAGE), ("lstm", IMAGE)]


def policy_of(network, space, precision="fp32"):
    return stir(make_policy(PolicySpec(network, precision=precision), space, ACTIONS, SEED), 0.05)


def evaluated(policy, space, rows=ROWS_OF_A_BATCH + 1):
    rng = np.random.default_rng(SEED)
    if space is IMAGE:
        observation = torch.from_numpy(rng.integers(0, 256, (rows, *IMAGE.shape), dtype=np.uint8))
    else:
        observation = torch.from_numpy(rng.standard_normal((rows, 4), dtype=np.float32))
    action = torch.from_numpy(rng.integers(0, 3, rows))
    if policy.recurrent:
        observation, action = observation[None], action[None]
        start = torch.zeros(1, rows, dtype=torch.bool)
        return policy.evaluate(observation, action, None, policy.initial_state(rows), start)
    return policy.evaluate(observation, action, None, None, None)


@pytest.mark.parametrize(("network", "space"), NETWORKS)
def test_bf16_rounds_the_hidden_layers_alone(network, space):
    fine, coarse = (evaluated(policy_of(network, space, precision), space) for precision in ("fp32", "bf16"))
    for one, other in zip(fine, coarse, strict=True):
        assert other.dtype == torch.float32
        assert not torch.equal(one, other)
        torch.testing.assert_close(one, other, rtol=0.02, atol=0.02)
    policy = policy_of(network, space, "bf16")
    assert {parameter.dtype for parameter in policy.parameters()} == {torch.float32}


@pytest.mark.parametrize(("network", "space"), NETWORKS)
def test_bf16_has_nearly_the_gradient_of_fp32(network, space):
    gradients = []
    for precision in ("fp32", "bf16"):
        policy = policy_of(network, space, precision)
        told = evaluated(policy, space)
        (told.log_prob.sum() + told.value.square().sum()).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None]))
    assert gradients[1].dtype == torch.float32
    apart = (gradients[0] - gradients[1]).norm() / gradients[0].norm()
    assert 0 < apart < 0.1


def test_a_policy_that_knows_no_precision_is_refused_at_bf16():
    spec = PolicySpec(policy="tests.parts:table_policy", precision="bf16")
    with pytest.raises(BadInput, match="--precision fp32"):
        make_policy(spec, VECTOR, ACTIONS, SEED)
    with pytest.raises(BadInput, match="--precision fp32"):
        make_policy(PolicySpec("lstm", precision="bf16"), VECTOR, ACTIONS, SEED)


def test_a_nature_cnn_gives_the_same_for_any_layout_and_number_of_rows():
    """One row goes by another product than a batch; both are the plain network's on images of 0..1."""
    net = stir(NatureCNN(IMAGE.shape), 0.02)
    pixels = torch.randint(0, 256, (ROWS_OF_A_BATCH, *IMAGE.shape)).float()
    plain = net.linear(net.convolutions(pixels / 255.0))
    for given in (pixels, pixels.contiguous(memory_format=torch.channels_last)):
        torch.testing.assert_close(net(given), plain, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(net(given[:1]), plain[:1], rtol=1e-4, atol=1e-4)
    wanted = torch.autograd.grad(plain.square().sum(), [*net.parameters()])
    got = torch.autograd.grad(net(pixels).square().sum(), [*net.parameters()])
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * float(other.abs().max()))


@pytest.mark.parametrize("shape", [(9, 4, 6, 5), (9, 1, 4, 4), (9, 3), (9,)])
def test_rows_are_picked_the_same_whatever_their_layout(shape):
    leaf = torch.randint(0, 256, shape, dtype=torch.uint8)
    index = torch.tensor([8, 0, 3, 3])
    laid_out = channels_last(leaf)
    picked = pick_rows(laid_out, index)
    assert torch.equal(picked, leaf[index])
    if len(shape) == 4:
        assert picked.is_contiguous(memory_format=torch.channels_last)


def test_images_whose_channels_come_last_are_left_as_they_lie():
    """[B, H, W, C] read as [B, C, H, W] is what convolutions like; laid out anew it would be strided."""
    leaf = torch.randint(0, 256, (9, 40, 36, 3), dtype=torch.uint8)
    assert channels_last(leaf) is leaf
    observe = Observe(spaces.Box(0, 255, leaf.shape[1:], np.uint8))
    picked = pick_rows(leaf, torch.tensor([8, 0, 3, 3])).permute(0, 3, 1, 2)
    assert picked.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(observe.pixels(leaf)[0], leaf.permute(0, 3, 1, 2).float())
