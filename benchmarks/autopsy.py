"""Does `distrl profile` name the bound right, and does its best prescription give what it promises?

    python benchmarks/autopsy.py [--seconds 5] [--only slow-env straggler] [--tune [cartpole]]

Six bottlenecks, each planted on purpose (benchmarks/planted.py); `distrl profile --try 1 --json` on each. The bound must
be the planted one, and the rate predicted for the top prescription within 25 % of the rate that a session with it then
measures. With --tune, `distrl profile --tune` on three workloads beside an exhaustive grid of sessions: the best that it
finds must reach 90 % of the grid's best, both measured again by turns. `--only` without a name leaves the six out. What is not measured anew keeps its
place in the results, with the revision it was measured at. Exit status 0: all that was measured is met.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "autopsy.json"
WITHIN = 0.25
TURNS = 3  # of --tune's best and the grid's best, one after the other
SCHEMA = 1


@dataclass(frozen=True)
class Case:
    """A plant: flags of `distrl profile`, and the bound that they make."""

    name: str
    bound: str
    flags: str
    waits: bool  # the plant waits rather than computes: other work on the machine hardly moves it


SLOW = "--env benchmarks.planted:Planted/Slow-v0"
CASES = (
    Case(
        "slow-env", "env-bound",
        f"{SLOW} --env-kwargs.wait-sec 0.005 --num-envs 4 --groups 4 --num-steps 32 --workers 1", True,
    ),
    Case(
        "heavy-policy", "inference-bound",
        f"{SLOW} --policy benchmarks.planted:ponder --num-envs 4 --groups 4 --num-steps 64 --workers 1",
        False,
    ),
    Case("many-epochs", "learner-bound", f"{SLOW} --num-envs 8 --groups 2 --epochs 40 --workers 1", False),
    Case(
        "straggler", "straggler-bound",
        f"{SLOW} --env-kwargs.wait-sec 0.002 --env-kwargs.slow-times 4 --env-kwargs.slow-folder FOLDER "
        "--num-envs 4 --groups 4 --num-steps 32 --workers 2",
        True,
    ),
    Case(
        "threads", "oversubscribed-threads-bound",
        f"{SLOW} --hidden-sizes 128,128 --num-envs 8 --groups 2 --workers 1 --learner torch --learner-threads 16",
        False,
    ),
    Case(
        "large-observations", "transfer-bound",
        "--env benchmarks.planted:Planted/Picture-v0 --policy benchmarks.planted:glance --num-envs 4 --groups 4 "
        "--num-steps 64 --epochs 1 --minibatches 1 --workers 1",
        False,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Workload:
    """What is tuned, and the counts of workers of the exhaustive grid: many where envs wait for something."""

    flags: str
    workers: tuple[int, ...] = (0, 1, 2)


TUNED = {
    "slow-env": Workload(
        f"{SLOW} --env-kwargs.wait-sec 0.002 --num-envs 4 --groups 4 --num-steps 32 --workers 1",
        (0, 1, 2, 4, 8, 16),
    ),
    "cartpole": Workload("--env CartPole-v1 --num-envs 8 --workers 0"),
    "halfcheetah": Workload("--env HalfCheetah-v5 --num-envs 8 --num-steps 64 --workers 0"),
}
TIMES, OVERLAP, THREADS = (
    (1, 2, 4),
    (0, 1),
    (1, 2),
)  # the rest of the grid; envs as multiples of the workload's


def profile(flags: str, seconds: float, *more: str) -> dict[str, Any]:
    """What `distrl profile --json` prints."""
    with tempfile.TemporaryDirectory() as folder:
        words = flags.replace("FOLDER", folder).split()
        command = [
            sys.executable,
            "-m",
            "distrl",
            "profile",
            *words,
            "--seconds",
            str(seconds),
            "--json",
            *more,
        ]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if run.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {run.returncode}:\n{run.stderr[-2000:]}")
    return json.loads(run.stdout)  # type: ignore[no-any-return]


def run_case(case: Case, seconds: float) -> dict[str, Any]:
    """The bound found beside the one planted, and predicted beside measured."""
    found = profile(case.flags, seconds, "--try", "1")
    tried = found["tried"][0] if found["tried"] else None
    error = tried["error"] if tried else None
    return {
        "case": case.name,
        "command": f"distrl profile {case.flags}",
        "planted": case.bound,
        "found": found["bound"],
        "sentence": found["sentence"],
        "steps_per_sec": found["steps_per_sec"],
        "top_prescription": tried["flags"] if tried else None,
        "predicted_steps_per_sec": tried["predicted_steps_per_sec"] if tried else None,
        "measured_steps_per_sec": tried["measured_steps_per_sec"] if tried else None,
        "error": error,
        "other_share": max(parts.get("other", 0.0) for parts in found["processes"].values()),
        "span_overhead": found["span_overhead"]["share"],
        "bound_is_right": found["bound"] == case.bound,
        "prediction_is_right": error is not None and abs(error) <= WITHIN,
        "waits": case.waits,
    }


def points(workload: Workload) -> Iterator[str]:
    """The grid, as flags. A worker has an env at least; beyond a worker to a core, threads of the learner are none to give."""
    words = workload.flags.split()
    num_envs = int(words[words.index("--num-envs") + 1])
    for workers, times, overlap, threads in product(workload.workers, TIMES, OVERLAP, THREADS):
        if workers <= num_envs * times and (threads == 1 or workers <= (os.cpu_count() or 1)):
            yield (
                f"--workers {workers} --num-envs {num_envs * times} --groups {max(2, workers)} "
                f"--overlap {overlap} --learner-threads {threads}"
            )


def run_tuned(name: str, workload: Workload, seconds: float) -> dict[str, Any]:
    """What --tune found and the exhaustive grid, the best of either then in turns: a machine's speed drifts over a grid."""
    tuned = profile(workload.flags, seconds, "--tune")["tuned"]
    rates: list[dict[str, Any]] = [
        {"point": point, "steps_per_sec": profile(f"{workload.flags} {point}", seconds)["steps_per_sec"]}
        for point in points(workload)
    ]
    rates.sort(key=lambda one: -one["steps_per_sec"])
    found = "" if tuned[0]["flags"] == "as it is" else tuned[0]["flags"]
    return {
        "workload": name,
        "tuned": tuned,
        "grid": rates,
        **run_off(workload.flags, found, rates[0]["point"], seconds),
    }


def run_off(flags: str, found: str, best: str, seconds: float) -> dict[str, Any]:
    """Sessions with the one and with the other, by turns; the median of the turns' ratios counts."""
    turns = [
        {who: profile(f"{flags} {point}", seconds)["steps_per_sec"] for who, point in (("tuned", found), ("grid", best))}
        for _ in range(TURNS)
    ]  # fmt: skip
    share = statistics.median(turn["tuned"] / turn["grid"] for turn in turns)
    return {"turns": turns, "share_of_best": share, "is_right": share >= 0.9}


def merged(
    before: list[dict[str, Any]], now: list[dict[str, Any]], key: str, order: list[str]
) -> list[dict[str, Any]]:
    """The rows measured now, and those before that were not measured anew."""
    rows = {row[key]: row for row in before + now}
    return [rows[name] for name in order if name in rows]


def main() -> int:
    """Runs what was asked for, prints a table and writes the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--only", nargs="*", choices=[case.name for case in CASES])
    parser.add_argument(
        "--tune", nargs="*", choices=list(TUNED),
        help="also --tune beside an exhaustive grid, on all workloads or these: 15 minutes each",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    from distrl import machine

    load = os.getloadavg()[0]
    if load > 0.7:
        print(f"warning: load average {load:.1f}: what computes is measured roughly", file=sys.stderr)
    told = {"git_revision": machine.git_revision(), "load_average": load}
    rows = []
    for case in CASES:
        if arguments.only is not None and case.name not in arguments.only:
            continue
        row = {**run_case(case, arguments.seconds), **told}
        rows.append(row)
        error = "-" if row["error"] is None else f"{100 * row['error']:+.0f} %"
        print(
            f"{case.name:20} {row['found']:30} {'right' if row['bound_is_right'] else 'WRONG':6} "
            f"{row['top_prescription']}: predicted is {error} off"
        )
        print(f"{'':20} {row['sentence']}")
    tuned = []
    for name in [] if arguments.tune is None else arguments.tune or TUNED:
        tuned.append({**run_tuned(name, TUNED[name], arguments.seconds), **told})
        print(f"tune {name:15} {100 * tuned[-1]['share_of_best']:.0f} % of the grid's best")
    before = json.loads(arguments.out.read_text()) if arguments.out.exists() else {"cases": [], "tuned": []}
    cases = merged(before["cases"], rows, "case", [case.name for case in CASES])
    result = {
        "schema": SCHEMA, "cases": cases, "tuned": merged(before["tuned"], tuned, "workload", list(TUNED)),
        "median_error": statistics.median([abs(row["error"]) for row in cases if row["error"] is not None] or [0.0]),
        "machine": machine.machine("cpu"), "versions": machine.versions(),
    }  # fmt: skip
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    met = all(row["bound_is_right"] and row["prediction_is_right"] for row in rows)
    return 0 if met and all(one["is_right"] for one in tuned) else 1


if __name__ == "__main__":
    sys.exit(main())
