"""`distrl show variance`: the gradient estimates, their spread, and that a trained critic lowers it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from distrl.errors import BadInput
from distrl.maths.losses import policy_gradient
from distrl.resolve import resolve
from distrl.session import run_training
from distrl.show import variance
from distrl.show.style import read_numbers
from distrl.show.trained import load_with_critic


def test_the_episodes_gradients_add_up_to_that_of_the_whole_batch(gridworld_run: Path) -> None:
    loaded = load_with_critic(gridworld_run, trust_run=False)
    policy = loaded.policy
    (trajectory,) = variance.collect(loaded, num_episodes=4, seed=1, num_envs=4)
    without_EP, with_EP = variance.episode_gradients(policy, [trajectory], gamma=0.9)
    return_TN = np.zeros(trajectory.reward.shape)
    later = np.zeros(4)
    for t in reversed(range(trajectory.num_steps)):
        later = trajectory.reward[t] + 0.9 * later * ~trajectory.done[t]
        return_TN[t] = later
    rows = trajectory.valid
    log_prob = policy.evaluate(
        torch.from_numpy(trajectory.observation[rows]),
        torch.from_numpy(trajectory.action[rows]),
        None,
        None,
        None,
    ).log_prob
    for weight_TN, found_EP in ((return_TN, without_EP), (return_TN - trajectory.value, with_EP)):
        loss, _ = policy_gradient(log_prob, torch.from_numpy(weight_TN[rows]), count=1.0)
        whole = torch.autograd.grad(-loss, list(policy.actor.parameters()), retain_graph=True)
        np.testing.assert_allclose(
            found_EP.sum(axis=0), torch.cat([one.flatten() for one in whole]).numpy(), rtol=1e-3, atol=1e-4
        )


def test_the_spread_is_the_trace_of_the_covariance_also_of_a_resample() -> None:
    generator = np.random.default_rng(0)
    without_EP, with_EP = generator.normal(2, 3, (30, 7)), generator.normal(2, 1, (30, 7))
    found = variance.compare(without_EP, with_EP, 0.0, generator)
    assert found.trace_without == pytest.approx(np.trace(np.cov(without_EP.T)))
    assert found.ratio == pytest.approx(np.trace(np.cov(with_EP.T)) / np.trace(np.cov(without_EP.T)))
    assert found.ratio_interval[0] < found.ratio < found.ratio_interval[1] < 0.5
    count = generator.multinomial(30, np.full(30, 1 / 30))
    resampled = np.repeat(with_EP, count, axis=0)
    trace = variance._trace(with_EP @ with_EP.T, count[None].astype(float))
    assert trace[0] == pytest.approx(np.trace(np.cov(resampled.T)))


def test_a_baseline_leaves_the_mean_where_it_is(gridworld_run: Path) -> None:
    loaded = load_with_critic(gridworld_run, trust_run=False)
    trajectories = variance.collect(loaded, num_episodes=256, seed=3)
    without_EP, with_EP = variance.episode_gradients(loaded.policy, trajectories, loaded.config.recipe.gamma)
    generator = np.random.default_rng(0)
    assert variance.compare(without_EP, with_EP, 0.0, generator).mean_difference < 3
    shifted = with_EP + 0.5 * with_EP.std(axis=0)
    assert variance.compare(without_EP, shifted, 0.0, generator).mean_difference > 6


def test_a_trained_critic_lowers_the_variance_and_an_untrained_one_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(variance, "SMALL_RUN", {**variance.SMALL_RUN, "total_steps": 12_000})
    monkeypatch.setattr(variance, "NUM_POINTS", 2)
    out = tmp_path / "variance.png"
    variance.show(None, out, seed=1, num_episodes=48)
    assert out.read_bytes().startswith(b"\x89PNG")
    first, last = read_numbers(out)["points"]
    assert first["env_steps"] == 0 and last["env_steps"] >= 12_000
    assert first["ratio"] == pytest.approx(1.0, abs=0.1)
    assert last["ratio_interval"][1] < 0.9
    assert last["trace_with"] / last["trace_without"] == pytest.approx(last["ratio"])


def test_a_run_without_a_critic_is_bad_input(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    flags = {
        "workers": 0,
        "algo": "reinforce",
        "run_dir": str(run_dir),
        "total_steps": 10,
        "eval_episodes": 0,
    }
    run_training(resolve(flags), quiet=True)
    with pytest.raises(BadInput, match="no critic"):
        variance.show(run_dir, tmp_path / "variance.png", seed=1)
