"""A 4x4 gridworld whose every probability is known: small enough to be solved exactly, played as any env.

    . . . G      G: +1 and the end        each step costs 0.04
    . # . P      P: -1 and the end        with probability `slip` a move goes to one of its two sides
    . . . .      #: a wall                a move into a wall or over the edge stays
    . . . .      an episode starts in any of the free cells, all alike

Its id is `distrl.show.gridworld:distrl/Gridworld-v0`: `distrl train --env` takes it too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Discrete
from numpy.typing import NDArray

ENV_ID = "distrl.show.gridworld:distrl/Gridworld-v0"
ROWS = ("...G", ".#.P", "....", "....")
MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))  # up, right, down, left; the sides of move a are a - 1 and a + 1
NUM_ACTIONS = len(MOVES)
MAX_EPISODE_STEPS = 100
_END_REWARDS = {"G": 1.0, "P": -1.0}

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Model:
    """A finite MDP. S states, A actions.

    transition_SAS: P(s'|s, a), [S, A, S], rows summing to one; those of states that are no decision are 0.
    reward_SA: the mean reward r(s, a), [S, A].
    is_end_S: an episode is over there; its value is zero.
    is_free_S: states where decisions are made; an episode starts in each with the probability start_S.
    """

    transition_SAS: Float
    reward_SA: Float
    is_end_S: NDArray[np.bool_]
    is_free_S: NDArray[np.bool_]
    start_S: Float


def make_model(slip: float = 0.2, step_reward: float = -0.04) -> Model:
    """The gridworld as an MDP; cell (row, column) is state 4 * row + column. ValueError where slip is none."""
    if not 0 <= slip <= 1:
        raise ValueError(f"slip is a probability, in 0..1, got {slip}")
    cells = "".join(ROWS)
    num_states, width = len(cells), len(ROWS[0])
    transition, reward = np.zeros((num_states, NUM_ACTIONS, num_states)), np.zeros((num_states, NUM_ACTIONS))
    for state in (index for index, cell in enumerate(cells) if cell == "."):
        for action in range(NUM_ACTIONS):
            for turn, probability in ((0, 1 - slip), (-1, slip / 2), (1, slip / 2)):
                reached = _reached(state, (action + turn) % NUM_ACTIONS, cells, width)
                transition[state, action, reached] += probability
                reward[state, action] += probability * (step_reward + _END_REWARDS.get(cells[reached], 0.0))
    is_free = np.array([cell == "." for cell in cells])
    is_end = np.array([cell in _END_REWARDS for cell in cells])
    return Model(transition, reward, is_end, is_free, is_free / is_free.sum())


def _reached(state: int, action: int, cells: str, width: int) -> int:
    row, column = divmod(state, width)
    row, column = row + MOVES[action][0], column + MOVES[action][1]
    if not (0 <= row < len(cells) // width and 0 <= column < width):
        return state
    return state if cells[row * width + column] == "#" else row * width + column


class Gridworld(gymnasium.Env[Any, Any]):
    """The model as an env: observation Discrete(16), action Discrete(4)."""

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - gymnasium's own form

    def __init__(self, slip: float = 0.2, step_reward: float = -0.04) -> None:
        self.model = make_model(slip, step_reward)
        self.step_reward = step_reward
        self.observation_space = Discrete(len(self.model.start_S))
        self.action_space = Discrete(NUM_ACTIONS)
        self.state = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        self.state = self._draw(self.model.start_S)
        return self.state, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        self.state = self._draw(self.model.transition_SAS[self.state, int(action)])
        cell = "".join(ROWS)[self.state]
        return self.state, self.step_reward + _END_REWARDS.get(cell, 0.0), cell in _END_REWARDS, False, {}

    def _draw(self, probability_S: Float) -> int:
        # not np.random.choice: it costs more than all the rest of a step
        cumulative = np.cumsum(probability_S)
        return int(np.searchsorted(cumulative, self.np_random.random() * cumulative[-1], side="right"))


gymnasium.register(
    id="distrl/Gridworld-v0",
    entry_point="distrl.show.gridworld:Gridworld",
    max_episode_steps=MAX_EPISODE_STEPS,
)
