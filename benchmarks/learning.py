"""Does it learn what it should? Our runs, beside CleanRL's with the same recipe on the same env version.

    python benchmarks/learning.py run [--tasks CartPole-v1 ...] [--seeds 1 2 3 4 5]   finished runs are skipped
    python benchmarks/learning.py report                                             table and JSON of what is there

CleanRL's runs come from benchmarks/peers/run_cleanrl.py. A run's score is the mean return of its last
100 training episodes (both sides); where a task names an evaluation, greedy episodes of the final policy.
The difference of means has a bootstrap interval over seeds (10,000 resamples of each side).

Tasks named -overlap are beside our own without it.

Ours differ from CleanRL's on purpose: truncated episodes are bootstrapped (CleanRL takes them for
death), and observation moments are frozen while an iteration is collected (CleanRL's move each step).
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results" / "learning"
ROOT = Path(__file__).parents[1]

CLEANRL_PPO = dict(
    num_envs=4, groups=1, num_steps=128, epochs=4, minibatches=4, learning_rate=2.5e-4, entropy_coef=0.01, clip_value=0.2
)  # fmt: skip
CLEANRL_CONTINUOUS = dict(
    num_envs=1, num_steps=2048, epochs=10, minibatches=32, learning_rate=3e-4, clip_value=0.2,
    normalize_observation=True, normalize_reward=True, rescale_action=False,  # CleanRL clips actions
)  # fmt: skip
# rl-baselines3-zoo, hyperparams/ppo.yml; Pendulum without its state-dependent exploration
ZOO_LUNAR = dict(
    num_envs=16, groups=1, num_steps=1024, epochs=4, minibatches=256, learning_rate=3e-4, learning_rate_schedule="constant",
    gamma=0.999, lam=0.98, entropy_coef=0.01, clip_value="none",
)  # fmt: skip
ZOO_PENDULUM = dict(
    num_envs=4, groups=1, num_steps=1024, epochs=10, minibatches=64, learning_rate=1e-3, learning_rate_schedule="constant",
    gamma=0.9, lam=0.95, clip_value="none",
)  # fmt: skip
MEMORY = dict(
    wrapper="benchmarks.memory_task:hide_velocities", num_envs=8, groups=1, num_steps=128, epochs=10, minibatches=8,
    learning_rate=1e-3, gamma=0.98, lam=0.9, hidden_sizes="64", normalize_observation=True,
    clip_value="none",
)  # fmt: skip
OVERLAP = dict(overlap=1)  # the fragment is collected by the policy before: what does the lag cost?
CLEANRL = "CleanRL"


@dataclass(frozen=True)
class Task:
    """One environment with one recipe, and what is asked of it."""

    env: str
    total_steps: int
    fields: dict[str, Any] = field(default_factory=dict)
    against: str | None = None  # whose scores it is not to be below: CLEANRL, or another task of ours
    at_least: float | None = None  # by evaluation
    at_most: float | None = None


TASKS = {
    "CartPole-v1": Task("CartPole-v1", 500_000, CLEANRL_PPO, against=CLEANRL),
    "Acrobot-v1": Task("Acrobot-v1", 500_000, CLEANRL_PPO, against=CLEANRL),
    "InvertedPendulum-v5": Task("InvertedPendulum-v5", 1_000_000, CLEANRL_CONTINUOUS, against=CLEANRL),
    "Hopper-v5": Task("Hopper-v5", 1_000_000, CLEANRL_CONTINUOUS, against=CLEANRL),
    "HalfCheetah-v5": Task("HalfCheetah-v5", 1_000_000, CLEANRL_CONTINUOUS, against=CLEANRL),
    "CartPole-v1-overlap": Task("CartPole-v1", 500_000, CLEANRL_PPO | OVERLAP, against="CartPole-v1"),
    "HalfCheetah-v5-overlap": Task(
        "HalfCheetah-v5", 1_000_000, CLEANRL_CONTINUOUS | OVERLAP, against="HalfCheetah-v5"
    ),
    "LunarLander-v3": Task("LunarLander-v3", 1_000_000, ZOO_LUNAR, at_least=200.0),
    "Pendulum-v1": Task("Pendulum-v1", 100_000, ZOO_PENDULUM, at_least=-250.0),
    "memory-lstm": Task("CartPole-v1", 400_000, MEMORY | {"network": "lstm"}, at_least=475.0),
    "memory-mlp": Task("CartPole-v1", 400_000, MEMORY | {"network": "mlp"}, at_most=200.0),
}


def command(task: Task, seed: int, run_dir: Path) -> list[str]:
    """The `distrl train` command of a run."""
    flags = [
        f"--{name.replace('_', '-')}={value}"
        for name, value in task.fields.items()
        if not isinstance(value, bool)
    ]
    flags += [f"--{name.replace('_', '-')}" for name, value in task.fields.items() if value is True]
    return [
        "distrl", "train", f"--env={task.env}", f"--total-steps={task.total_steps}", f"--seed={seed}", "--workers=0",
        *flags, "--eval-episodes=100", "--checkpoint-every=100000", "--no-tensorboard", f"--run-dir={run_dir}",
    ]  # fmt: skip


def run(name: str, seed: int) -> None:
    """Train one (task, seed) unless its result is there."""
    task = TASKS[name]
    out = RESULTS / "distrl" / name / f"seed{seed}.json"
    if out.exists():
        return
    folder = Path(tempfile.mkdtemp(prefix="distrl-learning-"))
    try:
        words = command(task, seed, folder / "run")
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", *words],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        if done.returncode:
            raise SystemExit(f"{shlex.join(words)}\n{done.stderr[-3000:]}")
        summary = json.loads((folder / "run" / "summary.json").read_text())
        lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    curve = [[line["env_steps"], line["episode_return_mean"]] for line in map(json.loads, lines)]
    keep = max(len(curve) // 100, 1)
    result = {
        "task": name,
        "seed": seed,
        "score": summary["last_metrics"]["episode_return_mean"],
        "evaluation": summary["evaluation"],
        "env_steps": summary["env_steps"],
        "wall_sec": round(time.monotonic() - started, 1),
        "parameters_sha256": summary["parameters_sha256"],
        "versions": summary["versions"],
        "machine": summary["machine"],
        "command": shlex.join([word for word in words if not word.startswith("--run-dir")]),
        "curve": curve[::keep] + curve[-1:],
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result) + "\n")
    print(
        f"{name} seed {seed}: score {result['score']:.1f}, evaluation {result['evaluation']['return_mean']:.1f}",
        flush=True,
    )


def scores(side: str, name: str, key: str = "score") -> list[float]:
    """The scores there are, in the order of the seeds."""
    results = [json.loads(path.read_text()) for path in sorted((RESULTS / side / name).glob("seed*.json"))]
    return [
        result["evaluation"]["return_mean"] if key == "evaluation" else result["score"] for result in results
    ]


def difference(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """Ours minus theirs: difference of means with its 95 % bootstrap interval over seeds."""
    generator = np.random.default_rng(0)
    mean = [generator.choice(side, (10_000, len(side))).mean(axis=1) for side in (ours, theirs)]
    low, high = np.percentile(mean[0] - mean[1], [2.5, 97.5])
    return {"mean": float(np.mean(ours) - np.mean(theirs)), "low": float(low), "high": float(high)}


def report() -> int:
    """Print and write the comparison of all runs there are. Exit status 1 where a task falls short."""
    rows: dict[str, Any] = {}
    failed = False
    for name, task in TASKS.items():
        ours = scores("distrl", name, "score" if task.against else "evaluation")
        if not ours:
            continue
        row: dict[str, Any] = {"ours": ours}
        if task.against:
            theirs = scores("cleanrl", name) if task.against == CLEANRL else scores("distrl", task.against)
            if not theirs:
                continue
            row |= {"against": task.against, "theirs": theirs, "difference": difference(ours, theirs)}
            row["holds"] = row["difference"]["high"] >= 0.0  # not below: the interval reaches zero
            text = f"{task.against} {np.mean(theirs):9.1f} +- {np.std(theirs):6.1f}   difference {row['difference']}"
        else:
            limit = task.at_least if task.at_least is not None else task.at_most
            row |= {"at_least": task.at_least, "at_most": task.at_most}
            row["holds"] = np.mean(ours) >= limit if task.at_least is not None else np.mean(ours) <= limit
            text = f"{'at least' if task.at_least is not None else 'at most'} {limit}"
        row["holds"] = bool(row["holds"])
        failed |= not row["holds"]
        rows[name] = row
        print(
            f"{name:22s} ours {np.mean(ours):9.1f} +- {np.std(ours):6.1f} ({len(ours)} seeds)   {text}   {'holds' if row['holds'] else 'SHORT'}"
        )
    (RESULTS / "comparison.json").write_text(json.dumps(rows, indent=1) + "\n")
    return int(failed)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["run", "report"])
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    options = parser.parse_args()
    if options.what == "report":
        sys.exit(report())
    for name in options.tasks:
        for seed in options.seeds:
            run(name, seed)


if __name__ == "__main__":
    main()
