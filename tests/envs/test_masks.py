"""A mask in any form that an env gives is one row of bools, or an error that names env, step and shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import play
import pytest
import torch
from gymnasium import spaces

from distrl.envs import EnvSpec
from distrl.envs.masks import read_mask, read_masks
from distrl.errors import RunFailed
from distrl.policies import make_distribution
from tests import reference

FIVE = spaces.Discrete(5, start=3)
PARTS = spaces.MultiDiscrete([3, 2])
SAME = spaces.MultiDiscrete([2, 2])
BITS = spaces.MultiBinary(2)


@pytest.mark.parametrize(
    "given",
    [
        [1, 0, 1, 0, 0],
        (True, False, True, False, False),
        [True, 0, 1.0, False, 0],
        np.array([1, 0, 1, 0, 0], np.int8),
        np.array([[1.0, 0.0, 1.0, 0.0, 0.0]], np.float32),
        torch.tensor([1, 0, 1, 0, 0]),
    ],
)
def test_forms_of_a_discrete_mask(given: Any) -> None:
    mask = read_mask(FIVE, given, "env 0")
    assert mask.dtype == np.bool_ and mask.tolist() == [True, False, True, False, False]


@pytest.mark.parametrize(
    "given",
    [
        (np.array([1, 0, 1], np.int8), np.array([0, 1], np.int8)),
        [[1, 0, 1], [0, 1]],
        ([True, False, True], (False, True)),
        np.array([1, 0, 1, 0, 1], np.bool_),
        [1, 0, 1, 0, 1],
        np.array([np.array([1, 0, 1]), np.array([0, 1])], object),
    ],
)
def test_forms_of_a_multi_discrete_mask(given: Any) -> None:
    assert read_mask(PARTS, given, "env 0").tolist() == [True, False, True, False, True]
    assert read_mask(SAME, np.array([[1, 0], [0, 1]]), "env 0").tolist() == [True, False, False, True]


def test_a_multi_binary_mask_says_whether_a_bit_may_be_1_or_of_both_values_whether_they_may_be() -> None:
    assert read_mask(BITS, [1, 0], "env 0").tolist() == [True, True, True, False]
    assert read_mask(BITS, [[0, 1], [1, 1]], "env 0").tolist() == [False, True, True, True]


@pytest.mark.parametrize(
    ("space", "given", "says"),
    [
        (FIVE, [1, 0, 1], r"env 4: step 2: action_mask has shape \(3,\), and Discrete.* needs \(5,\)"),
        (PARTS, ([1, 1], [1, 1, 1, 1]), r"parts of shapes \(2,\), \(4,\)"),
        (FIVE, [0] * 5, "no legal action; end the episode"),
        (PARTS, [[1, 1, 0], [0, 0]], "no legal action in dimension 1"),
        (BITS, [[1, 1], [0, 0]], "no legal action in dimension 1"),
        (FIVE, [0, 1, 2, 0, 0], "0s and 1s"),
        (FIVE, ["a"] * 5, "0s and 1s"),
        (FIVE, np.full(5, np.nan), "0s and 1s"),
        (FIVE, None, "0s and 1s"),
    ],
)
def test_a_mask_that_does_not_fit_is_an_error_with_env_step_and_shape(
    space: Any, given: Any, says: str
) -> None:
    if isinstance(given, tuple):
        given = ([1, 1], [1, 1, 1, 1])
    with pytest.raises(RunFailed, match=says):
        read_mask(space, given, "env 4: step 2")


def test_the_masks_of_a_group_are_all_true_where_none_was_given_and_where_the_episode_is_over() -> None:
    given = np.array([[1, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]], np.int8)
    rows, over = np.array([True, False, True]), np.array([False, False, True])
    masks = read_masks(FIVE, given, rows, str, over)
    assert masks.sum(1).tolist() == [1, 5, 5]
    assert read_masks(FIVE, given.astype(np.bool_), rows, str, over).tolist() == masks.tolist()
    with pytest.raises(RunFailed, match="^2: .*no legal action"):
        read_masks(FIVE, given, rows, str)
    by_part = (np.ones((3, 3), np.int8), np.array([[1, 0]] * 3, np.int8))
    assert (
        read_masks(PARTS, by_part, np.ones(3, np.bool_), str).tolist()
        == [[True, True, True, True, False]] * 3
    )


def test_masked_bits_are_never_taken_and_count_for_nothing() -> None:
    distribution = make_distribution(spaces.MultiBinary(3))
    output = torch.tensor([[0.3, -0.2, 1.5]]).repeat(64, 1).requires_grad_()
    mask = torch.tensor([[1, 1, 0, 1, 1, 0]]).repeat(64, 1).bool()  # free, 1, 0
    noise = torch.from_numpy(distribution.noise(np.random.default_rng(0), (64,)))
    action = distribution.sample(output, noise, mask)
    assert (action[:, 1] == 1).all() and (action[:, 2] == 0).all() and 0 < action[:, 0].sum() < 64
    log_prob, entropy = distribution.log_prob_and_entropy(output, action, mask)
    free = reference.bernoulli_log_prob(output.detach().numpy()[:, :1], action.numpy()[:, :1])
    np.testing.assert_allclose(log_prob.detach().numpy(), free, rtol=1e-5)
    p = 1 / (1 + np.exp(-0.3))
    np.testing.assert_allclose(
        entropy.detach().numpy(), -(p * np.log(p) + (1 - p) * np.log(1 - p)), rtol=1e-5
    )
    (log_prob.sum() + entropy.sum()).backward()
    assert output.grad is not None and torch.isfinite(output.grad).all() and (output.grad[:, 1:] == 0).all()


def test_a_group_does_not_keep_the_mask_of_an_observation_before() -> None:
    """Every other step gives none, and no info at all."""
    group = play.make(EnvSpec("tests.wild.space_envs:Wild/Masked-v0", {"form": "missing"}))
    group.start()
    mask = group.action_mask
    assert mask is not None and mask.shape == (2, 5) and not mask.all()
    action = np.array([2 + int(row.argmax()) for row in mask])
    group.step(action)
    assert group.action_mask is not None and group.action_mask.all()
    assert any("at some steps and none at others" in warning for warning in group.warnings)
    group.close()


def test_masks_of_the_docs() -> None:
    text = (Path(__file__).parents[2] / "docs" / "action_masks.md").read_text()
    source = text.split("```python\n")[1].split("```")[0]
    namespace: dict[str, object] = {"__name__": "nim"}
    exec(compile(source, "nim.py", "exec"), namespace)
    env = gym.make("Nim-v0", disable_env_checker=True)
    for seed in range(20):
        _, info = env.reset(seed=seed)
        over = False
        while not over:
            legal = read_mask(env.action_space, info["action_mask"], "nim")
            _, _, over, _, info = env.step(int(np.flatnonzero(legal)[-1]))
    del gym.registry["Nim-v0"]
