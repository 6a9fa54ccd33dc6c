"""Pool: what a library that steps many envs at once has to offer. N envs; rows are a bool array [N]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import gymnasium
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Moved(NamedTuple):
    """One step of all envs, arrays [N, ...] that the pool never writes again."""

    observation: Array
    reward: Array
    terminated: Array  # the env's own end; time limits are the caller's
    lives: Array | None  # of an Atari game
    infos: dict[str, Array]  # numeric ones [N]


@dataclass(frozen=True)
class Origin:
    """How one env came to where it is: its generator was seeded, it was reset, and it was stepped.

    A pool's env draws at its resets alone, so that the steps of earlier episodes do not matter; where it
    draws at steps too, each episode has to begin with a seed.
    """

    seed: int  # of its generator, applied by a reset
    resets: int  # since that one
    actions: Array  # since the last reset [T, ...]


class Pool(Protocol):
    """N envs of one kind, without time limits. After a step that terminated an env its next step is a reset, of which
    the action is ignored and the reward 0."""

    observation_space: gymnasium.Space[Any]
    action_space: gymnasium.Space[Any]
    fire: int | None  # the action that a game waits for after a lost life; None: it waits for none
    reseed_every: int  # episodes of an env, after which `restart` has to seed its generator; 0: it cannot
    restorable: bool  # whether `replay` gives the same bits again

    def start(self, seeds: list[int]) -> tuple[Array, Array | None]:
        """A reset of all envs with generators seeded anew: observations [N, ...] and lives [N]."""

    def restart(self, rows: NDArray[np.bool_], seeds: list[int] | None) -> tuple[Array, Array | None]:
        """A reset of `rows`, with the seeds [N] of those where given; elsewhere the arrays mean nothing."""

    def step(self, actions: Array) -> Moved:
        """One step of all envs."""

    def replay(self, origins: list[Origin]) -> tuple[Array, Array | None]:
        """All envs to where their origins [N] lead; observations and lives there."""

    def close(self) -> None:
        """Ends its threads."""
