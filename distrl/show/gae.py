r"""Generalised advantage estimation, seen: TD errors, what each lambda makes of them, its bias and variance.

    delta_t  = r_t + gamma (1 - terminated_t) V(s_{t+1}) - V(s_t)
    A_t(lam) = delta_t + gamma lam (1 - done_t) A_{t+1}(lam)      Schulman et al. 2016, arXiv 1506.02438, eq. 16

The truth. At chosen states s of the trajectory the env is put back and each action a tried, the policy
going on from there, over many noise streams:

    Q(s, a) = E[sum_k gamma^k r_k | s, a],    A(s, a) = Q(s, a) - sum_b w_b Q(s, b),    w_b = pi(b|s)

What an estimate adds alike to all actions of a state has no effect on the policy gradient (the score's
mean is zero), so estimates are centred by the same weights before they are compared with the truth:

    bias(s, a) = E[A(lam) | s, a] - sum_b w_b E[A(lam) | s, b] - A(s, a)
    bias^2     = mean over s of sum_a w_a bias(s, a)^2        less what the standard errors alone would give
    variance   = mean over s of sum_a w_a Var[A(lam) | s, a]

Truth and estimates come from different noise streams, so that lambda = 1, whose bias is zero in theory, is
a test of the measurement. All advantages are `distrl.maths.advantage.gae`'s.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from distrl.maths.advantage import gae
from distrl.show.branches import Branching, Columns, State
from distrl.show.style import BLUE, INK, RED, SEQUENCE, SOFT, legend_above, page, write_numbers
from distrl.show.trained import describe, load_with_critic, run_directory

Float = NDArray[np.float64]
LAMBDAS = (0.0, 0.5, 0.9, 0.95, 1.0)
SMALL_RUN = {
    "env": "CartPole-v1", "algo": "ppo", "total_steps": 16_384, "num_envs": 8, "num_steps": 32, "gamma": 0.98,
    "lam": 0.9, "learning_rate": 2.5e-3, "value_coef": 1.0, "max_grad_norm": 10.0,
}  # fmt: skip
CUT = 0.02  # branches are as long as it takes for gamma^T to fall below this, ...
MAX_HORIZON = 1000  # ... but no longer than this
BUDGET = 640_000  # env steps of all branches together


@dataclass(frozen=True)
class Effort:
    """How much is measured: states of the trajectory, steps between them, noise streams for each use."""

    num_states: int = 10
    stride: int = 16
    truth_streams: int = 96
    estimate_streams: int = 64
    streams_at_once: int = 16

    def within(self, budget: int, num_actions: int, cut: int) -> Effort:
        """With fewer streams, so that branches `cut` steps long take `budget` env steps at most, or nearly so."""
        wanted = self.truth_streams + self.estimate_streams
        share = min(1.0, budget / (self.num_states * num_actions * cut * wanted))

        def scaled(streams: int) -> int:
            return max(1, round(share * streams / self.streams_at_once)) * self.streams_at_once

        return replace(
            self, truth_streams=scaled(self.truth_streams), estimate_streams=scaled(self.estimate_streams)
        )


@dataclass(frozen=True)
class Measured:
    """What the branches say. S chosen states, J first actions, L lambdas."""

    weight_SJ: Float  # 0 where a state has fewer actions
    truth_SJ: Float  # A(s, a) by Monte Carlo
    truth_error_SJ: Float  # its standard error
    bias_LSJ: Float
    bias_error_LSJ: Float
    variance_LSJ: Float

    def bias_squared(self) -> tuple[Float, Float]:
        """[L]: bias^2 averaged over actions and states, unbiased by its own noise, and its standard error.

        Of a measured bias b with standard error e, b^2 - e^2 has the mean bias^2 and, b being normal, the
        variance 2 e^4 + 4 bias^2 e^2. Actions of one state are taken as fully dependent, states as not at all.
        """
        b2, e2 = self.bias_LSJ**2, self.bias_error_LSJ**2
        mean_L = np.sum(self.weight_SJ * (b2 - e2), axis=2).mean(axis=1)
        spread_LSJ = np.sqrt(2 * e2**2 + 4 * np.maximum(b2 - e2, 0.0) * e2)
        error_LS = np.sum(self.weight_SJ * spread_LSJ, axis=2)
        return mean_L, np.sqrt(np.sum(error_LS**2, axis=1)) / self.weight_SJ.shape[0]

    def variance(self) -> Float:
        """[L]: the variance of the estimate, given state and action, averaged over both."""
        return np.sum(self.weight_SJ * self.variance_LSJ, axis=2).mean(axis=1)


def horizon(gamma: float) -> int:
    """Steps until gamma^T < CUT; what lies beyond is the critic's to say."""
    return MAX_HORIZON if gamma >= 1 else min(MAX_HORIZON, math.ceil(math.log(CUT) / math.log(gamma)))


def advantages(columns: Columns, gamma: float) -> Float:
    """[L, T, N]: the advantage for each of LAMBDAS."""
    return np.stack([gae(*columns.for_gae, gamma, lam) for lam in LAMBDAS])


def measure(branching: Branching, states: list[State], gamma: float, effort: Effort) -> Measured:
    """Bias and variance of each lambda at the states' first actions, from branches."""
    cut = horizon(gamma)
    num_actions = max(len(state.action_J) for state in states)
    shape = (len(states), num_actions)
    weight, truth, truth_error = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    bias, bias_error, variance = (np.zeros((len(LAMBDAS), *shape)) for _ in range(3))
    group = branching.group(num_actions * effort.streams_at_once, cut)
    num_batches = math.ceil((effort.truth_streams + effort.estimate_streams) / effort.streams_at_once)
    try:
        for s, state in enumerate(states):
            batches = []
            for batch in range(num_batches):
                columns = branching.play(group, state, s, batch, cut)
                first = advantages(columns, gamma)[:, 0]
                batches.append(first.reshape(len(LAMBDAS), num_actions, effort.streams_at_once))
            all_LJS = np.concatenate(batches, axis=2)
            weight[s] = state.weight_J
            centred_LJS = all_LJS - np.tensordot(state.weight_J, all_LJS, (0, 1))[:, None]
            # lambda = 1 is the return less V(s), and V(s) is gone by centring: the Monte-Carlo advantage
            truth[s], truth_error[s] = _mean_and_error(centred_LJS[-1, :, : effort.truth_streams])
            estimate, error = _mean_and_error(centred_LJS[:, :, effort.truth_streams :])
            bias[:, s] = estimate - truth[s]
            bias_error[:, s] = np.hypot(error, truth_error[s])
            variance[:, s] = all_LJS[:, :, effort.truth_streams :].var(axis=2, ddof=1)
    finally:
        group.close()
    return Measured(weight, truth, truth_error, bias, bias_error, variance)


def _mean_and_error(sample: Float) -> tuple[Float, Float]:
    """Mean and its standard error over the last axis: streams are independent, actions share them."""
    return sample.mean(axis=-1), sample.std(axis=-1, ddof=1) / math.sqrt(sample.shape[-1])


CAPTION = (
    "Top: the TD error says whether a step went better than the critic expected. Middle: an advantage is the sum of the "
    "TD errors to come, each step further off counting γλ times less, so λ = 0 sees one step and λ = 1 the whole future. "
    "Black dots: the true advantage of the action taken, by Monte Carlo (bars: 2 standard errors). Bottom: every λ against "
    "that truth. A small λ believes the critic and errs with it (bias, which no batch averages out); a large one believes "
    "what happened to follow (noise, which a batch does). An error that shifts all actions of a state alike, as a critic "
    "too high or too low does to the lines, never reaches the policy gradient and is not counted as bias. {states} states, "
    "{actions} actions each; {truth} futures for each truth and {estimates} others for each estimate, {cut} steps far; mean "
    "standard error of the truth {error:.2g}."
)


def show(run_dir: Path | None, out: Path, seed: int, trust_run: bool = False) -> None:
    """Draws the figure and writes its numbers, for `run_dir`'s newest critic or one trained here."""
    effort = Effort()
    with run_directory(run_dir, seed, **SMALL_RUN) as path:
        loaded = load_with_critic(path, trust_run)
    branching = Branching(loaded, seed)
    gamma = loaded.config.recipe.gamma
    trajectory, action, states = branching.trajectory(effort.num_states, effort.stride)
    effort = effort.within(BUDGET, max(len(state.action_J) for state in states), horizon(gamma))
    print(f"playing {len(states)} states on, {horizon(gamma)} steps far", file=sys.stderr)
    measured = measure(branching, states, gamma, effort)
    subtitle = f"{describe(loaded, run_dir)}; gamma {gamma:g}"
    _draw(out, subtitle, trajectory, action, states, measured, gamma, effort)
    write_numbers(out, "gae", numbers(loaded.config.env, seed, trajectory, states, measured, gamma, effort))
    print(f"figure     {out}\nnumbers    {out.with_suffix('.json')}", file=sys.stderr)


def numbers(
    env: str,
    seed: int,
    trajectory: Columns,
    states: list[State],
    measured: Measured,
    gamma: float,
    effort: Effort,
) -> dict[str, Any]:
    """All that the figure shows, and the measurements behind it."""
    bias2_L, bias2_error_L = measured.bias_squared()
    per_lambda = [
        {
            "lambda": lam,
            "bias_squared": bias2_L[index],
            "bias_squared_standard_error": bias2_error_L[index],
            "bias_rms": math.sqrt(max(bias2_L[index], 0.0)),
            "variance": measured.variance()[index],
            "standard_deviation": math.sqrt(measured.variance()[index]),
        }
        for index, lam in enumerate(LAMBDAS)
    ]
    return {
        "env": env,
        "seed": seed,
        "gamma": gamma,
        "horizon": horizon(gamma),
        "effort": vars(effort),
        "lambdas": per_lambda,
        "td_error": advantages(trajectory, gamma)[0, :, 0],
        "value": trajectory.value[:, 0],
        "done": trajectory.done[:, 0],
        "advantage": advantages(trajectory, gamma)[:, :, 0],
        "state_step": np.arange(len(states)) * effort.stride,
        "state_action": [state.action_J for state in states],
        **vars(measured),
    }


def _draw(
    out: Path, subtitle: str, trajectory: Columns, action: Float, states: list[State], measured: Measured,
    gamma: float, effort: Effort,
) -> None:  # fmt: skip
    caption = CAPTION.format(
        states=len(states),
        actions=measured.weight_SJ.shape[1],
        truth=effort.truth_streams,
        estimates=effort.estimate_streams,
        cut=horizon(gamma),
        error=float(np.mean(measured.truth_error_SJ)),
    )
    with page(out, "Generalised advantage estimation", subtitle, caption, size=(11.0, 8.6)) as figure:
        grid = figure.add_gridspec(3, 2, height_ratios=(0.85, 1.25, 1.2))
        _draw_td_errors(figure.add_subplot(grid[0, :]), trajectory, gamma)
        _draw_advantages(figure.add_subplot(grid[1, :]), trajectory, action, states, measured, gamma, effort)
        _draw_bias(figure.add_subplot(grid[2, 0]), measured)
        _draw_deviation(figure.add_subplot(grid[2, 1]), measured)


def _ends(axes: Axes, trajectory: Columns, label: bool = False) -> None:
    for step in np.flatnonzero(trajectory.done[:, 0]):
        axes.axvline(step + 0.5, color=SOFT, lw=1, ls=(0, (2, 3)))
        if label:
            kind = "terminated" if trajectory.terminated[step, 0] else "truncated"
            axes.annotate(
                f" {kind}",
                (step + 0.5, 0.04),
                xycoords=("data", "axes fraction"),
                va="bottom",
                size=9,
                color=SOFT,
            )
    axes.set_xlim(-1, len(trajectory.done))


def _draw_td_errors(axes: Axes, trajectory: Columns, gamma: float) -> None:
    delta_T = advantages(trajectory, gamma)[0, :, 0]
    axes.axhline(0, color=SOFT, lw=0.8)
    axes.vlines(
        np.arange(len(delta_T)), 0, delta_T, color=[BLUE if delta > 0 else RED for delta in delta_T], lw=2
    )
    _ends(axes, trajectory, label=True)
    axes.set_title("TD errors along a real trajectory:  r + γ V(s′) − V(s)")
    axes.set_ylabel("TD error")
    axes.tick_params(labelbottom=False)


def _draw_advantages(
    axes: Axes,
    trajectory: Columns,
    action: Float,
    states: list[State],
    measured: Measured,
    gamma: float,
    effort: Effort,
) -> None:
    axes.axhline(0, color=SOFT, lw=0.8)
    for lam, color, advantage in zip(LAMBDAS, SEQUENCE, advantages(trajectory, gamma)[:, :, 0], strict=True):
        axes.plot(advantage, color=color, lw=1.7, label=f"λ = {lam:g}")
    steps = np.arange(len(states)) * effort.stride
    taken = [
        (step, measured.truth_SJ[s, j], 2 * measured.truth_error_SJ[s, j])
        for s, (step, state) in enumerate(zip(steps, states, strict=True))
        for j in range(len(state.action_J))
        if np.array_equal(state.action_J[j], action[step, 0])
    ]
    if taken:
        x, y, error = zip(*taken, strict=True)
        axes.errorbar(
            x, y, error, fmt="o", color=INK, ms=4.5, mec="white", mew=0.8, lw=1.3, label="truth", zorder=5
        )
    _ends(axes, trajectory)
    axes.set_title("The advantage, for several λ")
    axes.set_ylabel("advantage")
    axes.set_xlabel("step of the trajectory")
    legend_above(axes)


def _draw_bias(axes: Axes, measured: Measured) -> None:
    bias2_L, error_L = measured.bias_squared()
    low, high = (np.sqrt(np.maximum(bias2_L + sign * 2 * error_L, 0.0)) for sign in (-1, 1))
    middle = np.sqrt(np.maximum(bias2_L, 0.0))
    x = np.arange(len(LAMBDAS))
    axes.bar(x, middle, color=SEQUENCE, width=0.62)
    axes.errorbar(x, middle, [middle - low, high - middle], fmt="none", ecolor=INK, lw=1.3, capsize=3)
    _label(axes, x, high, [f"{value:.2g}" if value > 0 else "≈ 0" for value in middle])
    axes.set_title("Bias: what the critic gets wrong (rms, ±2 s.e.)")


def _draw_deviation(axes: Axes, measured: Measured) -> None:
    deviation = np.sqrt(measured.variance())
    x = np.arange(len(LAMBDAS))
    axes.bar(x, deviation, color=SEQUENCE, width=0.62)
    _label(axes, x, deviation, [f"{value:.2g}" for value in deviation])
    axes.set_title("Standard deviation of one estimate: noise")


def _label(axes: Axes, x: NDArray[np.int64], top: Float, texts: list[str]) -> None:
    for at, height, text in zip(x, top, texts, strict=True):
        axes.annotate(text, (at, height), (0, 4), textcoords="offset points", ha="center", size=9, color=INK)
    axes.set_xticks(x, [f"λ = {lam:g}" for lam in LAMBDAS])
    axes.grid(axis="x", visible=False)
    axes.set_ylabel("in units of return")
    axes.margins(y=0.14)
    axes.set_ylim(bottom=0)
