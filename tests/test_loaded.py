"""What `distrl.load` gives acts in the env's own terms: inside its space, by single observations and by batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from distrl.envs.actions import ActionMap
from distrl.inference import make_inference
from distrl.loaded import LoadedPolicy
from distrl.policies import PolicySpec, make_policy
from tests.parts import stir

SEEN = spaces.Dict(a=spaces.Box(-1, 1, (3,), np.float64), b=spaces.Discrete(3, start=2))
BOX = spaces.Box(np.array([5, -1]), np.array([10, 1]), dtype=np.float64)


def loaded(action: Any, network: str = "mlp", kind: Any = "torch", **more: Any) -> LoadedPolicy:
    spec = PolicySpec(network, (8,), lstm_size=6, rescale_action=True)
    return LoadedPolicy(stir(make_policy(spec, SEEN, action, 0), 0.3), SEEN, action, kind, **more)


def observations(count: int) -> dict[str, Any]:
    generator = np.random.default_rng(3)
    return {"a": generator.uniform(-1, 1, (count, 3)), "b": generator.integers(2, 5, count)}


@pytest.mark.parametrize("kind", ["torch", "compiled"])
@pytest.mark.parametrize(
    "action", [BOX, spaces.Discrete(3, start=-4, dtype=np.int32), spaces.Box(-1, 1, (2,), np.float32)]
)
def test_actions_are_inside_the_space_and_those_that_an_evaluation_plays(action, kind):
    policy, seen = loaded(action, kind=kind), observations(20)
    played = make_inference(policy.policy, kind)
    inside = {"a": seen["a"].astype(np.float32), "b": seen["b"]}
    with torch.inference_mode():
        raw, _ = played.act(inside, None, None, None)
    expected = ActionMap(action, True)(raw)
    batch, _ = policy.predict(seen)
    np.testing.assert_array_equal(batch, expected)
    for row in range(20):
        one, _ = policy.predict({"a": seen["a"][row], "b": int(seen["b"][row])})
        assert action.contains(one)
        np.testing.assert_allclose(one, expected[row], rtol=1e-5)
    drawn, _ = policy.predict(seen, deterministic=False)
    assert all(action.contains(one) for one in drawn) and not np.array_equal(drawn, batch)
    tensors = {"a": torch.from_numpy(inside["a"]), "b": torch.from_numpy(inside["b"])}
    np.testing.assert_allclose(policy.act(tensors)[0].numpy(), expected, rtol=1e-5)


def test_memory_is_carried_and_forgotten_where_an_episode_starts():
    policy, seen = loaded(spaces.Discrete(3), "lstm"), observations(4)
    first, state = policy.predict(seen)
    _, later = policy.predict(seen, state)
    _, fresh = policy.predict(seen, state, episode_start=np.ones(4, bool))
    _, begun = policy.predict(seen)
    assert torch.equal(fresh[0], begun[0]) and not torch.equal(later[0], begun[0]) and len(first) == 4


def test_illegal_actions_are_not_taken():
    policy, seen = loaded(spaces.MultiDiscrete([3, 2])), observations(6)
    masks = [([0, 0, 1], [0, 1])] * 6
    assert policy.predict(seen, action_mask=masks)[0].tolist() == [[2, 1]] * 6
    one = {name: value[0] for name, value in seen.items()}
    assert policy.predict(one, action_mask=masks[0])[0].tolist() == [2, 1]
    by_key = loaded(spaces.Discrete(3), mask_key="legal")
    assert by_key.predict({**one, "legal": np.array([0, 1, 0], np.int8)})[0] == 1


def test_an_observation_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"shape \(3,\), or \(N, 3\)"):
        loaded(BOX).predict({"a": np.zeros(4), "b": 2})


def test_it_is_the_trained_module_to_torch():
    policy = loaded(BOX)
    assert policy.state_dict().keys() == policy.policy.state_dict().keys()
    assert sum(one.numel() for one in policy.parameters()) == sum(
        one.numel() for one in policy.policy.parameters()
    )
    assert policy.distribution is policy.policy.distribution and not policy.recurrent
    with pytest.raises(AttributeError, match="nothing"):
        policy.nothing  # noqa: B018
