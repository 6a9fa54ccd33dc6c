"""What an observation is follows from its space: light, numbers, categories; channels where they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from distrl.envs.images import ImageBox, likely_channel_axis
from distrl.policies import Observe, PolicySpec, make_policy
from distrl.policies.compiled import features_of, why_not_compiled
from distrl.policies.layers import NatureCNN
from distrl.policies.reading import readings
from tests.policies.test_observe import sample
from tests.wild.space_envs import observed


def box(low: float, high: float, shape: tuple[int, ...], dtype: Any = np.uint8) -> spaces.Box:
    return spaces.Box(low, high, shape, dtype)


@pytest.mark.parametrize(
    ("space", "kind", "scale"),
    [
        (box(0, 1, (8, 8)), "numbers", 1),
        (box(0, 255, (7, 7, 3)), "numbers", 1),
        (box(0, 255, (25, 25, 3)), "numbers", 1),
        (box(0, 255, (28, 28)), "image", 255),
        (box(0, 255, (84, 84, 4)), "image", 255),
        (box(0, 1, (40, 40)), "image", 1),
        (box(0, 9, (40, 40)), "image", 9),
        (box(10, 20, (40, 40, 1)), "image", 10),
        (box(0, 1, (10, 10, 4), np.bool_), "numbers", 1),
        (box(0, 1, (40, 40, 3), np.float32), "image", 1),
        (box(0, 255, (40, 40, 3), np.float32), "image", 255),
        (box(0, 255, (3, 40, 40), np.int32), "image", 255),
        (box(0, 1, (40, 40), np.float32), "numbers", 1),
        (box(-np.inf, np.inf, (40, 40, 3), np.float32), "numbers", 1),
        (box(0, 255, (4, 40, 40, 3)), "image", 255),
        (box(0, 255, (100,)), "numbers", 1),
        (box(3, 3, (40, 40)), "image", 1),
    ],
)
def test_light_is_told_by_size_and_bounds(space, kind, scale):
    (reading,) = readings(space, "auto")
    assert (reading.kind, reading.scale) == (kind, scale)
    (flat,) = readings(space, "auto", flatten=True)
    assert (flat.kind, flat.scale) == ("numbers", scale)
    (off,) = readings(space, "off")
    assert (off.kind, off.scale) == (kind, 1)


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((84, 84, 3), -1), ((3, 84, 84), 0), ((96, 96, 12), -1), ((12, 96, 96), 0), ((48, 48, 40), -1), ((40, 48, 48), 0),
        ((40, 50, 3), -1), ((3, 40, 50), 0), ((12, 40, 50), 0), ((40, 50, 12), -1), ((8, 8, 111), -1), ((4, 4, 16), -1),
        ((7, 7, 3), -1), ((1, 40, 50), 0), ((48, 48, 48), -1), ((4, 84, 84), 0),
    ],
)  # fmt: skip
def test_channels_are_on_the_axis_without_which_the_image_is_square_or_that_is_short(shape, axis):
    assert likely_channel_axis(shape) == axis


def test_a_space_that_knows_its_channels_is_believed():
    array = np.zeros((100, 80, 120), np.uint8)
    space = ImageBox(array, array + 255, np.uint8, -1)
    observe = Observe(space, scale="auto")
    assert observe.image_shapes == [(120, 100, 80)]


def test_frames_of_images_become_channels_in_their_order():
    space = box(0, 255, (2, 30, 40, 3))
    observe, leaf = Observe(space, scale="auto"), sample(space, 2)
    [pixels] = observe.pixels(leaf)
    wanted = leaf.permute(0, 1, 4, 2, 3).reshape(2, 6, 30, 40).float()
    assert observe.image_shapes == [(6, 30, 40)] and torch.equal(pixels, wanted)


def test_pixels_are_scaled_by_the_bounds_of_their_space():
    space = box(10, 30, (30, 30, 1))
    policy = make_policy(PolicySpec("auto", observation_scale="auto"), space, spaces.Discrete(2), 0)
    same = make_policy(
        PolicySpec("auto", observation_scale="auto"),
        box(0, 1, (30, 30, 1), np.float32),
        spaces.Discrete(2),
        0,
    )
    seen = sample(space, 3)
    with torch.no_grad():
        torch.testing.assert_close(
            policy.features(seen), same.features((seen.float() - 10) / 20), rtol=1e-4, atol=1e-4
        )
    flat = Observe(space, flatten_images=True, scale="auto")
    torch.testing.assert_close(flat.features(seen), ((seen.float() - 10) / 20).flatten(1))


@pytest.mark.parametrize("side", [3, 5, 8, 15, 16, 20, 28, 35, 36, 64])
def test_there_is_a_cnn_for_every_size(side):
    net = NatureCNN((2, side, side + 3))
    assert net(torch.rand(2, 2, side, side + 3) * 255).shape == (2, 512)
    policy = make_policy(
        PolicySpec("cnn", observation_scale="auto"), box(0, 255, (side, side, 2)), spaces.Discrete(2), 0
    )
    assert policy.value(torch.zeros(3, side, side, 2, dtype=torch.uint8), None).shape == (3,)


NAMES = [
    "board uint8",
    "board bool",
    "int64",
    "scalar",
    "scalar float64",
    "multi discrete 2d",
    "nested",
    "picture",
    "constant",
]


@pytest.mark.parametrize("name", NAMES)
def test_the_compiled_view_reads_what_torch_reads(name):
    space, _ = observed(name)
    observe = Observe(space, flatten_images=True, scale="auto")
    seen = sample(space, 4)
    numpy: Any = {key: value for key, value in seen.items()} if isinstance(seen, dict) else seen
    from distrl.trees import tree_map

    arrays = tree_map(lambda leaf: leaf.numpy(), numpy)
    np.testing.assert_allclose(features_of(observe, arrays), observe.features(seen).numpy(), rtol=1e-6)
    assert why_not_compiled(PolicySpec("mlp", observation_scale="auto"), space, spaces.Discrete(2)) is None


def test_many_categories_are_an_embedding_and_few_are_one_hot():
    many, few = spaces.Discrete(300_000, start=7), spaces.Discrete(4096)
    observe = Observe(many, scale="auto")
    assert observe.num_features == 16 and observe.embeddings[0].weight.shape == (300_000, 16)
    index = torch.tensor([7, 300_006])
    assert torch.equal(observe.features(index), observe.embeddings[0].weight[[0, 299_999]])
    assert Observe(few, scale="auto").num_features == 4096
    assert Observe(spaces.Discrete(5000), scale="bytes").num_features == 5000, "as runs did before"
    mixed = Observe(spaces.MultiDiscrete([3, 9000]), scale="auto")
    assert mixed.num_features == 3 + 16 and not mixed.is_number.any()
    assert "embedding" in str(
        why_not_compiled(PolicySpec("mlp", observation_scale="auto"), many, spaces.Discrete(2))
    )


def test_how_a_leaf_is_read_is_said_in_one_line():
    def said(space: spaces.Space) -> list[str]:
        return [one.described() for one in readings(space, "auto")]

    assert said(spaces.Dict(board=box(0, 1, (8, 8)))) == [
        "observation board: Box(8, 8) uint8 0..1 -> 64 numbers, unscaled"
    ]
    assert said(box(0, 255, (96, 96, 12))) == [
        "observation: Box(96, 96, 12) uint8 0..255 -> image of 96 x 96 with 12 channels (channels last), scaled by 1/255"
    ]
    assert said(spaces.Tuple((spaces.Discrete(3), spaces.Box(-np.inf, np.inf, ()))))[0].startswith(
        "observation 0: Discrete(3)"
    )
