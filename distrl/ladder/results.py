"""From the runs' metrics to the ladder's numbers: learning curves with bands, returns at the end, who solved it.

    curve     mean over seeds of the mean return of the last 100 episodes, at equal steps of training
    band      95 % interval of that mean: seeds resampled with replacement (percentile bootstrap)
    solved    the first step at which 100 episodes have ended and their mean return reaches the threshold

Shape suffixes: S seeds, G places on the grid of env steps, B resamples.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distrl.maths.random import stream
from distrl.recipes import IDEAS, LADDER
from distrl.telemetry.sinks.jsonl import read_jsonl

Float = NDArray[np.float64]
NUM_PLACES = 201
NUM_RESAMPLES = 2000
WINDOW = 100  # episodes that `episode_return_mean` is the mean of


@dataclass(frozen=True)
class RunResult:
    """One run: its curve on the grid, the return it ended with, and when it had solved the env, if it did."""

    algo: str
    seed: int
    curve_G: Float
    final_return: float
    solved_at: int | None
    env_steps: int
    episodes: int
    wall_sec: float
    parameters_sha256: str


@dataclass(frozen=True)
class RungResult:
    """One rung over its seeds."""

    algo: str
    idea: str
    runs: list[RunResult]
    mean_G: Float
    low_G: Float
    high_G: Float
    final_mean: float
    final_interval: tuple[float, float]

    @property
    def num_solved(self) -> int:
        """Seeds that solved the env."""
        return sum(run.solved_at is not None for run in self.runs)

    @property
    def median_solved_at(self) -> float | None:
        """Env steps that half of the seeds needed, or less; None where fewer than half solved it."""
        at = sorted(run.solved_at if run.solved_at is not None else np.inf for run in self.runs)
        middle = float(np.median(at))
        return middle if np.isfinite(middle) else None


def grid(total_steps: int) -> Float:
    """[G]: the env steps at which curves are read."""
    return np.linspace(0, total_steps, NUM_PLACES)


def read_run(run_dir: Path, grid_G: Float, threshold: float | None) -> RunResult | None:
    """The numbers of a finished run; None where no episode ended in it."""
    summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    config = json.loads((run_dir / "config.json").read_text(encoding="utf-8"))
    records = [r for r in read_jsonl(run_dir / "metrics.jsonl")]
    ended = np.cumsum([record["episodes"] for record in records])
    first = int(np.searchsorted(ended, 1)) if len(ended) else 0
    if first >= len(records):
        return None
    steps = np.array([record["env_steps"] for record in records[first:]])
    mean = np.array([record["episode_return_mean"] for record in records[first:]], np.float64)
    # the value that stood at each place; before the first episode ended, the first one
    curve_G = mean[np.maximum(np.searchsorted(steps, grid_G, side="right") - 1, 0)]
    return RunResult(
        algo=config["algo"],
        seed=config["seed"],
        curve_G=curve_G,
        final_return=float(mean[-1]),
        solved_at=first_solved(steps, mean, ended[first:], threshold),
        env_steps=int(summary["env_steps"]),
        episodes=int(ended[-1]),
        wall_sec=float(summary["wall_sec"]),
        parameters_sha256=str(summary["parameters_sha256"]),
    )


def first_solved(
    steps: NDArray[np.int64], mean_return: Float, episodes_ended: NDArray[np.int64], threshold: float | None
) -> int | None:
    """The first of `steps` at which WINDOW episodes have ended with a mean return of `threshold` or more."""
    if threshold is None:
        return None
    reached = np.flatnonzero((mean_return >= threshold) & (episodes_ended >= WINDOW))
    return int(steps[reached[0]]) if len(reached) else None


def bootstrap(value_SG: Float, generator: np.random.Generator) -> tuple[Float, Float]:
    """The 2.5 and 97.5 % bounds [G] of the mean over seeds."""
    num_seeds = len(value_SG)
    weight_BS = (
        generator.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=NUM_RESAMPLES) / num_seeds
    )
    low_G, high_G = np.percentile(weight_BS @ value_SG, [2.5, 97.5], axis=0)
    return low_G, high_G


def read_rungs(run_dirs: Sequence[Path], total_steps: int, threshold: float | None) -> list[RungResult]:
    """Every rung of which there are finished runs, in the ladder's order, seeds in theirs."""
    grid_G = grid(total_steps)
    runs = [run for path in run_dirs if (run := read_run(path, grid_G, threshold)) is not None]
    rungs = []
    for number, algo in enumerate(LADDER):
        own = sorted((run for run in runs if run.algo == algo), key=lambda run: run.seed)
        if not own:
            continue
        curve_SG = np.stack([run.curve_G for run in own])
        final_S1 = np.array([[run.final_return] for run in own])
        low_G, high_G = bootstrap(curve_SG, stream(0, "ladder curve", number))
        low, high = bootstrap(final_S1, stream(0, "ladder final", number))
        rungs.append(
            RungResult(
                algo,
                IDEAS[algo],
                own,
                curve_SG.mean(axis=0),
                low_G,
                high_G,
                float(final_S1.mean()),
                (float(low[0]), float(high[0])),
            )
        )
    return rungs


def as_numbers(rungs: Sequence[RungResult]) -> list[dict[str, Any]]:
    """The rungs for a JSON file."""
    return [
        {
            "algo": rung.algo,
            "idea": rung.idea,
            "recipe": vars(LADDER[rung.algo]),
            "num_solved": rung.num_solved,
            "median_solved_at": rung.median_solved_at,
            "final_mean": rung.final_mean,
            "final_interval": rung.final_interval,
            "mean": rung.mean_G,
            "low": rung.low_G,
            "high": rung.high_G,
            "runs": [{**vars(run), "curve_G": run.curve_G} for run in rung.runs],
        }
        for rung in rungs
    ]
