"""Trains CleanRL's own PPO files with their default recipes: five envs, five seeds.

Usage: .envs/cleanrl/bin/python run_cleanrl.py [--env ENV ...] [--seeds K ...] [--out DIR]

Each run writes `DIR/<env>/seed<k>.csv` (global_step, return, length of every training episode) and, last of
all, `seed<k>.json`; a run whose JSON is there is skipped, so the same command goes on with an interrupted
series, and a second one started beside it takes the runs that the first has not begun. The score is the mean
return of the last 100 training episodes. One thread and nice 10: the wall time in the JSON is what was left
over, not a speed measurement (see cleanrl_speed.py for that).
"""

import argparse
import csv
import fcntl
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCE = HERE / ".envs" / "cleanrl" / "src"
SCORE_EPISODES = 100

# env: (CleanRL's file, env steps). Every other setting is the file's default.
RUNS: dict[str, tuple[str, int]] = {
    "CartPole-v1": ("ppo.py", 500_000),
    "Acrobot-v1": ("ppo.py", 500_000),
    "InvertedPendulum-v5": ("ppo_continuous_action.py", 1_000_000),
    "Hopper-v5": ("ppo_continuous_action.py", 1_000_000),
    "HalfCheetah-v5": ("ppo_continuous_action.py", 1_000_000),
}


def score(path: Path) -> tuple[float, int]:
    """Returns (mean return of the last 100 episodes, number of episodes); ValueError if there are fewer."""
    with path.open() as file:
        returns = [float(row["return"]) for row in csv.DictReader(file)]
    if len(returns) < SCORE_EPISODES:
        raise ValueError(f"{path} must hold at least {SCORE_EPISODES} episodes, got {len(returns)}")
    return statistics.fmean(returns[-SCORE_EPISODES:]), len(returns)


def run_one(env: str, seed: int, folder: Path) -> None:
    """Trains one (env, seed) in a process of its own and writes its CSV, then its JSON."""
    name, steps = RUNS[env]
    episodes = folder / f"seed{seed}.csv"
    partial = folder / f"seed{seed}.csv.part"
    arguments = ["--env-id", env, "--seed", str(seed), "--total-timesteps", str(steps)]
    one_thread = {key: "1" for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, str(SOURCE / name), *arguments],
        env=os.environ | one_thread | {"PYTHONPATH": str(HERE), "EPISODES_CSV": str(partial)},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    wall_sec = time.perf_counter() - start
    mean_return, num_episodes = score(partial)
    partial.replace(episodes)
    packages = ("cleanrl", "torch", "gymnasium", "mujoco", "numpy")
    record = {
        "env": env,
        "seed": seed,
        "env_steps": steps,
        "score": mean_return,
        "score_is": f"mean return of the last {SCORE_EPISODES} training episodes",
        "episodes": num_episodes,
        "wall_sec": round(wall_sec, 1),
        "versions": {"python": platform.python_version()}
        | {package: version(package) for package in packages},
        "command": f"OMP_NUM_THREADS=1 nice -n 10 python {name} {' '.join(arguments)}",
    }
    aside = folder / f"seed{seed}.json.part"
    aside.write_text(json.dumps(record, indent=1) + "\n")
    aside.replace(folder / f"seed{seed}.json")
    print(
        f"{env} seed {seed}: score {mean_return:.1f} over {num_episodes} episodes, {wall_sec:.0f} s",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--env", nargs="+", choices=list(RUNS), default=list(RUNS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    parser.add_argument("--out", type=Path, default=HERE.parent / "results" / "learning" / "cleanrl")
    options = parser.parse_args()
    if not SOURCE.is_dir():
        sys.exit(f"{SOURCE} is missing: run benchmarks/peers/setup.sh cleanrl first")
    options.out.mkdir(parents=True, exist_ok=True)
    os.nice(max(0, 10 - os.nice(0)))
    for env in options.env:
        for seed in options.seeds:
            folder = options.out / env
            folder.mkdir(parents=True, exist_ok=True)
            with open(HERE / ".envs" / f"run_cleanrl-{env}-{seed}.lock", "w") as lock:
                if (folder / f"seed{seed}.json").exists():
                    print(f"{env} seed {seed}: there, skipped", flush=True)
                    continue
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    print(f"{env} seed {seed}: another process trains it, skipped", flush=True)
                    continue
                run_one(env, seed, folder)


if __name__ == "__main__":
    main()
