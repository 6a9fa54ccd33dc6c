"""The compiled update beside torch's: gradients, parameters, threads, and one state for both."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

import distrl
from distrl.errors import BadInput
from distrl.policies import PolicySpec, make_policy
from distrl.recipes import A2C, PPO, REINFORCE, Recipe
from distrl.trajectory import Trajectory
from distrl.updates.compiled import CompiledUpdate
from distrl.updates.protocol import Rates
from distrl.updates.torch import TorchUpdate
from tests.parts import arrays_of, assert_same_arrays, stir

RECIPES = {
    "policy gradient": A2C,
    "ppo": PPO,
    "all its terms": replace(PPO, clip=0.1, clip_value=0.2, entropy_coef=0.05, value_coef=0.7),
    "raw": replace(PPO, normalize_advantage=False, max_grad_norm=None),
    "without a value": REINFORCE,
}


def make(
    actions: int, inputs: int = 3, hidden: tuple[int, ...] = (8,), activation: str = "tanh", **more: Any
) -> Any:
    """A policy for so many actions, or, where negative, dimensions of a Box."""
    space = spaces.Discrete(actions) if actions > 0 else spaces.Box(-1, 1, (-actions,))
    spec = PolicySpec("mlp", hidden, activation, **more)
    return stir(make_policy(spec, spaces.Box(-1, 1, (inputs,)), space, 0), 0.2)


def experience(policy: Any, rows: int, seed: int = 0, masked: bool = False) -> Trajectory:
    """Random rows [rows, 2] for the policy; log-probs near its own."""
    generator = np.random.default_rng(seed)
    shape = (rows, 2)
    n = policy.distribution.num_outputs

    def floats(*more: int) -> Any:
        return generator.standard_normal((*shape, *more), np.float32)

    action: Any
    action = floats(n) if policy.distribution.action_shape else generator.integers(0, n, shape)
    extra = {}
    if masked:
        extra["action_mask"] = generator.random((*shape, n)) < 0.5
        np.put_along_axis(extra["action_mask"], action[..., None], True, axis=2)
    no = np.zeros(shape, bool)
    observation = floats(policy.observe.num_features)
    with torch.no_grad():
        mask = torch.from_numpy(extra["action_mask"]) if masked else None
        own = policy.evaluate(
            torch.from_numpy(observation).flatten(0, 1),
            torch.from_numpy(action).flatten(0, 1),
            None if mask is None else mask.flatten(0, 1),
            None,
            None,
        )
    return Trajectory(
        observation, action, floats(), no, no, ~no, no,
        own.value.numpy().reshape(shape) + 0.3 * floats(), floats(),
        own.log_prob.numpy().reshape(shape) + 0.1 * floats(), extra=extra,
    )  # fmt: skip


def parts_of(rows: int, minibatches: int, epochs: int = 1) -> list[list[np.ndarray]]:
    orders = [np.random.default_rng(epoch).permutation(rows) for epoch in range(epochs)]
    return [[part for part in np.array_split(order, minibatches) if len(part)] for order in orders]


def run(
    kind: Any, policy: Any, trajectory: Trajectory, epochs: Any, clip: float | None, rate: float = 1e-3
) -> Any:
    """(the metrics' names and table, the optimiser's state) of a twin on a copy; the policy that came out."""
    policy = copy.deepcopy(policy)
    update = kind(policy)
    batch = update.batch(trajectory, trajectory.reward, trajectory.next_value)
    names, table = update.optimise(batch, epochs, Rates(rate, clip))
    return names, table, update.optimiser_state(), policy


@settings(max_examples=60, deadline=None)
@given(
    actions=st.sampled_from([2, 1, 5, 18, -1, -3, -17]),
    inputs=st.sampled_from([1, 4, 17, 65]),
    hidden=st.lists(st.sampled_from([1, 3, 16, 40, 64, 100]), max_size=3),
    activation=st.sampled_from(["tanh", "relu"]),
    name=st.sampled_from(sorted(RECIPES)),
    rows=st.integers(1, 300),
    masked=st.booleans(),
    seed=st.integers(0, 99),
)
def test_gradients_are_autograds(actions, inputs, hidden, activation, name, rows, masked, seed):
    recipe: Recipe = replace(RECIPES[name], max_grad_norm=None)
    policy = make(actions, inputs, tuple(hidden), activation)
    trajectory = experience(policy, rows, seed, masked and actions > 0)
    wanted_policy = copy.deepcopy(policy).double()
    epochs = parts_of(2 * rows, 1)
    names, table, state, _ = run(lambda p: CompiledUpdate(p, recipe), policy, trajectory, epochs, recipe.clip)

    wanted_policy.observe.register_forward_hook(lambda module, inputs, output: output.double())
    update = TorchUpdate(wanted_policy, recipe)
    batch = update.batch(
        *(
            replace(
                trajectory, **{n: getattr(trajectory, n).astype(np.float64) for n in ("log_prob", "value")}
            ),
            trajectory.reward.astype(np.float64),
            trajectory.next_value.astype(np.float64),
        )
    )
    loss, metrics = update._loss(batch, recipe.clip)
    loss.backward()
    assert names == [*metrics]
    np.testing.assert_allclose(table[0, :-1], [float(one) for one in metrics.values()], rtol=2e-5, atol=2e-5)
    gradients = {
        number: parameter.grad.numpy()
        for number, parameter in enumerate(wanted_policy.parameters())
        if parameter.grad is not None
    }
    assert {int(number) for number in state} == set(gradients)
    scale = max(float(np.abs(one).max()) for one in gradients.values())
    for number, wanted in gradients.items():
        got = state[str(number)]["exp_avg"] / np.float32(0.1)
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize("name", sorted(RECIPES))
@pytest.mark.parametrize("actions", [3, -2])
def test_parameters_metrics_and_moments_of_several_epochs_are_torchs(name, actions):
    recipe = RECIPES[name]
    policy = make(actions, hidden=(24, 8))
    trajectory = experience(policy, 150)
    epochs = parts_of(300, 4, epochs=3)
    ours = run(lambda p: CompiledUpdate(p, recipe), policy, trajectory, epochs, recipe.clip)
    torchs = run(lambda p: TorchUpdate(p, recipe), policy, trajectory, epochs, recipe.clip)
    assert ours[0] == torchs[0]
    np.testing.assert_allclose(ours[1], torchs[1], rtol=1e-3, atol=1e-4)
    assert ours[2].keys() == torchs[2].keys()
    for number, slots in torchs[2].items():
        assert ours[2][number]["step"] == slots["step"] == 12
        np.testing.assert_allclose(ours[2][number]["exp_avg"], slots["exp_avg"], rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(ours[2][number]["exp_avg_sq"], slots["exp_avg_sq"], rtol=1e-3, atol=1e-7)
    mine, other = arrays_of(ours[3]), arrays_of(torchs[3])
    for key, before in arrays_of(policy).items():
        np.testing.assert_allclose(mine[key], other[key], rtol=0, atol=2e-5, err_msg=key)
        assert np.abs(mine[key] - before).max() > (1e-3 if "critic" not in key or recipe.trains_value else -1)


@pytest.mark.parametrize("rows", [20, 333, 3000])
def test_one_two_and_four_threads_give_the_same_bits(rows):
    policy = make(3, hidden=(70, 33))
    trajectory = experience(policy, rows)
    epochs = parts_of(2 * rows, 3, epochs=2)
    found = [
        run(lambda p, n=n: CompiledUpdate(p, PPO, threads=n), policy, trajectory, epochs, 0.2)
        for n in (1, 2, 3, 4)
    ]
    for other in found[1:]:
        assert_same_arrays(arrays_of(found[0][3]), arrays_of(other[3]))
        np.testing.assert_array_equal(found[0][1], other[1])


@pytest.mark.parametrize("recipe", [PPO, REINFORCE])
@pytest.mark.parametrize("order", ["torch to compiled", "compiled to torch", "compiled to compiled"])
def test_either_twin_goes_on_from_the_others_state(recipe, order):
    def compiled(p: Any) -> Any:
        return CompiledUpdate(p, recipe)

    def torchs(p: Any) -> Any:
        return TorchUpdate(p, recipe)

    policy = make(3, hidden=(20,))
    trajectory = experience(policy, 100)
    first, second = (compiled if name == "compiled" else torchs for name in order.split(" to "))
    _, _, state, between = run(first, policy, trajectory, parts_of(200, 2), recipe.clip)

    def with_state(kind: Any) -> Any:
        def build(p: Any) -> Any:
            update = kind(p)
            update.load_optimiser_state(copy.deepcopy(state))
            return update

        return build

    went_on = run(with_state(second), between, trajectory, parts_of(200, 2), recipe.clip)
    stayed = run(with_state(first), between, trajectory, parts_of(200, 2), recipe.clip)
    assert went_on[2].keys() == stayed[2].keys() == state.keys()
    for number, slots in stayed[2].items():
        assert went_on[2][number]["step"] == slots["step"] == 4
    for key, array in arrays_of(stayed[3]).items():
        np.testing.assert_allclose(arrays_of(went_on[3])[key], array, rtol=0, atol=1e-5, err_msg=key)


def test_the_kl_stop_counts_as_torchs_does():
    recipe = replace(PPO, target_kl=1e-4, learning_rate=1e-2)
    policy = make(3)
    trajectory = experience(policy, 100)
    found = [
        run(lambda p, k=kind: k(p, recipe), policy, trajectory, parts_of(200, 2, epochs=8), 0.2, 1e-2)
        for kind in (CompiledUpdate, TorchUpdate)
    ]
    assert len(found[0][1]) == len(found[1][1]) < 16


def test_a_minibatch_that_is_not_finite_changes_nothing_and_its_neighbours_count():
    policy = make(3)
    trajectory = experience(policy, 50)
    trajectory.next_value[7] = np.nan  # the target, of rows 14 and 15
    clean = [np.array([r for r in range(100) if r // 2 != 7])]
    dirty = [*clean, np.array([14, 15, 16])]
    taken = run(lambda p: CompiledUpdate(p, PPO), policy, trajectory, [clean], 0.2)
    both = run(lambda p: CompiledUpdate(p, PPO), policy, trajectory, [dirty], 0.2)
    np.testing.assert_array_equal(both[1][:, -1], [0, 1])
    assert_same_arrays(arrays_of(taken[3]), arrays_of(both[3]))
    assert both[2]["0"]["step"] == 1


def test_what_the_kernels_do_not_serve_is_refused():
    lstm = make_policy(PolicySpec("lstm"), spaces.Box(-1, 1, (3,)), spaces.Discrete(2), 0)
    with pytest.raises(BadInput, match="got LSTMPolicy"):
        CompiledUpdate(lstm, PPO)
    bits = make_policy(PolicySpec("mlp"), spaces.Box(-1, 1, (3,)), spaces.MultiBinary(2), 0)
    with pytest.raises(BadInput, match="MLPPolicy with Bernoulli"):
        CompiledUpdate(bits, PPO)


@pytest.mark.slow
def test_learning_curves_of_both_twins_are_alike(tmp_path):
    """Rounding alone tells them apart: the same seeds come to the same returns while little has been amplified."""
    found: dict[str, list[float]] = {"torch": [], "compiled": []}
    for seed in (1, 2, 3):
        for kind, returns in found.items():
            folder = tmp_path / f"{kind}-{seed}"
            fields = {"learner": kind, "inference": kind, "eval_episodes": 0, "tensorboard": False}
            distrl.train(
                env="CartPole-v1", workers=0, total_steps=25_000, seed=seed, run_dir=str(folder), **fields
            )
            summary = json.loads((folder / "summary.json").read_text())
            assert (summary["paths"]["learner"], summary["paths"]["inference"]) == (kind, kind)
            last = (folder / "metrics.jsonl").read_text().splitlines()[-1]
            returns.append(json.loads(last)["episode_return_mean"])
    assert min(found["compiled"]) > 100
    np.testing.assert_allclose(np.mean(found["compiled"]), np.mean(found["torch"]), rtol=0.1)
