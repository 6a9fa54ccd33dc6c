"""The built-in networks: how they start, and that acting, valuing and evaluating are one function."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from distrl.errors import BadInput
from distrl.maths.random import stream
from distrl.policies import Policy, PolicySpec, load_parameters, make_policy, parameters_and_buffers
from distrl.policies.build import one_thread
from distrl.trees import tree_leaves, tree_map
from tests import reference
from tests.parts import arrays_of, assert_same_arrays, stir
from tests.policies.test_observe import NESTED, sample

IMAGE = spaces.Box(0, 255, (36, 40, 1), np.uint8)
VECTOR = spaces.Box(-3, 3, (5,), np.float32)
OBSERVATIONS = {
    "box": VECTOR,
    "discrete": spaces.Discrete(6, start=2),
    "nested": NESTED,
    "image": IMAGE,
    "image first": spaces.Box(0, 255, (3, 36, 40), np.uint8),
    "image flat": spaces.Box(0, 255, (36, 40), np.uint8),
    "image and vector": spaces.Dict(camera=IMAGE, body=VECTOR),
}
ACTIONS = {
    "discrete": spaces.Discrete(3, start=4),
    "multi discrete": spaces.MultiDiscrete([3, 2]),
    "multi binary": spaces.MultiBinary((2, 2)),
    "box": spaces.Box(-1, 1, (2, 2), np.float32),
}
NETWORKS = [
    *(("mlp", name) for name in ("box", "discrete", "nested", "image")),
    *(("cnn", name) for name in ("image", "image first", "image flat", "image and vector")),
    *(("lstm", name) for name in ("box", "image and vector")),
]


def build(
    network: str, observation: str = "box", action: str = "discrete", seed: int = 0, **options: Any
) -> Any:
    spec = PolicySpec(network, (8, 8), lstm_size=7, **options)
    return make_policy(spec, OBSERVATIONS[observation], ACTIONS[action], seed)


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize(("network", "observation"), NETWORKS)
def test_what_act_samples_evaluate_calls_by_the_same_probability_and_value_agrees(
    network, observation, action
):
    policy = stir(build(network, observation, action), 0.05)
    assert isinstance(policy, Policy)
    seen, count = sample(OBSERVATIONS[observation], 6), 6
    distribution = policy.distribution
    noise = torch.from_numpy(distribution.noise(stream(0, "action"), (count,)))
    mask = None
    if action in ("discrete", "multi discrete"):
        mask = torch.ones(count, distribution.num_outputs, dtype=torch.bool)
        mask[::2, 0] = False
    state = policy.initial_state(count)
    with torch.no_grad():
        taken, _ = policy.act(seen, state, noise, mask)
        value = policy.value(seen, state)
        start = None
        if policy.recurrent:  # one row of columns
            one = tree_map(lambda leaf: leaf.unsqueeze(0), (seen, taken, mask))
            result = policy.evaluate(*one, state, torch.ones(1, count, dtype=torch.bool))
            result = type(result)(*(column.squeeze(0) for column in result))
        else:
            result = policy.evaluate(seen, taken, mask, None, start)
    assert taken.numpy().dtype == distribution.action_dtype
    assert taken.shape == (count, *distribution.action_shape)
    torch.testing.assert_close(result.value, value, rtol=1e-5, atol=1e-6)
    assert result.log_prob.shape == result.entropy.shape == result.value.shape == (count,)

    # the log-prob is that of the output which the noise turned into the action: recover it from greedy scores
    outputs = output_of(policy, seen)
    exact = log_prob_of(action, policy, outputs, taken.numpy(), mask)
    np.testing.assert_allclose(result.log_prob, exact, rtol=1e-4, atol=1e-4)


def output_of(policy: Any, seen: Any) -> np.ndarray:
    """The policy head's own output, caught on its way out."""
    caught: list[Any] = []
    hook = policy.actor.register_forward_hook(lambda module, inputs, output: caught.append(output))
    with torch.no_grad():
        policy.act(seen, policy.initial_state(6), None, None)
    hook.remove()
    return caught[0].numpy().astype(np.float64)


def log_prob_of(action: str, policy: Any, outputs: np.ndarray, taken: np.ndarray, mask: Any) -> np.ndarray:
    if mask is not None:
        outputs = np.where(mask.numpy(), outputs, -np.inf)
    if action == "discrete":
        return reference.categorical_log_prob(outputs, taken)
    if action == "multi discrete":
        parts = np.split(outputs, [3], axis=1)
        return sum(reference.categorical_log_prob(part, taken[:, k]) for k, part in enumerate(parts))
    if action == "multi binary":
        return reference.bernoulli_log_prob(outputs, taken.reshape(6, -1))
    log_std = np.tile(policy.distribution.log_std.detach().numpy().astype(np.float64), (6, 1))
    return reference.gaussian_log_prob(outputs, log_std, taken.reshape(6, -1))


def assert_orthogonal(weight: torch.Tensor, gain: float) -> None:
    flat = weight.detach().double().flatten(1)
    gram = flat @ flat.T if flat.shape[0] <= flat.shape[1] else flat.T @ flat
    torch.testing.assert_close(
        gram, gain**2 * torch.eye(len(gram), dtype=torch.float64), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize(
    ("network", "observation"), [("mlp", "box"), ("cnn", "image and vector"), ("lstm", "box")]
)
def test_weights_start_orthogonal_with_their_gains_and_biases_at_zero(network, observation):
    policy = build(network, observation, "box")
    gains = {}
    for name, module in policy.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            head = name.startswith(("actor", "critic")) and (network != "mlp" or name.endswith(".4"))
            gain = math.sqrt(2) if not head else 0.01 if name.startswith("actor") else 1.0
            assert_orthogonal(module.weight, gain)
            assert (module.bias == 0).all(), name
            gains.setdefault(gain, []).append(name)
    assert len(gains[0.01]) == 1 and len(gains[1.0]) == 1 and len(gains[math.sqrt(2)]) >= 2
    if network == "lstm":
        assert_orthogonal(policy.lstm.weight_ih_l0, 1.0)
        assert_orthogonal(policy.lstm.weight_hh_l0, 1.0)
        assert (policy.lstm.bias_ih_l0 == 0).all() and (policy.lstm.bias_hh_l0 == 0).all()


@pytest.mark.parametrize("network", ["mlp", "lstm"])
def test_the_deviation_starts_at_one_and_depends_on_no_state(network):
    policy = build(network, action="box")
    assert (policy.distribution.log_std == 0).all() and policy.distribution.log_std.requires_grad
    stir(policy)
    noise = torch.from_numpy(policy.distribution.noise(stream(0, "action"), (6,)))
    with torch.no_grad():
        moves = []
        for seed in (0, 1):
            seen, state = sample(VECTOR, 6, seed), policy.initial_state(6)
            moves.append(policy.act(seen, state, noise, None)[0] - policy.act(seen, state, None, None)[0])
    torch.testing.assert_close(*moves)
    assert moves[0].abs().min() > 0


def test_the_mlp_s_actor_and_critic_share_nothing():
    policy = build("mlp")
    result = policy.evaluate(sample(VECTOR, 4), torch.zeros(4, dtype=torch.int64), None, None, None)
    result.value.sum().backward()
    assert all(parameter.grad is None for parameter in policy.actor.parameters())


@pytest.mark.parametrize(("network", "observation"), [("mlp", "box"), ("cnn", "image"), ("lstm", "box")])
def test_parameters_depend_on_the_seed_alone_and_leave_the_global_generator_where_it_was(
    network, observation
):
    made = []
    for threads, draws in ((1, 0), (2, 3), (4, 5)):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        torch.manual_seed(draws)
        torch.randn(draws)
        standing = torch.get_rng_state()
        # wide enough that a threaded QR rounds differently
        spec = PolicySpec(network, (256, 256), lstm_size=128)
        made.append(arrays_of(make_policy(spec, OBSERVATIONS[observation], ACTIONS["discrete"], 5)))
        assert torch.equal(torch.get_rng_state(), standing) and torch.get_num_threads() == threads
        torch.set_num_threads(before)
    assert_same_arrays(made[0], made[1])
    assert_same_arrays(made[0], made[2])
    other = make_policy(
        PolicySpec(network, (256, 256), lstm_size=128), OBSERVATIONS[observation], ACTIONS["discrete"], 6
    )
    assert not np.array_equal(
        arrays_of(other)["critic.weight" if network != "mlp" else "critic.4.weight"],
        made[0]["critic.weight" if network != "mlp" else "critic.4.weight"],
    )


def test_the_thread_count_is_put_back_also_where_building_fails():
    before = torch.get_num_threads()
    with pytest.raises(BadInput, match="wants an image"):
        make_policy(PolicySpec("cnn"), VECTOR, ACTIONS["discrete"], 0)
    assert torch.get_num_threads() == before
    with one_thread():
        assert torch.get_num_threads() == 1


def test_the_network_is_chosen_by_the_observation_and_a_cnn_wants_an_image():
    assert type(build("auto", "image and vector")).__name__ == "CNNPolicy"
    assert type(build("auto", "box")).__name__ == "MLPPolicy"
    with pytest.raises(BadInput, match="--network cnn wants an image"):
        build("cnn", "box")


def test_layers_and_activation_are_those_of_the_spec():
    policy = make_policy(PolicySpec("mlp", (5, 3), "relu"), VECTOR, ACTIONS["discrete"], 0)
    shapes = {name: tuple(tensor.shape) for name, tensor in policy.named_parameters() if "weight" in name}
    sizes = [(5, 5), (3, 5)]
    assert shapes == {
        f"{head}.{k}.weight": shape
        for head, last in (("actor", (3, 3)), ("critic", (1, 3)))
        for k, shape in zip((0, 2, 4), [*sizes, last], strict=True)
    }
    assert [type(layer).__name__ for layer in policy.actor][1::2] == ["ReLU", "ReLU"]


def test_parameters_go_out_and_in_exactly_and_in_place():
    policy, other = (
        stir(build("lstm", normalize_observation=True)),
        build("lstm", seed=1, normalize_observation=True),
    )
    policy.observe.set_moments(np.arange(5.0), np.arange(5.0) + 1)
    weight = other.critic.weight
    load_parameters(other, parameters_and_buffers(policy))
    assert other.critic.weight is weight, "an optimiser that holds it still does"
    assert_same_arrays(arrays_of(other), arrays_of(policy))
    out = parameters_and_buffers(policy)
    next(iter(out.values()))[:] = 0
    assert next(tree_leaves(tuple(policy.parameters()))).abs().sum() > 0, "copies"


def test_parameters_that_do_not_fit_are_all_named_and_nothing_is_loaded():
    policy = build("mlp")
    before, arrays = arrays_of(policy), parameters_and_buffers(stir(build("mlp")))
    del arrays["critic.0.bias"]
    arrays["extra"] = np.zeros(2)
    arrays["actor.4.weight"] = np.zeros((2, 8), np.float32)
    with pytest.raises(ValueError) as error:
        load_parameters(policy, arrays)
    for text in (
        "critic.0.bias is missing",
        "extra is not the policy's",
        "actor.4.weight has shape (2, 8)",
        "(3, 8)",
    ):
        assert text in str(error.value)
    assert_same_arrays(arrays_of(policy), before)
