"""What the learner asks of a twin: hold the optimiser, take a batch over, and go down its loss."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from distrl.trajectory import Trajectory

Index = NDArray[np.int64]


@dataclass(frozen=True)
class Rates:
    """What the schedules give for one iteration."""

    learning_rate: float
    clip: float | None
    beta: float = 0.0  # weight of a KL to the reference in the loss


class Update(Protocol):
    """One policy's update and its Adam. Both twins keep one state tree: a run goes on with either."""

    def batch(self, trajectory: Trajectory, advantage: NDArray[Any], target: NDArray[Any]) -> Any:
        """The trajectory's columns as the twin wants them; advantage and target are [T, N]."""
        ...

    def optimise(
        self, batch: Any, epochs: Iterable[list[Index]], rates: Rates
    ) -> tuple[list[str], NDArray[np.float64]]:
        """Steps once for each minibatch of each epoch, until `target_kl` is passed at an epoch's end.

        Returns the metrics' names, and of each minibatch a row: its metrics, then 1 where the gradient was not
        finite, so that it was skipped and changed nothing.
        """
        ...

    def optimiser_state(self) -> dict[str, dict[str, NDArray[Any]]]:
        """Adam's `step`, `exp_avg`, `exp_avg_sq` of each parameter, by its number in the policy, as torch lays them out."""
        ...

    def load_optimiser_state(self, state: dict[str, dict[str, Any]]) -> None:
        """Put back what `optimiser_state` of either twin gave; the policy's parameters were put back before."""
        ...
