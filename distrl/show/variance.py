r"""What a baseline buys: the variance of the policy-gradient estimate with V(s) subtracted and without.

    g_i = sum_t grad log pi(a_t|s_t) w_t        one episode's estimate of the gradient
    w_t = G_t                                   the return to go          (Williams 1992)
    w_t = G_t - V(s_t)                          the same with a baseline  (Sutton and Barto 2018, eq. 13.11)

Both have the same mean, since E[grad log pi(a|s) V(s)] = V(s) grad sum_a pi(a|s) = 0. Their spread is the
trace of the covariance over episodes: tr Cov(g) = sum over parameters of Var(g_i). The two are taken from
the same episodes, through `distrl.maths.losses.policy_gradient`, the loss that trains; advantages are not
normalised here, which would hide the scale that is compared.

Shape suffixes: E episodes, P parameters of the policy.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from numpy.typing import NDArray

from distrl.envs import EnvGroup
from distrl.evaluation import Loaded
from distrl.maths.advantage import discounted_sum
from distrl.maths.losses import policy_gradient
from distrl.maths.random import derive_seed, stream
from distrl.rollout import Collector
from distrl.show.style import BLUE, GRID, INK, RED, SOFT, page, write_numbers
from distrl.show.trained import describe, env_steps_of, kept_checkpoints, load_with_critic, run_directory
from distrl.trajectory import Trajectory
from distrl.trees import tree_map

Float = NDArray[np.float64]
SMALL_RUN = {
    "env": "CartPole-v1", "algo": "reinforce-baseline", "total_steps": 60_000, "num_envs": 4, "learning_rate": 3e-3,
    "checkpoint_every": 10, "keep_every": 10,
}  # fmt: skip
NUM_POINTS = 6  # checkpoints looked at
NUM_RESAMPLES = 1000


@dataclass(frozen=True)
class Comparison:
    """Two estimates of one gradient from the same episodes: spread, and 95 % bootstrap intervals."""

    episodes: int
    return_mean: float
    trace_without: float
    trace_with: float
    trace_without_interval: tuple[float, float]
    trace_with_interval: tuple[float, float]
    ratio: float  # with / without: below 1 the baseline helps
    ratio_interval: tuple[float, float]
    mean_difference: (
        float  # |mean(g_with - g_without)|^2 over what noise alone gives: near 1 where the means agree
    )


def collect(loaded: Loaded, num_episodes: int, seed: int, num_envs: int = 16) -> list[Trajectory]:
    """At least `num_episodes` whole episodes of the policy, as REINFORCE collects them: a column is an episode."""
    spec = dataclasses.replace(loaded.env, vectorization="sync", autoreset="disabled", repro_dir=None)
    seed = derive_seed(seed, "variance episodes")
    group = EnvGroup(spec, index=0, num_envs=num_envs, first_env=0, seed=seed)
    try:
        collector = Collector(group, loaded.policy, seed, "episodes", num_steps=0)
        return [
            collector.collect(round_, version=0).trajectory for round_ in range(-(-num_episodes // num_envs))
        ]
    finally:
        group.close()


def episode_gradients(policy: Any, trajectories: list[Trajectory], gamma: float) -> tuple[Float, Float]:
    """[E, P] each: every episode's gradient estimate without and with the baseline V(s)."""
    without: list[Float] = []
    with_: list[Float] = []
    for trajectory in trajectories:
        return_TN = discounted_sum(trajectory.reward, trajectory.done, gamma)
        for n in range(trajectory.num_envs):
            length = int(trajectory.valid[:, n].sum())
            log_prob_T = _log_prob(policy, trajectory, n, length)
            weights = (return_TN[:length, n], return_TN[:length, n] - trajectory.value[:length, n])
            for weight_T, found in zip(weights, (without, with_), strict=True):
                found.append(_gradient(policy, log_prob_T, torch.from_numpy(weight_T)))
    return np.stack(without), np.stack(with_)


def _log_prob(policy: Any, trajectory: Trajectory, n: int, length: int) -> torch.Tensor:
    """log pi(a_t|s_t) [T] of episode n, with its graph."""

    def column(array: NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array[:length, n : n + 1]))

    mask = trajectory.extra.get("action_mask")
    columns = (tree_map(column, trajectory.observation), column(trajectory.action), tree_map(column, mask))
    if policy.recurrent:
        state = tree_map(lambda leaf: torch.from_numpy(leaf[n : n + 1]), trajectory.initial_state)
        evaluation = policy.evaluate(*columns, state, column(trajectory.episode_start))
        return evaluation.log_prob[:, 0]
    flat = (tree_map(lambda leaf: leaf.flatten(0, 1), tree) for tree in columns)
    return policy.evaluate(*flat, None, None).log_prob


def _gradient(policy: Any, log_prob_T: torch.Tensor, weight_T: torch.Tensor) -> Float:
    """[P]: the gradient of sum_t log pi(a_t|s_t) w_t, float64."""
    loss, _ = policy_gradient(log_prob_T, weight_T, count=1.0)  # count = 1: a sum
    parameters = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    found = torch.autograd.grad(-loss, parameters, retain_graph=True, allow_unused=True)
    return torch.cat([part.flatten() for part in found if part is not None]).double().numpy()


def compare(
    without_EP: Float, with_EP: Float, return_mean: float, generator: np.random.Generator
) -> Comparison:
    """The spread of the two estimates, episodes resampled together for the intervals."""
    num = len(without_EP)
    grams = [gradient_EP @ gradient_EP.T for gradient_EP in (without_EP, with_EP)]
    count_BE = generator.multinomial(num, np.full(num, 1 / num), size=NUM_RESAMPLES).astype(np.float64)
    whole = [float(_trace(gram, np.ones((1, num)))[0]) for gram in grams]
    resampled = [_trace(gram, count_BE) for gram in grams]
    difference_EP = with_EP - without_EP
    noise = float(difference_EP.var(axis=0, ddof=1).sum()) / num
    shift = float(np.square(difference_EP.mean(axis=0)).sum())
    return Comparison(
        episodes=num,
        return_mean=return_mean,
        trace_without=whole[0],
        trace_with=whole[1],
        trace_without_interval=_interval(resampled[0]),
        trace_with_interval=_interval(resampled[1]),
        ratio=whole[1] / whole[0],
        ratio_interval=_interval(resampled[1] / resampled[0]),
        mean_difference=shift / noise if noise else math.nan,
    )


def _trace(gram_EE: Float, count_BE: Float) -> Float:
    """[B]: tr Cov of the episodes, each taken count times: (sum |g_i|^2 - |sum g_i|^2 / n) / (n - 1)."""
    num = gram_EE.shape[0]
    squares = count_BE @ np.diag(gram_EE)
    total = np.einsum("be,ef,bf->b", count_BE, gram_EE, count_BE, optimize=True)
    return (squares - total / num) / (num - 1)


def _interval(sample_B: Float) -> tuple[float, float]:
    low, high = np.percentile(sample_B, [2.5, 97.5])
    return float(low), float(high)


def measure(loaded: Loaded, num_episodes: int, seed: int) -> Comparison:
    """The comparison for one checkpoint."""
    trajectories = collect(loaded, num_episodes, seed)
    without_EP, with_EP = episode_gradients(loaded.policy, trajectories, loaded.config.recipe.gamma)
    returns = np.concatenate([np.sum(t.reward * t.valid, axis=0, dtype=np.float64) for t in trajectories])
    return compare(without_EP, with_EP, float(returns.mean()), stream(seed, "variance bootstrap"))


CAPTION = (
    "Each episode gives one estimate of the policy gradient; at each of {points} moments of one run, {episodes} "
    "episodes were played by the policy as it stood and each estimate was made twice from the same episode: weighted by "
    "the return to go, and by the return to go less what the critic expected. The two agree on average; the left plot "
    "shows how far single estimates scatter around it (log scale), the right one what share of that is left with the "
    "baseline. It starts at 100 %, before the critic knows anything. Bars: 95 % bootstrap intervals over episodes."
)


def show(
    run_dir: Path | None, out: Path, seed: int, trust_run: bool = False, num_episodes: int = 128
) -> None:
    """Draws the figure and writes its numbers, over the checkpoints of `run_dir` or of a run trained here."""
    steps, found = [], []
    with run_directory(run_dir, seed, **SMALL_RUN) as path:
        for iteration in kept_checkpoints(path, NUM_POINTS):
            loaded = load_with_critic(path, trust_run, str(iteration))
            steps.append(env_steps_of(loaded))
            found.append(measure(loaded, num_episodes, seed))
            one = found[-1]
            print(
                f"at {steps[-1]:>9,} env steps, mean return {one.return_mean:7.1f}: variance with the baseline "
                f"{one.ratio:.2f} times that without ({one.ratio_interval[0]:.2f} to {one.ratio_interval[1]:.2f})",
                file=sys.stderr,
            )
        subtitle = describe(loaded, run_dir).replace(" after ", ", over ")
    _draw(out, subtitle, steps, found)
    write_numbers(
        out,
        "variance",
        {
            "env": loaded.config.env,
            "algo": loaded.config.algo,
            "seed": seed,
            "points": [{"env_steps": at, **vars(one)} for at, one in zip(steps, found, strict=True)],
        },
    )
    print(f"figure     {out}\nnumbers    {out.with_suffix('.json')}", file=sys.stderr)


def _draw(out: Path, subtitle: str, steps: list[int], found: list[Comparison]) -> None:
    caption = CAPTION.format(points=len(steps), episodes=found[0].episodes)
    with page(out, "What a baseline buys", subtitle, caption, size=(11.0, 4.3)) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(1.1, 1))
        _draw_traces(left, steps, found)
        _draw_ratio(right, steps, found)
        for axes in (left, right):
            axes.set_xlabel("env steps of training")
            axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k" if value else "0")


def _draw_traces(axes: Axes, steps: list[int], found: list[Comparison]) -> None:
    for name, color, label in (
        ("trace_without", RED, "return to go"),
        ("trace_with", BLUE, "less the baseline V(s)"),
    ):
        y = np.array([getattr(one, name) for one in found])
        bounds = np.array([getattr(one, f"{name}_interval") for one in found]).T
        axes.errorbar(
            steps,
            y,
            np.maximum(np.abs(bounds - y), 0),
            fmt="o-",
            color=color,
            label=label,
            ms=5,
            capsize=3,
            elinewidth=1.2,
        )
    axes.set_yscale("log")
    axes.set_title("Variance of the gradient estimate")
    axes.set_ylabel("trace of the covariance")
    axes.legend(loc="best")


def _draw_ratio(axes: Axes, steps: list[int], found: list[Comparison]) -> None:
    y = 100 * np.array([one.ratio for one in found])
    bounds = 100 * np.array([one.ratio_interval for one in found]).T
    axes.axhline(100, color=SOFT, lw=1, ls=(0, (2, 3)))
    axes.fill_between([min(steps), max(steps)], 0, 100, color=GRID, alpha=0.5, lw=0)
    axes.errorbar(steps, y, np.abs(bounds - y), fmt="o-", color=INK, ms=5, capsize=3, elinewidth=1.2)
    for at, value, one in zip(steps, bounds[1], found, strict=True):
        axes.annotate(
            f"return\n{one.return_mean:.0f}",
            (at, value),
            (0, 5),
            textcoords="offset points",
            ha="center",
            size=8.5,
            color=SOFT,
        )
    axes.set_ylim(0, max(118.0, float(bounds.max()) * 1.15))
    axes.set_title("What is left of it with the baseline")
    axes.set_ylabel("% of the variance without")
