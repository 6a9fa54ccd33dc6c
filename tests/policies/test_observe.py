"""Every observation space becomes the features and images that it says, one entry at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector.utils import batch_space

from distrl.policies import Observe
from distrl.policies.observe import has_image
from distrl.trees import tree_map

NESTED = spaces.Dict(
    speed=spaces.Box(-5, 5, (2, 2), np.float32),
    camera=spaces.Box(0, 255, (6, 7, 3), np.uint8),
    body=spaces.Tuple((spaces.Discrete(4, start=-1), spaces.MultiBinary((2, 2)))),
    hand=spaces.MultiDiscrete([2, 3], start=[1, -1]),
)


def sample(space: spaces.Space, count: int, seed: int = 0) -> Any:
    """A batch of observations as tensors, in a group's own layout."""
    batched: Any = batch_space(space, count)
    batched.seed(seed)

    def convert(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: convert(part) for key, part in value.items()}
        return tuple(map(convert, value)) if isinstance(value, tuple) else torch.from_numpy(np.asarray(value))

    return convert(batched.sample())


def one_hot(value: int, size: int) -> list[float]:
    return [float(k == value) for k in range(size)]


def expected(observation: Any, row: int, with_camera: bool) -> list[float]:
    """The features of one row, written out by hand in the space's order."""
    place, bits = observation["body"]
    image = (observation["camera"][row].flatten() / 255).tolist() if with_camera else []
    hand = observation["hand"][row].tolist()
    return [
        *observation["speed"][row].flatten().tolist(),
        *image,
        *one_hot(int(place[row]) + 1, 4),
        *bits[row].flatten().tolist(),
        *one_hot(hand[0] - 1, 2),
        *one_hot(hand[1] + 1, 3),
    ]


@pytest.mark.parametrize("flatten_images", [False, True])
def test_a_nested_observation_becomes_one_vector_with_categories_one_hot(flatten_images):
    observe = Observe(NESTED, flatten_images=flatten_images)
    observation = sample(NESTED, 5)
    features = observe.features(observation)
    assert features.dtype == torch.float32 and features.shape == (5, observe.num_features)
    for row in range(5):
        assert features[row].tolist() == pytest.approx(expected(observation, row, flatten_images))


def test_the_order_of_a_dict_that_travelled_does_not_matter():
    observe, observation = Observe(NESTED), sample(NESTED, 3)
    shuffled = {key: observation[key] for key in ("hand", "speed", "body", "camera")}
    assert torch.equal(observe.features(observation), observe.features(shuffled))


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(5, start=2),
        spaces.MultiDiscrete([2, 4]),
        spaces.MultiBinary(3),
        spaces.Box(-1, 1, (2, 3)),
    ],
)
def test_a_single_leaf_has_the_features_it_has_inside_a_dict(space):
    observation = sample(space, 6)
    alone = Observe(space).features(observation)
    assert torch.equal(alone, Observe(spaces.Dict(x=space)).features({"x": observation}))
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        assert (alone.sum(1) == (1 if isinstance(space, spaces.Discrete) else 2)).all()
        assert len(alone.unique(dim=0)) == len(torch.as_tensor(observation).reshape(6, -1).unique(dim=0))


@pytest.mark.parametrize(
    ("shape", "channels_first", "axes"),
    [
        ((40, 50), (1, 40, 50), None),
        ((40, 50, 3), (3, 40, 50), (2, 0, 1)),
        ((3, 40, 50), (3, 40, 50), (0, 1, 2)),
        ((12, 40, 50), (12, 40, 50), (0, 1, 2)),
    ],
)
def test_images_become_channels_first_in_their_own_bytes(shape, channels_first, axes):
    space = spaces.Box(0, 255, shape, np.uint8)
    observe, image = Observe(space), sample(space, 2)
    assert has_image(space) and observe.image_shapes == [channels_first] and observe.num_features == 0
    [got] = observe.pixels(image)
    array = image.numpy().astype(np.float64)
    wanted = array[:, None] if axes is None else array.transpose(0, *(axis + 1 for axis in axes))
    np.testing.assert_array_equal(got, wanted)
    assert observe.features(image).shape == (2, 0)


@pytest.mark.parametrize(
    "space", [spaces.Box(0, 255, (9,), np.uint8), spaces.Box(0, 1, (40, 40), np.float32)]
)
def test_bytes_in_a_row_and_matrices_of_floats_are_no_images(space):
    assert not has_image(space)
    assert Observe(space).num_features == np.prod(space.shape)


def test_numbers_are_normalised_and_clipped_and_one_hot_entries_are_not():
    observe = Observe(NESTED, normalize=True)
    observation = sample(NESTED, 4)
    raw = observe.features(observation)
    assert torch.equal(observe(observation), raw), "before the first moments nothing changes"
    mean, variance = np.linspace(-1, 1, observe.num_features), np.linspace(0.01, 3, observe.num_features)
    observe.set_moments(mean, variance)
    number = observe.is_number
    assert number.sum() == 4 and number[:4].all(), "those of `speed`"
    wanted = raw.numpy().astype(np.float64)
    wanted[:, number] = (wanted[:, number] - mean[number]) / np.sqrt(variance[number] + 1e-8)
    np.testing.assert_allclose(observe(observation), np.clip(wanted, -10, 10), rtol=1e-5, atol=1e-6)
    observe.set_moments(mean, np.full_like(variance, 1e-6))
    assert set(observe(observation)[:, torch.from_numpy(number)].abs().flatten().tolist()) >= {10.0}


def test_moments_travel_with_the_parameters():
    observe, other = Observe(NESTED, normalize=True), Observe(NESTED, normalize=True)
    observe.set_moments(np.full(observe.num_features, 0.5), np.full(observe.num_features, 4.0))
    other.load_state_dict(observe.state_dict())
    observation = sample(NESTED, 3)
    assert torch.equal(other(observation), observe(observation))
    assert not Observe(NESTED).state_dict(), "without normalisation there is nothing to carry"


@pytest.mark.parametrize(
    "space", [spaces.Text(4), spaces.Tuple((spaces.Discrete(2), spaces.Sequence(spaces.Discrete(2))))]
)
def test_a_space_that_has_no_features_is_refused_by_name(space):
    with pytest.raises(ValueError, match="observations must be Box.*wrap the env"):
        Observe(space)


def test_a_batch_of_rows_has_each_row_s_own_features():
    observe, observation = Observe(NESTED), sample(NESTED, 7)
    rows = [observe.features(tree_map(lambda leaf, k=k: leaf[k : k + 1], observation)) for k in range(7)]
    assert torch.equal(torch.cat(rows), observe.features(observation))
