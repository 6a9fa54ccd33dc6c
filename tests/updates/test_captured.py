"""The captured update's steps, run one by one on the CPU: to the bits of the plain torch update."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.gpu_cases import CASES
from distrl.errors import BadInput
from distrl.learner import Learner, digest
from distrl.policies import parameters_and_buffers
from distrl.recipes import A2C, PPO, REINFORCE_BASELINE
from distrl.updates.captured import CapturedUpdate
from distrl.updates.staging import Staging
from tests.parts import CARTPOLE, SEED, assert_same_arrays, fragment, small_policy, split

FULL = replace(PPO, epochs=2, minibatches=3, clip_value=0.2, clip_schedule="linear", entropy_coef=0.01)
FLAT_CASES = [case for case in CASES if case.network != "lstm"]


def learners(case, **changes):
    """(plain, captured), each with its own policy of the same parameters."""
    both = []
    for kind in ("torch", "captured"):
        policy = case.learner("cpu").policy
        recipe = replace(case.recipe, **changes)
        both.append(Learner(policy, recipe, SEED, "cpu", case.normalise, case.normalise, update=kind))
    return both


def learn(learner, case, first, last):
    return [learner.update(case.trajectories(k), 0.2 * k) for k in range(first, last)]


def state_digest(learner):
    return digest(parameters_and_buffers(learner.policy)), {
        f"{number}.{name}": array.tobytes()
        for number, slots in learner.state()["optimiser"].items()
        for name, array in slots.items()
    }


@pytest.mark.parametrize("case", FLAT_CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("changes", [{}, {"clip_schedule": "linear", "minibatches": 3, "target_kl": 1e-5}])
def test_static_buffers_and_gae_beside_them_change_no_bit(case, changes):
    case = replace(case, shape_TN=(8, 8) if case.network == "cnn" else case.shape_TN)
    plain, captured = learners(case, **changes)
    before = state_digest(plain)
    assert learn(plain, case, 0, 3) == learn(captured, case, 0, 3)
    assert state_digest(plain) == state_digest(captured) != before


@pytest.mark.parametrize("recipe", [A2C, REINFORCE_BASELINE, replace(FULL, credit="vtrace")])
def test_other_credit_comes_from_the_host_to_the_same_bits(recipe):
    results = []
    for kind in ("torch", "captured"):
        policy, trajectory = fragment("mlp", collects=recipe.collects)
        learner = Learner(policy, recipe, SEED, update=kind)
        metrics = [learner.update(split(trajectory), 0.1) for _ in range(2)]
        results.append((metrics, parameters_and_buffers(policy)))
    assert results[0][0] == results[1][0]
    assert_same_arrays(results[0][1], results[1][1])


def test_batches_of_other_shapes_may_follow_each_other():
    """Whole episodes, say: buffers are made anew, and what was learned stays."""
    case = FLAT_CASES[0]
    plain, captured = learners(case)
    for shape in ((16, 8), (9, 8), (16, 8)):
        given = replace(case, shape_TN=shape).trajectories(0)
        assert plain.update(given, 0.0) == captured.update(given, 0.0)
    assert state_digest(plain) == state_digest(captured)


def test_a_checkpoint_of_either_twin_goes_on_with_either():
    case = FLAT_CASES[1]
    whole, _ = learners(case)
    learn(whole, case, 0, 3)
    for first in (0, 1):
        for second in (0, 1):
            begun, resumed = learners(case)[first], learners(case)[second]
            learn(begun, case, 0, 2)
            resumed.load_state(begun.state())
            learn(resumed, case, 2, 3)
            assert state_digest(resumed) == state_digest(whole)


def test_a_gradient_that_is_not_finite_is_skipped_by_either_twin():
    case = FLAT_CASES[1]
    given = case.trajectories(0)
    given[0].log_prob[0, 0] = -np.inf
    plain, captured = learners(case)
    told = [one.update(given, 0.0) for one in (plain, captured)]
    assert told[0]["skipped_updates"] >= 1 and told[0] == told[1]
    assert state_digest(plain) == state_digest(captured)


def test_steps_that_are_held_change_nothing():
    """As those that run before a capture are."""
    case = FLAT_CASES[1]
    held, plain = CapturedUpdate(case.learner("cpu").policy, case.recipe), learners(case)[0]
    (trajectory, _) = case.trajectories(0)
    held.batch_by_gae(trajectory, trajectory.reward)
    held.held.fill_(1.0)
    held.learning_rate.fill_(0.1)
    held.clip.fill_(0.2)
    for _ in range(3):
        row = held._minibatch(torch.arange(32), held.clip)
        assert row[-1] == 1
    assert digest(parameters_and_buffers(held.policy)) == digest(parameters_and_buffers(plain.policy))
    for slots in held.optimiser_state().values():
        assert not any(array.any() for array in slots.values())


def test_what_cannot_be_captured_is_refused_before_anything_is_computed():
    with pytest.raises(BadInput, match="--learner torch"):
        CapturedUpdate(CASES[3].learner("cpu").policy, PPO)
    with pytest.raises(BadInput, match="CUDA"):
        CapturedUpdate(small_policy("mlp", CARTPOLE), PPO, capture=True)


def test_columns_cross_together_and_stay_where_they_are():
    rng = np.random.default_rng(SEED)
    arrays = [
        rng.standard_normal((3, 2)).astype(np.float32),
        rng.random((3, 2)) < 0.5,
        rng.integers(0, 256, (3, 2, 5, 5), dtype=np.uint8),
        rng.integers(0, 9, (3, 2)),
    ]
    staging = Staging(arrays, torch.device("cpu"))
    staging.send(arrays)
    places = [tensor.data_ptr() for tensor in staging.tensors]
    for tensor, array in zip(staging.tensors, arrays, strict=True):
        np.testing.assert_array_equal(tensor.numpy(), array)
    changed = [array[::-1].copy() for array in arrays]
    assert staging.fits(changed)
    staging.send([array[::-1] for array in arrays])
    for tensor, array in zip(staging.tensors, changed, strict=True):
        np.testing.assert_array_equal(tensor.numpy(), array)
    assert places == [tensor.data_ptr() for tensor in staging.tensors]
    assert not staging.fits(arrays[:-1]) and not staging.fits([arrays[0].astype(np.float64), *arrays[1:]])
