"""`distrl show bellman`: the exact solutions against loops and played episodes, and the critic against them."""

from __future__ import annotations

from pathlib import Path

import gymnasium
import numpy as np
import pytest

from distrl.errors import BadInput
from distrl.resolve import resolve
from distrl.session import run_training
from distrl.show import bellman, gridworld
from distrl.show.style import read_numbers

GAMMA = 0.95
FREE = gridworld.make_model().is_free_S


def random_policy(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(4), size=16)


@pytest.mark.parametrize("seed", range(3))
def test_the_exact_values_satisfy_the_bellman_equations_written_as_loops(seed: int) -> None:
    model, policy = gridworld.make_model(slip=0.3), random_policy(seed)
    found = bellman.policy_values(model, policy, GAMMA)
    for s in range(16):
        for a in range(4):
            future = sum(model.transition_SAS[s, a, t] * found.v_S[t] for t in range(16))
            assert abs(found.q_SA[s, a] - (model.reward_SA[s, a] + GAMMA * future)) < 1e-10
        expected = sum(policy[s, a] * found.q_SA[s, a] for a in range(4)) if model.is_free_S[s] else 0.0
        assert abs(found.v_S[s] - expected) < 1e-10


def test_the_optimal_values_satisfy_their_equation_and_no_policy_is_better() -> None:
    model = gridworld.make_model()
    best = bellman.optimal_values(model, GAMMA)
    backup = model.reward_SA + GAMMA * model.transition_SAS @ best.v_S
    np.testing.assert_allclose(best.v_S, np.where(FREE, backup.max(axis=1), 0.0), atol=1e-10)
    np.testing.assert_allclose(bellman.policy_values(model, best.policy_SA, GAMMA).v_S, best.v_S, atol=1e-10)
    for seed in range(20):
        worse = bellman.policy_values(model, random_policy(seed), GAMMA).v_S
        assert (worse <= best.v_S + 1e-12).all() and (worse < best.v_S - 0.01).any()


def test_played_episodes_have_the_exact_values_and_visits() -> None:
    env = gymnasium.make(gridworld.ENV_ID.partition(":")[2])
    policy, generator = random_policy(5), np.random.default_rng(0)
    model = gridworld.make_model()
    exact = bellman.policy_values(model, policy, GAMMA)
    returns: dict[int, list[float]] = {}
    count = np.zeros(16)
    state, _ = env.reset(seed=3)
    for _ in range(3000):
        state, _ = env.reset()
        start, total, discount, over = state, 0.0, 1.0, False
        while not over:
            count[state] += 1
            action = int(np.searchsorted(np.cumsum(policy[state]), generator.random()))
            state, reward, terminated, truncated, _ = env.step(min(action, 3))
            total, discount, over = (
                total + discount * float(reward),
                discount * GAMMA,
                terminated or truncated,
            )
        returns.setdefault(start, []).append(total)
    assert set(returns) == set(np.flatnonzero(FREE))
    for start, sample in returns.items():
        error = np.std(sample) / np.sqrt(len(sample))
        assert abs(np.mean(sample) - exact.v_S[start]) < 4.5 * error, start
    visits = bellman.visits(model, exact.policy_SA)
    assert visits.sum() == pytest.approx(1.0)
    np.testing.assert_allclose(count / count.sum(), visits, atol=0.01)
    assert np.ptp(visits[FREE]) > 0.05, "a constant would be close too"


def test_a_wall_and_the_edge_hold_and_a_slip_goes_sideways() -> None:
    model = gridworld.make_model(slip=0.2)
    up, right, down, left = range(4)
    assert model.transition_SAS[8, up, 4] == pytest.approx(0.8)
    assert model.transition_SAS[8, up, 9] == pytest.approx(0.1)
    assert model.transition_SAS[8, up, 8] == pytest.approx(0.1), "left of it is the edge"
    assert model.transition_SAS[4, right, 4] == pytest.approx(0.8), "the wall"
    assert model.transition_SAS[2, right, 3] == pytest.approx(0.8)
    assert model.reward_SA[2, right] == pytest.approx(0.8 * 1.0 - 0.04)
    assert model.reward_SA[6, right] == pytest.approx(-0.8 - 0.04)
    np.testing.assert_allclose(model.transition_SAS[FREE].sum(axis=2), 1.0)
    assert not model.transition_SAS[~FREE].any()
    assert {up, right, down, left} == {0, 1, 2, 3}


def test_the_critic_trained_by_the_ordinary_path_is_near_the_exact_values(
    gridworld_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bellman.png"
    bellman.show(gridworld_run, out, seed=1)
    numbers = read_numbers(out)
    assert out.read_bytes().startswith(b"\x89PNG")
    exact, critic = np.array(numbers["exact"]["v_S"]), np.array(numbers["critic"])
    rmse = float(np.sqrt(np.mean((critic - exact)[FREE] ** 2)))
    assert numbers["error"]["rmse"] == pytest.approx(rmse)
    assert rmse < 0.12
    assert numbers["error"]["max"] < 0.3
    spread = float(np.std(exact[FREE]))
    assert spread > 0.12, "a critic that says the same everywhere would not pass"
    assert numbers["optimality_gap_by_visits"] > -1e-9


def test_a_run_whose_values_nobody_knows_is_bad_input(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    flags = {"workers": 0, "run_dir": str(run_dir), "total_steps": 64, "num_steps": 8, "eval_episodes": 0}
    run_training(resolve(flags), quiet=True)
    with pytest.raises(BadInput, match="CartPole-v1"):
        bellman.show(run_dir, tmp_path / "bellman.png", seed=1)
