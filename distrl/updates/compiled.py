"""The update of an MLP policy on the CPU, an epoch at a time in nopython code: the twin of `distrl.updates.torch`.

Its result does not depend on `threads`: they share the parts of a minibatch, which a fixed tree joins.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distrl.maths.mlp_policy import empty_mask
from distrl.maths.ppo_rows import SUMS, Batch, Losses, metric_names
from distrl.maths.ppo_update import SLOTS, Adam, make_parameters, make_work, run_epoch
from distrl.policies.compiled import CompiledMLP, put, take, writable
from distrl.recipes import Recipe
from distrl.trajectory import Trajectory
from distrl.trees import tree_map
from distrl.updates.protocol import Index, Rates


class CompiledUpdate:
    """`Update` for an `MLPPolicy` with Discrete or Box actions. BadInput for any other."""

    def __init__(self, policy: Any, recipe: Recipe, threads: int = 1) -> None:
        self.recipe = recipe
        self.threads = min(threads, SLOTS)
        self.view = CompiledMLP(policy)
        self.parameters = make_parameters(self.view.params)
        self.moments = [self.view.places_in(flat) for flat in self.parameters[1:3]]
        self.work = make_work(self.view.network, self.threads)
        self.begun = False  # whether the optimiser has a state yet
        self._pool = ThreadPoolExecutor(self.threads - 1) if self.threads > 1 else None
        self._warm()

    def _warm(self) -> None:
        """Compiles, or reads Numba's cache: an epoch of no minibatch."""
        nothing = np.zeros((0, 1), np.float32)
        empty = np.zeros(0, np.float32)
        inputs = int(self.view.network.actor[0])
        batch = Batch(
            np.zeros(inputs, np.float32),
            *self.view.split_action(nothing),
            empty_mask(), False, empty, empty, empty, empty, np.zeros(0, np.int32),
        )  # fmt: skip
        self._epoch([], batch, Rates(0.0, None))

    def batch(self, trajectory: Trajectory, advantage: NDArray[Any], target: NDArray[Any]) -> Batch:
        def rows(leaf: NDArray[Any]) -> NDArray[Any]:
            return leaf.reshape(-1, *leaf.shape[2:])

        mask = trajectory.extra.get("action_mask")
        self.view.load()  # the policy's parameters and moments may have been put back, or moved on
        return Batch(
            writable(self.view.features(tree_map(rows, trajectory.observation)), np.float32),
            *self.view.split_action(trajectory.action),
            empty_mask() if mask is None else writable(mask, np.bool_),
            mask is not None,
            log_prob=writable(trajectory.log_prob, np.float32),
            value=writable(trajectory.value, np.float32),
            advantage=writable(advantage, np.float32),
            target=writable(target, np.float32),
            episode=trajectory.episode.reshape(-1),
        )

    def optimise(
        self, batch: Batch, epochs: Iterable[list[Index]], rates: Rates
    ) -> tuple[list[str], NDArray[np.float64]]:
        places = metric_names(self._losses(rates))
        tables = []
        for parts in epochs:
            table = self._epoch(parts, batch, rates)
            tables.append(table[:, [*places.values(), SUMS]])
            if self.recipe.target_kl is not None and "approx_kl" in places and len(table):
                kl = np.where(table[:, SUMS] > 0, 0.0, table[:, places["approx_kl"]])
                if kl.mean() > self.recipe.target_kl:
                    break
        self.view.store()
        self.begun |= any(len(table) for table in tables)
        return [*places], np.concatenate(tables) if tables else np.zeros((0, len(places) + 1))

    def _epoch(self, parts: list[Index], batch: Batch, rates: Rates) -> NDArray[np.float64]:
        """One row for each minibatch: every sum's mean, then whether it was skipped."""
        results = np.zeros((len(parts), SUMS + 1))
        limit = self.recipe.max_grad_norm
        arguments: tuple[Any, ...] = (
            self.threads,
            np.concatenate([*parts, np.zeros(0, np.int64)]),
            np.cumsum([len(part) for part in parts], dtype=np.int64),
            batch,
            self._losses(rates),
            self.view.network,
            self.parameters,
            Adam(
                float(rates.learning_rate),
                float(self.recipe.adam_eps),
                float("inf") if limit is None else limit,
            ),
            self.work,
            results,
        )
        self.work.arrived[0] = 0
        others = (
            [self._pool.submit(run_epoch, rank, *arguments) for rank in range(1, self.threads)]
            if self._pool
            else []
        )
        run_epoch(0, *arguments)
        for other in others:
            other.result()
        return results

    def _losses(self, rates: Rates) -> Losses:
        recipe = self.recipe
        return Losses(
            clip=float(rates.clip or 0.0),
            clip_value=float(recipe.clip_value or 0.0),
            value_coef=float(recipe.value_coef),
            entropy_coef=float(recipe.entropy_coef),
            normalize_advantage=recipe.normalize_advantage,
            trains_value=recipe.trains_value,
        )

    def optimiser_state(self) -> dict[str, dict[str, NDArray[Any]]]:
        if not self.begun:
            return {}
        moments = [[np.empty_like(array) for array in self.view.arrays] for _ in self.moments]
        for places, arrays in zip(self.moments, moments, strict=True):
            take(places, arrays)
        return {
            str(number): {
                "step": np.array(self.parameters.step[0], np.float32),
                "exp_avg": first,
                "exp_avg_sq": second,
            }
            for number, (first, second) in enumerate(zip(*moments, strict=True))
            if self.recipe.trains_value or self.view.trained_without_value[number]
        }

    def load_optimiser_state(self, state: dict[str, dict[str, Any]]) -> None:
        self.view.load()
        self.begun = bool(state)
        self.parameters.step[0] = max((float(slots["step"]) for slots in state.values()), default=0.0)
        for name, places in zip(("exp_avg", "exp_avg_sq"), self.moments, strict=True):
            put(
                [
                    np.asarray(state[str(number)][name]) if str(number) in state else np.zeros_like(array)
                    for number, array in enumerate(self.view.arrays)
                ],
                places,
            )
