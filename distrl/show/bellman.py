r"""The Bellman equations of a small MDP, solved exactly, beside the value that a trained critic learned.

    V(s)   = sum_a pi(a|s) Q(s, a)                             Sutton and Barto 2018, eq. 4.3 and 4.4
    Q(s,a) = r(s, a) + gamma sum_s' P(s'|s, a) V(s')           V = 0 where the episode is over
    in matrices: (I - gamma P_pi) V = r_pi                     one linear solve

    Q*(s,a) = r(s, a) + gamma sum_s' P(s'|s, a) max_b Q*(s', b)        eq. 4.2, by value iteration

pi is the policy that training made, read state by state; its V is what the critic was to learn. The MDP
is `distrl.show.gridworld`, and the training is the ordinary one: the critic saw nothing but episodes.

Shape suffixes: S states, A actions.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.patches import Polygon, Rectangle
from numpy.typing import NDArray

from distrl.errors import BadInput
from distrl.show.gridworld import (
    ENV_ID,
    MAX_EPISODE_STEPS,
    MOVES,
    NUM_ACTIONS,
    ROWS,
    Float,
    Model,
    make_model,
)
from distrl.show.style import BLUE, INK, LINE, SOFT, page, write_numbers
from distrl.show.trained import describe, load_with_critic, run_directory

SMALL_RUN = {
    "env": ENV_ID, "algo": "ppo", "total_steps": 49_152, "num_envs": 8, "num_steps": 128, "gamma": 0.95,
    "learning_rate": 2.5e-3, "value_coef": 1.0, "entropy_coef": 0.01, "max_grad_norm": 10.0,
}  # fmt: skip
_TOLERANCE = 1e-13


@dataclass(frozen=True)
class Values:
    """V [S] and Q [S, A] of one policy [S, A]; zero where no decision is made."""

    policy_SA: Float
    v_S: Float
    q_SA: Float


@dataclass(frozen=True)
class Errors:
    """The critic against the exact V of its policy, over the states where decisions are made."""

    rmse: float
    rmse_by_visits: float  # each state weighted by how often training sees it
    max: float
    mean: float  # signed: above 0 the critic is too hopeful


def policy_values(model: Model, policy_SA: Float, gamma: float) -> Values:
    """The Bellman expectation equations as one linear solve, float64. ValueError where policy rows do not sum to one."""
    rows = policy_SA[model.is_free_S]
    if not np.allclose(rows.sum(axis=1), 1.0, atol=1e-6):
        raise ValueError(f"policy_SA holds probabilities, each row summing to 1, got sums {rows.sum(axis=1)}")
    policy_SA = np.where(model.is_free_S[:, None], policy_SA, 0.0)
    transition_SS = np.einsum("sa,sat->st", policy_SA, model.transition_SAS)
    reward_S = np.sum(policy_SA * model.reward_SA, axis=1)
    # rows of states without a decision are zero: there the system says V = 0
    v_S = np.linalg.solve(np.eye(len(reward_S)) - gamma * transition_SS, reward_S)
    return Values(policy_SA, v_S, model.reward_SA + gamma * model.transition_SAS @ v_S)


def optimal_values(model: Model, gamma: float) -> Values:
    """Value iteration until nothing moves by more than 1e-13; the policy is greedy (the first of equal actions)."""
    v_S = np.zeros(len(model.start_S))
    while True:
        q_SA = model.reward_SA + gamma * model.transition_SAS @ v_S
        new_S = q_SA.max(axis=1)
        if np.max(np.abs(new_S - v_S)) < _TOLERANCE:
            break
        v_S = new_S
    policy_SA = np.eye(NUM_ACTIONS)[q_SA.argmax(axis=1)] * model.is_free_S[:, None]
    return Values(policy_SA, new_S, q_SA)


def visits(model: Model, policy_SA: Float, num_steps: int = MAX_EPISODE_STEPS) -> Float:
    """[S]: the share of decisions that each state has in episodes of at most `num_steps`: sum over t of P(s_t = s)."""
    transition_SS = np.einsum("sa,sat->st", policy_SA, model.transition_SAS) * model.is_free_S
    now_S, total_S = model.start_S, np.zeros(len(model.start_S))
    for _ in range(num_steps):
        total_S = total_S + now_S
        now_S = now_S @ transition_SS
    return np.asarray(total_S / total_S.sum())


def learned(policy: Any, num_states: int) -> tuple[Float, Float]:
    """What the networks say: the policy's probabilities [S, A] and the critic's values [S]."""
    observation = torch.arange(num_states)
    with torch.inference_mode():
        state = policy.initial_state(num_states)
        log_prob = [
            policy.evaluate(observation, torch.full_like(observation, action), None, None, None).log_prob
            for action in range(NUM_ACTIONS)
        ]
        policy_SA = torch.stack(log_prob, dim=1).double().softmax(dim=1).numpy()
        return policy_SA, policy.value(observation, state).double().numpy()


def errors(critic_S: Float, exact_S: Float, visits_S: Float, is_free_S: NDArray[np.bool_]) -> Errors:
    """How far the critic is from the exact values."""
    error = (critic_S - exact_S)[is_free_S]
    weight = visits_S[is_free_S]
    return Errors(
        rmse=float(np.sqrt(np.mean(error**2))),
        rmse_by_visits=float(np.sqrt(np.sum(weight * error**2) / weight.sum())),
        max=float(np.max(np.abs(error))),
        mean=float(np.mean(error)),
    )


CAPTION = (
    "The trained policy's probabilities were read off state by state and put into the Bellman equations: one linear solve "
    "gives its exact V and Q (top; arrows: the likelier an action the longer, colours: value). The critic learned the "
    "same numbers from episodes alone (bottom left); the error is what is left: {rmse:.3f} rms over states, {weighted:.3f} "
    "weighted by how often each is visited, {max:.3f} at most. Dots on the line are states that the critic has right; "
    "their area is the share of visits. The optimal values (top right) come from value iteration, and show what the policy "
    "itself still misses, {gap:.3f} on average over visits. G ends the episode with +1, P with −1, each step costs 0.04, "
    "a fifth of the moves slip sideways."
)


def show(run_dir: Path | None, out: Path, seed: int, trust_run: bool = False) -> None:
    """Draws the figure and writes its numbers, for a run on the gridworld or one trained here."""
    with run_directory(run_dir, seed, **SMALL_RUN) as path:
        loaded = load_with_critic(path, trust_run)
    config = loaded.config
    if config.env != ENV_ID or loaded.policy.recurrent or config.normalize_reward:
        raise BadInput(
            f"show bellman wants a run whose values can be known, trained by --env {ENV_ID} with a policy without memory "
            f"and without --normalize-reward; {run_dir} is of {config.env}. Leave RUN_DIR out to train one"
        )
    model = make_model(**config.env_kwargs)
    gamma = config.recipe.gamma
    policy_SA, critic_S = learned(loaded.policy, len(model.start_S))
    exact, optimal = policy_values(model, policy_SA, gamma), optimal_values(model, gamma)
    visits_S = visits(model, exact.policy_SA)
    error = errors(critic_S, exact.v_S, visits_S, model.is_free_S)
    gap = float(np.sum(visits_S * (optimal.v_S - exact.v_S)))
    caption = CAPTION.format(rmse=error.rmse, weighted=error.rmse_by_visits, max=error.max, gap=gap)
    subtitle = f"{describe(loaded, run_dir).replace(ENV_ID, 'a 4x4 gridworld')}; gamma {gamma:g}"
    with page(out, "The Bellman equations, and a critic", subtitle, caption, size=(11.4, 7.4)) as figure:
        _draw(figure.subplots(2, 3), model, exact, optimal, critic_S, visits_S)
    write_numbers(
        out,
        "bellman",
        {
            "env": config.env,
            "seed": seed,
            "gamma": gamma,
            "rows": ROWS,
            "error": vars(error),
            "optimality_gap_by_visits": gap,
            "critic": critic_S,
            "visits": visits_S,
            "is_free": model.is_free_S,
            "exact": vars(exact),
            "optimal": vars(optimal),
        },
    )
    print(
        f"critic     {error.rmse:.4f} rms error ({error.rmse_by_visits:.4f} by visits, {error.max:.4f} at most)\n"
        f"figure     {out}\nnumbers    {out.with_suffix('.json')}",
        file=sys.stderr,
    )


def _draw(axes: Any, model: Model, exact: Values, optimal: Values, critic_S: Float, visits_S: Float) -> None:
    free = model.is_free_S
    everything = np.concatenate(
        [exact.v_S[free], optimal.v_S[free], critic_S[free], exact.q_SA[free].ravel()]
    )
    low, high = min(everything.min(), -0.01), max(everything.max(), 0.01)
    color = TwoSlopeNorm(0.0, low, high)
    _grid(axes[0, 0], "Exact V of the trained policy", model, exact.v_S, color, arrows=exact.policy_SA)
    _action_grid(axes[0, 1], "Exact Q of the trained policy", model, exact.q_SA, color)
    _grid(axes[0, 2], "Optimal V", model, optimal.v_S, color, arrows=optimal.policy_SA)
    _grid(axes[1, 0], "V that the critic learned", model, critic_S, color)
    error_S = np.where(free, critic_S - exact.v_S, 0.0)
    limit = max(float(np.abs(error_S).max()), 1e-3)
    _grid(axes[1, 1], "Its error", model, error_S, Normalize(-limit, limit), cmap="PuOr", signed=True)
    _scatter(axes[1, 2], exact.v_S[free], critic_S[free], visits_S[free])


def _grid(
    axes: Axes, title: str, model: Model, value_S: Float, norm: Normalize, *,
    cmap: str = "RdYlGn", arrows: Float | None = None, signed: bool = False,
) -> None:  # fmt: skip
    colors = _colors(cmap)
    _board(axes, title)
    for state, (row, column) in enumerate(np.ndindex(len(ROWS), len(ROWS[0]))):
        if not model.is_free_S[state]:
            _special(axes, row, column)
            continue
        axes.add_patch(Rectangle((column, row), 1, 1, color=colors(norm(value_S[state])), lw=0))
        text = f"{value_S[state]:+.3f}" if signed else f"{value_S[state]:.2f}"
        axes.text(
            column + 0.5,
            row + (0.27 if arrows is not None else 0.5),
            text,
            ha="center",
            va="center",
            size=9.5,
        )
        if arrows is not None:
            _arrows(axes, row, column, arrows[state])
    _lines(axes)


def _arrows(axes: Axes, row: int, column: int, probability_A: Float) -> None:
    x, y = column + 0.5, row + 0.68
    for (down, right), probability in zip(MOVES, probability_A, strict=True):
        if probability > 0.05:
            length = 0.26 * probability
            axes.annotate(
                "", (x + right * length, y + down * length), (x, y),
                arrowprops={"arrowstyle": "-|>", "color": INK, "lw": 1.3, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 7},
            )  # fmt: skip


def _action_grid(axes: Axes, title: str, model: Model, q_SA: Float, norm: Normalize) -> None:
    colors = _colors("RdYlGn")
    _board(axes, title)
    corners = ((0, 0), (1, 0), (1, 1), (0, 1))  # clockwise, so that action a lies between corners a and a + 1
    for state, (row, column) in enumerate(np.ndindex(len(ROWS), len(ROWS[0]))):
        if not model.is_free_S[state]:
            _special(axes, row, column)
            continue
        for action, (down, right) in enumerate(MOVES):
            (x0, y0), (x1, y1) = corners[action], corners[(action + 1) % 4]
            triangle = [(column + x0, row + y0), (column + x1, row + y1), (column + 0.5, row + 0.5)]
            axes.add_patch(
                Polygon(triangle, facecolor=colors(norm(q_SA[state, action])), edgecolor="white", lw=0.7)
            )
            best = action == int(np.argmax(q_SA[state]))
            axes.text(
                column + 0.5 + 0.31 * right, row + 0.5 + 0.35 * down, f"{q_SA[state, action]:.2f}",
                ha="center", va="center", size=6.6, weight="bold" if best else "normal",
            )  # fmt: skip
    _lines(axes)


def _colors(name: str) -> Any:
    """A colour map made pale, so that black numbers can be read on it."""
    import matplotlib

    whole = matplotlib.colormaps[name]
    return lambda x: tuple(0.45 + 0.55 * part for part in whole(float(np.clip(x, 0.08, 0.92)))[:3])


def _board(axes: Axes, title: str) -> None:
    axes.set_title(title)
    axes.set(xlim=(0, len(ROWS[0])), ylim=(len(ROWS), 0), aspect="equal", xticks=[], yticks=[])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _special(axes: Axes, row: int, column: int) -> None:
    kind = ROWS[row][column]
    face = {"#": SOFT, "G": "#18794e", "P": "#b42318"}[kind]
    axes.add_patch(Rectangle((column, row), 1, 1, color=face, lw=0))
    text = {"#": "", "G": "G\n+1", "P": "P\n−1"}[kind]
    axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", color="white", weight="bold", size=11)


def _lines(axes: Axes) -> None:
    for at in range(len(ROWS) + 1):
        axes.plot([0, len(ROWS[0])], [at, at], color="white", lw=1.5, clip_on=False)
    for at in range(len(ROWS[0]) + 1):
        axes.plot([at, at], [0, len(ROWS)], color="white", lw=1.5, clip_on=False)


def _scatter(axes: Axes, exact: Float, critic: Float, weight: Float) -> None:
    low, high = min(exact.min(), critic.min()), max(exact.max(), critic.max())
    margin = 0.08 * (high - low)
    ends = (low - margin, high + margin)
    axes.plot(ends, ends, color=LINE, lw=1.4, zorder=1)
    axes.scatter(exact, critic, s=1400 * weight, color=BLUE, alpha=0.65, edgecolor="white", lw=0.8, zorder=2)
    axes.set(xlim=ends, ylim=ends, aspect="equal", xlabel="exact V", ylabel="critic's V")
    axes.set_title("Critic against exact, by visits")
