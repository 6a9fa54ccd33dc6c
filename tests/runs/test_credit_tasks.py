"""Every rung learns what its credit must get right: a reward that comes late, and episodes of one step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import distrl
from distrl.recipes import LADDER

SEEDS = (1, 2)
MORE_SEEDS = (3, 4, 5, 6)
# task, then env steps by what a rung collects: whole episodes one by one, or fixed steps
TASKS = {"Delayed-v0": {"episodes": 1_500, "steps": 16_000}, "Bandit-v0": {"episodes": 900, "steps": 12_000}}
# learning rates: a rung that steps once for 1,024 rows takes larger steps in as short a run
RATES = {"actor-critic": 1e-2, "a2c": 1e-2}
LAKE = {"env": "FrozenLake-v1", "gamma": 0.95, "entropy_coef": 0.02}


def last_return(folder: Path, algo: str, seed: int, **fields: Any) -> float:
    """The mean return of a short run's last 100 training episodes."""
    outcome = distrl.train(
        algo=algo, seed=seed, workers=0, run_dir=str(folder / f"{algo}-{seed}"), tensorboard=False,
        eval_episodes=0, learning_rate_schedule="constant", checkpoint_every=1000, **fields,
    )  # fmt: skip
    record = json.loads((outcome.run_dir / "metrics.jsonl").read_text().splitlines()[-1])
    return float(record["episode_return_mean"])


@pytest.mark.parametrize("seeds", [SEEDS, pytest.param(MORE_SEEDS, marks=pytest.mark.slow)])
@pytest.mark.parametrize("algo", LADDER)
@pytest.mark.parametrize("task", TASKS)
def test_a_late_reward_and_episodes_of_one_step_are_learned(
    task: str, algo: str, seeds: tuple[int, ...], tmp_path: Path
) -> None:
    steps = TASKS[task][LADDER[algo].collects]
    for seed in seeds:
        found = last_return(
            tmp_path,
            algo,
            seed,
            env=f"credit_tasks:{task}",
            total_steps=steps,
            learning_rate=RATES.get(algo, 3e-3),
        )
        assert found >= 0.9, (algo, seed, found)


@pytest.mark.parametrize("task", TASKS)
def test_a_batch_of_one_episode_is_not_normalized_even_where_that_is_asked_for(
    task: str, tmp_path: Path
) -> None:
    fields = {"env": f"credit_tasks:{task}", "total_steps": TASKS[task]["episodes"], "learning_rate": 3e-3}
    for seed in SEEDS:
        found = last_return(tmp_path, "reinforce", seed, **fields, normalize_advantage=True)
        assert found >= 0.9, (seed, found)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("algo", LADDER)
def test_frozen_lake_is_solved_by_every_rung(algo: str, tmp_path: Path) -> None:
    for seed in (*SEEDS, MORE_SEEDS[0]):
        found = last_return(
            tmp_path, algo, seed, **LAKE, env_kwargs={"is_slippery": False}, total_steps=100_000
        )
        assert found >= 0.9, (algo, seed, found)
