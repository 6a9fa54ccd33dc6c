"""`distrl show gae`: Monte-Carlo truth, bias and variance on an MDP where all three are known exactly."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from distrl.show import bellman, gae
from distrl.show.branches import Branching, State
from distrl.show.gridworld import make_model
from distrl.show.style import read_numbers
from distrl.show.trained import load_with_critic

GAMMA = 0.95
EFFORT = gae.Effort(num_states=8, stride=3, truth_streams=192, estimate_streams=192, streams_at_once=16)


@pytest.fixture(scope="module")
def branching(gridworld_run: Path) -> Branching:
    return Branching(load_with_critic(gridworld_run, trust_run=False), seed=2)


@pytest.fixture(scope="module")
def states(branching: Branching) -> list[State]:
    return branching.trajectory(EFFORT.num_states, EFFORT.stride)[2]


@pytest.fixture(scope="module")
def measured(branching: Branching, states: list[State]) -> gae.Measured:
    return gae.measure(branching, states, GAMMA, EFFORT)


def exact_at(branching: Branching, states: list[State]) -> tuple[np.ndarray, np.ndarray]:
    """[S, J]: the true advantage, and the exact bias of lambda = 0, at the trajectory's states."""
    model = make_model()
    policy_SA, critic_S = bellman.learned(branching.policy, 16)
    q_SA = bellman.policy_values(model, policy_SA, GAMMA).q_SA
    critic_S = np.where(model.is_end_S, 0.0, critic_S)
    one_step_SA = model.reward_SA + GAMMA * model.transition_SAS @ critic_S

    def centred(x_SA: np.ndarray) -> np.ndarray:
        return x_SA - np.sum(policy_SA * x_SA, axis=1, keepdims=True)

    cells = [int(state.snapshot["observation"][0]) for state in states]
    return centred(q_SA)[cells], (centred(one_step_SA) - centred(q_SA))[cells]


def test_the_truth_is_the_exact_advantage_within_its_standard_error(
    branching: Branching, states: list[State], measured: gae.Measured
) -> None:
    exact_SJ, _ = exact_at(branching, states)
    assert np.abs(exact_SJ).max() > 0.1
    z_SJ = (measured.truth_SJ - exact_SJ) / np.maximum(measured.truth_error_SJ, 1e-6)
    assert np.abs(z_SJ).max() < 4.5
    assert 0.5 < np.sqrt(np.mean(z_SJ**2)) < 1.6, "the stated errors are as large as the true ones"


def test_the_bias_of_lambda_zero_is_what_the_model_says(
    branching: Branching, states: list[State], measured: gae.Measured
) -> None:
    _, exact_SJ = exact_at(branching, states)
    z_SJ = (measured.bias_LSJ[0] - exact_SJ) / np.maximum(measured.bias_error_LSJ[0], 1e-6)
    assert np.abs(z_SJ).max() < 4.5
    expected = float(np.sum(measured.weight_SJ * exact_SJ**2, axis=1).mean())
    found_L, error_L = measured.bias_squared()
    assert abs(found_L[0] - expected) < 4 * error_L[0]


def test_lambda_one_has_no_bias_and_the_most_variance(measured: gae.Measured) -> None:
    found_L, error_L = measured.bias_squared()
    assert abs(found_L[-1]) < 3 * error_L[-1]
    variance_L = measured.variance()
    assert (np.diff(variance_L) > 0).all()
    assert variance_L[-1] > 1.5 * variance_L[0]


def test_a_state_is_put_back_as_it_was(branching: Branching) -> None:
    trajectory, action, states = branching.trajectory(4, 5)
    group = branching.group(4 * 3, 10)
    try:
        for number, state in enumerate(states):
            columns = branching.play(group, state, number, batch=0, horizon=10)
            np.testing.assert_allclose(columns.value[0], trajectory.value[5 * number, 0], rtol=1e-5)
            assert action[5 * number, 0] in state.action_J
            assert len({tuple(column) for column in columns.reward.T}) > 1, "futures differ"
    finally:
        group.close()


def test_the_weights_are_the_policys_probabilities(branching: Branching, states: list[State]) -> None:
    policy_SA, _ = bellman.learned(branching.policy, 16)
    for state in states:
        np.testing.assert_array_equal(state.action_J, range(4))
        np.testing.assert_allclose(
            state.weight_J, policy_SA[int(state.snapshot["observation"][0])], rtol=1e-5
        )


def test_the_horizon_leaves_two_percent() -> None:
    assert 0.98 ** gae.horizon(0.98) < gae.CUT <= 0.98 ** (gae.horizon(0.98) - 1)
    assert gae.horizon(1.0) == gae.MAX_HORIZON


def test_a_long_horizon_is_paid_for_by_fewer_streams() -> None:
    whole = gae.Effort()
    assert whole.within(gae.BUDGET, num_actions=2, cut=gae.horizon(0.98)) == whole
    less = whole.within(gae.BUDGET, num_actions=4, cut=gae.horizon(0.99))
    assert 0 < less.estimate_streams <= less.truth_streams < whole.truth_streams
    streams = less.truth_streams + less.estimate_streams
    assert less.num_states * 4 * gae.horizon(0.99) * streams < 1.2 * gae.BUDGET


def test_the_figure_and_its_numbers_are_written(
    gridworld_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = gae.Effort(num_states=3, stride=4, truth_streams=8, estimate_streams=8, streams_at_once=8)
    monkeypatch.setattr(gae, "Effort", lambda: small)
    out = tmp_path / "gae.png"
    gae.show(gridworld_run, out, seed=4)
    assert out.read_bytes().startswith(b"\x89PNG")
    numbers = read_numbers(out)
    assert [one["lambda"] for one in numbers["lambdas"]] == list(gae.LAMBDAS)
    for one in numbers["lambdas"]:
        assert one["standard_deviation"] == pytest.approx(math.sqrt(one["variance"]))
    np.testing.assert_allclose(numbers["advantage"][0], numbers["td_error"])
    assert len(numbers["td_error"]) == 12 and numbers["versions"]["torch"]
