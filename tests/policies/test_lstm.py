"""The LSTM over whole columns is the same LSTM stepped, reset where episodes start, and so are its gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from distrl.policies import PolicySpec, make_policy
from distrl.rollout import reset_where
from distrl.trees import tree_map
from tests import reference
from tests.parts import arrays_of, stir

EXAMPLES = settings(max_examples=25, deadline=None)
SIZE = st.integers(1, 6)
SEED = st.integers(0, 2**32)


def lstm() -> Any:
    spec = PolicySpec("lstm", (8,), lstm_size=6)
    return stir(make_policy(spec, spaces.Box(-1, 1, (3,)), spaces.Discrete(4), 0))


def columns(seed: int, steps: int, envs: int) -> tuple[Any, ...]:
    """Observation, action, state before row 0, episode starts: [T, N, ...]."""
    rng = np.random.default_rng(seed)
    observation = torch.from_numpy(rng.normal(size=(steps, envs, 3)).astype(np.float32))
    action = torch.from_numpy(rng.integers(4, size=(steps, envs)))
    state = tuple(torch.from_numpy(rng.normal(size=(envs, 6)).astype(np.float32)) for _ in range(2))
    return observation, action, state, torch.from_numpy(rng.random((steps, envs)) < 0.3)


@EXAMPLES
@given(SEED, SIZE, SIZE)
def test_evaluating_columns_is_stepping_along_them_with_a_float64_cell(seed, steps, envs):
    policy = lstm()
    observation, action, state, start = columns(seed, steps, envs)
    with torch.no_grad():
        result = policy.evaluate(observation, action, None, state, start)
    own = arrays_of(policy)
    for n in range(envs):
        h, c = (leaf[n].numpy().astype(np.float64) for leaf in state)
        for t in range(steps):
            if start[t, n]:
                h, c = np.zeros(6), np.zeros(6)
            x = np.tanh(
                own["trunk.1.weight"].astype(np.float64) @ observation[t, n].numpy() + own["trunk.1.bias"]
            )
            h, c = reference.lstm_step(own, "lstm", x, h, c)
            logits = own["actor.weight"].astype(np.float64) @ h + own["actor.bias"]
            value = own["critic.weight"][0].astype(np.float64) @ h + own["critic.bias"][0]
            row = np.array([int(action[t, n])])
            assert result.value[t, n].item() == pytest.approx(value, abs=1e-5)
            assert result.log_prob[t, n].item() == pytest.approx(
                reference.categorical_log_prob(logits[None], row)[0], abs=1e-5
            )
            assert result.entropy[t, n].item() == pytest.approx(
                reference.categorical_entropy(logits[None])[0], abs=1e-5
            )


@EXAMPLES
@given(SEED, SIZE, SIZE)
def test_acting_and_valuing_step_by_step_sees_what_evaluate_sees(seed, steps, envs):
    policy = lstm()
    observation, _, state, start = columns(seed, steps, envs)
    carried, actions, values = state, [], []
    with torch.no_grad():
        for t in range(steps):
            carried = reset_where(start[t].numpy(), carried)
            values.append(policy.value(observation[t], carried))
            action, carried = policy.act(observation[t], carried, None, None)
            actions.append(action)
        result = policy.evaluate(observation, torch.stack(actions), None, state, start)
        for other in range(4):  # greedy: no other action is more likely
            against = policy.evaluate(observation, torch.full((steps, envs), other), None, state, start)
            assert (against.log_prob <= result.log_prob + 1e-6).all()
    torch.testing.assert_close(result.value, torch.stack(values), rtol=1e-5, atol=1e-5)


@EXAMPLES
@given(SEED, SIZE, st.integers(2, 6))
def test_a_minibatch_of_columns_gives_those_columns_of_the_whole_batch(seed, steps, envs):
    policy = lstm()
    observation, action, state, start = columns(seed, steps, envs)
    index = torch.from_numpy(np.random.default_rng(seed).permutation(envs)[: envs // 2])
    with torch.no_grad():
        whole = policy.evaluate(observation, action, None, state, start)
        part = policy.evaluate(
            observation[:, index],
            action[:, index],
            None,
            tree_map(lambda leaf: leaf[index], state),
            start[:, index],
        )
    for got, wanted in zip(part, whole, strict=True):
        torch.testing.assert_close(got, wanted[:, index], rtol=1e-5, atol=1e-6)


def test_the_rollout_s_initial_state_is_used_unless_an_episode_starts_in_the_first_row():
    policy = lstm()
    observation, action, state, start = columns(1, 4, 3)
    start[:] = False
    start[0, 1] = True
    with torch.no_grad():
        carried = policy.evaluate(observation, action, None, state, start).value
        fresh = policy.evaluate(observation, action, None, policy.initial_state(3), start).value
    assert torch.equal(carried[:, 1], fresh[:, 1])
    assert ((carried - fresh)[:, [0, 2]].abs() > 1e-6).all()


def test_gradients_flow_back_along_an_episode_and_never_across_its_start():
    policy = lstm()
    observation, action, state, start = columns(2, 6, 2)
    start[:] = False
    start[3, 0] = True
    for row, reached in ((2, [1, 1, 1, 0, 0, 0]), (5, [0, 0, 0, 1, 1, 1])):
        leaf = observation.clone().requires_grad_()
        policy.evaluate(leaf, action, None, state, start).value[row, 0].backward()
        assert (leaf.grad[:, 0].abs().sum(-1) > 0).tolist() == [bool(k) for k in reached]
        assert (leaf.grad[:, 1] == 0).all(), "columns are apart"
    leaf = observation.clone().requires_grad_()
    policy.evaluate(leaf, action, None, state, start).value[5, 1].backward()
    assert (leaf.grad[:, 1].abs().sum(-1) > 0).all()


def test_the_gradient_of_the_parameters_is_that_of_stepping():
    policy = lstm()
    observation, action, state, start = columns(3, 6, 3)
    policy.evaluate(observation, action, None, state, start).value.square().sum().backward()
    whole = [parameter.grad.clone() for parameter in policy.parameters() if parameter.grad is not None]
    policy.zero_grad()
    carried, total = state, torch.zeros(())
    for t in range(6):
        carried = reset_where(start[t].numpy(), carried)
        total = total + policy.value(observation[t], carried).square().sum()
        _, carried = policy.act(observation[t], carried, None, None)
    total.backward()
    stepped = [parameter.grad for parameter in policy.parameters() if parameter.grad is not None]
    assert len(whole) == len(stepped) == 2 + 4 + 2
    for one, other in zip(whole, stepped, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_reset_clears_even_a_memory_that_is_not_a_number():
    state = (torch.full((2, 3), torch.nan), torch.full((2, 3), torch.inf))
    hidden, cell = reset_where(np.array([True, False]), state)
    assert (hidden[0] == 0).all() and (cell[0] == 0).all() and hidden[1].isnan().all()
    assert (
        reset_where(np.array([False, False]), state) is state and reset_where(np.array([True]), None) is None
    )


def test_flat_rows_are_refused():
    policy = lstm()
    with pytest.raises(ValueError, match="whole columns"):
        policy.evaluate(torch.zeros(4, 3), torch.zeros(4), None, policy.initial_state(4), None)
