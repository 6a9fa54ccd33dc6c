"""`--overlap 1` beside the synchronous loop, where collection and learning are equally long and share no core.

    python benchmarks/overlap.py [--iterations 16] [--repeats 3] [--only in-process ray]

The env waits in its step, as one that asks a simulator elsewhere does, so collection needs next to no core. First the
wait is fitted, by two synchronous runs that tell what a fragment and what an update take, so that both are equal.
From then on synchronous and overlapped runs take turns, A B A B, each a `distrl train` of its own, and a ratio is
formed within a turn: env steps a second after the first quarter of the iterations, checkpoints and metrics included.
Twice the rate is the limit. Exit status 0 where the median ratio is at least 1.7 for each runtime.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TARGET = 1.7
SCHEMA = 1
WORKERS = {"in-process": 0, "ray": 1}
# few steps and many epochs: an update takes half a second or so, and a step waits some 5 ms, more than sleep errs by
FIELDS = {
    "env": "benchmarks.planted:Planted/Slow-v0",
    "num-envs": 2,
    "groups": 1,
    "num-steps": 64,
    "hidden-sizes": "512,512",
    "epochs": 80,
    "minibatches": 1,
    "eval-episodes": 0,
}


def train(workers: int, overlap: int, wait_sec: float, iterations: int) -> list[dict[str, Any]]:
    """The records of a run."""
    fields = {
        **FIELDS,
        "workers": workers,
        "overlap": overlap,
        "env-kwargs.wait-sec": wait_sec,
        "total-steps": iterations * FIELDS["num-envs"] * FIELDS["num-steps"],
    }
    with tempfile.TemporaryDirectory() as folder:
        flags = [part for name, value in fields.items() for part in (f"--{name}", str(value))]
        command = [sys.executable, "-m", "distrl", "train", "--no-tensorboard", *flags]
        done = subprocess.run(
            [*command, "--run-dir", f"{folder}/run"],
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-2000:]}")
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def measured(records: list[dict[str, Any]]) -> dict[str, float]:
    """Env steps a second, and seconds an iteration that were collected and learned in, after the warm-up."""
    warm_up = records[: len(records) // 4]
    window = records[len(warm_up) :]
    seconds = window[-1]["wall_sec"] - warm_up[-1]["wall_sec"]

    def each(word: str) -> float:
        names = [
            key for key in window[0] if key.startswith("time/") and key.rpartition("/")[2].startswith(word)
        ]
        return statistics.median(sum(record[name] for name in names) for record in window)

    return {
        "iteration_sec": seconds / len(window),
        "steps_per_sec": (window[-1]["env_steps"] - warm_up[-1]["env_steps"]) / seconds,
        "collect_sec": each("rollout"),
        "learn_sec": each("learn"),
        "policy_lag": window[-1]["policy_lag"],
    }


def compare(runtime: str, iterations: int, repeats: int) -> dict[str, Any]:
    """The section of one runtime in the results."""
    workers = WORKERS[runtime]
    steps = FIELDS["num-envs"] * FIELDS["num-steps"]
    wait_sec = 0.0
    for _ in range(2):
        found = measured(train(workers, 0, wait_sec, max(iterations // 2, 4)))
        wait_sec = max(wait_sec + (found["learn_sec"] - found["collect_sec"]) / steps, 0.0)
    turns = []
    for _ in range(repeats):
        load = os.getloadavg()[0]
        synchronous, overlapped = (measured(train(workers, lag, wait_sec, iterations)) for lag in (0, 1))
        ratio = overlapped["steps_per_sec"] / synchronous["steps_per_sec"]
        turns.append(
            {
                "synchronous": synchronous,
                "overlapped": overlapped,
                "ratio": ratio,
                "load_average_before": load,
            }
        )
        balance = synchronous["collect_sec"] / synchronous["learn_sec"]
        longer = max(overlapped["collect_sec"], overlapped["learn_sec"])
        print(
            f"{runtime:10s}  synchronous {synchronous['steps_per_sec']:6.0f}  overlapped "
            f"{overlapped['steps_per_sec']:6.0f} steps/s  ratio {ratio:.2f}  collect / learn {balance:.2f}  "
            f"overlapped iteration / the longer of the two {overlapped['iteration_sec'] / longer:.2f}  "
            f"load {load:.1f}",
            flush=True,
        )
    ratios = [turn["ratio"] for turn in turns]
    return {"wait_sec": wait_sec, "turns": turns, "ratio": statistics.median(ratios)}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--iterations", type=int, default=16, help="of each run")
    parser.add_argument("--repeats", type=int, default=3, help="turns of synchronous and overlapped")
    parser.add_argument("--only", nargs="+", choices=[*WORKERS], default=[*WORKERS])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "overlap.json")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from distrl import machine
    from distrl.run_directory import write_json_atomic

    load = os.getloadavg()
    sections = {name: compare(name, options.iterations, options.repeats) for name in options.only}
    met = all(section["ratio"] >= TARGET for section in sections.values())
    write_json_atomic(
        options.out,
        {
            "schema": SCHEMA,
            "command": " ".join(["python", "benchmarks/overlap.py", *sys.argv[1:]]),
            "fields": FIELDS,
            "iterations": options.iterations,
            "target": TARGET,
            "met": met,
            "runtimes": sections,
            "load_average_at_start": load,
            "machine": machine.machine(),
            "versions": machine.versions(),
            "git_revision": machine.git_revision(),
        },
    )
    for name, section in sections.items():
        print(f"{name}: {section['ratio']:.2f} times the synchronous rate, to be {TARGET}; the limit is 2")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
