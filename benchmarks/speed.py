"""PPO on CartPole-v1 beside CleanRL, Stable-Baselines3 and RLlib: env steps a second, in one run on one machine.

    python benchmarks/speed.py [--seconds 20] [--repeats 3] [--only 8 64 ray]

Everyone has the same work (64x64 separate tanh networks, 128 steps, 4 epochs, 4 minibatches) and the same
measured window, each in a process of its own (benchmarks/peers/speed.py). Within a section the contestants take
turns, A B C A B C, so that a machine that grows slower does so for all; a ratio is formed within a turn. Peers
need their environments: benchmarks/peers/setup.sh. One that is missing is left out, and its targets are not met.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PEERS = Path(__file__).parent / "peers"
QUIET_LOAD = 0.7
SCHEMA = 1


@dataclass(frozen=True)
class Contestant:
    """A runner of benchmarks/peers with its arguments. `of` is the environment that runs it; None is ours."""

    name: str
    of: str | None
    arguments: tuple[str, ...]

    @property
    def python(self) -> Path:
        return Path(sys.executable) if self.of is None else PEERS / ".envs" / self.of / "bin" / "python"

    @property
    def command(self) -> list[str]:
        return [str(self.python), str(PEERS / f"{self.of or 'distrl'}_speed.py"), *self.arguments]


@dataclass(frozen=True)
class Target:
    """`ours` must make at least `times` the env steps a second of the fastest of `theirs`."""

    ours: tuple[str, ...]  # the faster counts
    theirs: tuple[str, ...]
    times: float


def _in_process(num_envs: int) -> tuple[Contestant, ...]:
    envs = ("--num-envs", str(num_envs))
    return (
        Contestant("distrl", None, envs),
        Contestant("CleanRL", "cleanrl", (*envs, "--vector-env", "sync")),
        Contestant("SB3", "sb3", envs),
        Contestant("distrl, CartPoleVectorEnv", None, (*envs, "--vectorization", "vector_entry_point")),
        Contestant("CleanRL, CartPoleVectorEnv", "cleanrl", (*envs, "--vector-env", "native")),
    )


def _ray(num_envs: int, *more: str) -> tuple[str, ...]:
    return ("--workers", "2", "--groups", "2", "--num-envs", str(num_envs), *more)


NATIVE = ("--vectorization", "vector_entry_point")
SECTIONS: dict[str, tuple[Contestant, ...]] = {
    "8": _in_process(8),
    "64": _in_process(64),
    "ray": (
        Contestant("RLlib 2x64, CartPoleVectorEnv", "rllib", ("--num-envs", "128")),
        Contestant("RLlib 2x64", "rllib", ("--num-envs", "128", "--vectorize", "sync")),
        Contestant("distrl 2x64", None, _ray(128)),
        Contestant("distrl 2x64, CartPoleVectorEnv", None, _ray(128, *NATIVE)),
        Contestant("distrl 2x256, CartPoleVectorEnv", None, _ray(512, *NATIVE)),
    ),
}
TARGETS: dict[str, tuple[Target, ...]] = {
    "8": (Target(("distrl",), ("CleanRL", "SB3"), 1.0),),
    "64": (Target(("distrl",), ("CleanRL", "SB3"), 1.0),),
    "ray": (
        Target(
            ("distrl 2x64", "distrl 2x64, CartPoleVectorEnv", "distrl 2x256, CartPoleVectorEnv"),
            ("RLlib 2x64", "RLlib 2x64, CartPoleVectorEnv"),
            3.0,
        ),
    ),
}


def measure(contestant: Contestant, seconds: float, warmup: float) -> dict[str, Any]:
    """One contestant's JSON line, with the load average before it. RuntimeError with its last words where it fails."""
    load = os.getloadavg()[0]
    command = [*contestant.command, "--seconds", f"{seconds:g}", "--warmup", f"{warmup:g}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"}
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=10 * (seconds + warmup) + 300,
    )
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)} exited {done.returncode}:\n{done.stderr[-3000:]}")
    line: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return line | {"load_average_before": load}


def run_section(
    name: str, seconds: float, warmup: float, repeats: int
) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
    """Each contestant's measurements, turn by turn, and who was left out."""
    here = [contestant for contestant in SECTIONS[name] if contestant.python.exists()]
    missing = [contestant.name for contestant in SECTIONS[name] if contestant not in here]
    for contestant in missing:
        print(f"{contestant} is left out: benchmarks/peers/setup.sh makes its environment", file=sys.stderr)
    lines: dict[str, list[dict[str, Any]]] = {contestant.name: [] for contestant in here}
    for turn in range(repeats):
        for contestant in here:
            line = measure(contestant, seconds, warmup)
            lines[contestant.name].append(line)
            print(
                f"  turn {turn + 1}  {contestant.name:34s} {line['steps_per_sec']:12,.0f} steps/s", flush=True
            )
    return lines, missing


def summarise(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Median and range of the steps a second, and what each turn gave."""
    rates = [line["steps_per_sec"] for line in lines]
    in_process = not any(lines[0]["settings"].get(key) for key in ("workers", "runners"))
    per_cpu = round(statistics.median(line["env_steps"] / line["cpu_seconds"] for line in lines), 1)
    return {
        "steps_per_sec": {"median": statistics.median(rates), "min": min(rates), "max": max(rates)},
        # by the process's own CPU time: hardly moved by what others do to the clock; only where one process does it all
        "steps_per_cpu_sec": per_cpu if in_process else None,
        "peer": lines[0]["peer"],
        "version": lines[0]["version"],
        "num_envs": lines[0]["num_envs"],
        "settings": lines[0]["settings"],
        "turns": [
            {
                key: line[key]
                for key in ("env_steps", "seconds", "cpu_seconds", "steps_per_sec", "load_average_before")
            }
            for line in lines
        ],
    }


def judge(target: Target, rows: dict[str, dict[str, Any]], missing: list[str]) -> dict[str, Any]:
    """The ratio of the best of ours to the best of theirs: of each turn, and their median, which is what counts."""

    def best(names: tuple[str, ...]) -> str:
        return max(
            (name for name in names if name in rows), key=lambda name: rows[name]["steps_per_sec"]["median"]
        )

    absent = [name for name in target.theirs if name in missing]
    if len(absent) == len(target.theirs):
        return {"times": target.times, "missing": absent, "met": False}
    ours, theirs = best(target.ours), best(target.theirs)
    ratios = [
        round(mine["steps_per_sec"] / other["steps_per_sec"], 3)
        for mine, other in zip(rows[ours]["turns"], rows[theirs]["turns"], strict=True)
    ]
    median = statistics.median(ratios)
    return {
        "ours": ours,
        "theirs": theirs,
        "times": target.times,
        "ratios": ratios,
        "median_ratio": median,
        "missing": absent,
        "met": median >= target.times and not absent,
    }


def table(name: str, rows: dict[str, dict[str, Any]], verdicts: list[dict[str, Any]]) -> str:
    """Medians with their range, and what the targets say."""
    lines = [f"{name} envs in-process" if name.isdecimal() else "Ray, 2 workers"]
    for contestant, row in rows.items():
        rate = row["steps_per_sec"]
        spread = f"[{rate['min']:,.0f} .. {rate['max']:,.0f}]"
        cpu = f"{row['steps_per_cpu_sec']:12,.0f} per CPU second" if row["steps_per_cpu_sec"] else ""
        lines.append(f"  {contestant:34s} {rate['median']:12,.0f} steps/s  {spread:24s} {cpu}".rstrip())
    for verdict in verdicts:
        said = "met" if verdict["met"] else "MISSED"
        if "ours" not in verdict:
            lines.append(f"  target: {verdict['times']:g} times: {said}, no peer is here")
            continue
        ratios = ", ".join(f"{ratio:.2f}" for ratio in verdict["ratios"])
        lines.append(
            f"  target: {verdict['ours']} at least {verdict['times']:g} times {verdict['theirs']}: "
            f"{verdict['median_ratio']:.2f} ({ratios}), {said}"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="the measured window")
    parser.add_argument("--warmup", type=float, default=5.0, help="seconds before it")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each contestant")
    parser.add_argument(
        "--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS), metavar="SECTION"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "speed.json")
    options = parser.parse_args()
    if options.repeats < 1 or options.seconds <= 0:
        parser.error("--repeats must be 1 or more and --seconds positive")
    load = os.getloadavg()
    quiet = load[0] <= QUIET_LOAD
    if not quiet:
        print(
            f"warning: load average {load[0]:.2f} is over {QUIET_LOAD}: others are at work, and the numbers say little",
            file=sys.stderr,
        )

    from distrl import machine

    record: dict[str, Any] = {
        "schema": SCHEMA,
        "command": shlex.join(["python", "benchmarks/speed.py", *sys.argv[1:]]),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "load_average_at_start": load,
        "quiet": quiet,
        "seconds": options.seconds,
        "warmup_sec": options.warmup,
        "repeats": options.repeats,
        "omp_num_threads": 1,
        "machine": machine.machine(),
        "versions": machine.versions(),
        "git_revision": machine.git_revision(),
        "sections": {},
    }
    tables = []
    for name in options.only:
        print(f"section {name}", flush=True)
        lines, missing = run_section(name, options.seconds, options.warmup, options.repeats)
        rows = {contestant: summarise(measured) for contestant, measured in lines.items()}
        verdicts = [judge(target, rows, missing) for target in TARGETS[name]]
        record["sections"][name] = {"rows": rows, "missing": missing, "targets": verdicts}
        tables.append(table(name, rows, verdicts))
        # after each section: an interrupted run keeps what it has
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(record, indent=1) + "\n")
    print("\n".join(tables))
    met = all(verdict["met"] for section in record["sections"].values() for verdict in section["targets"])
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
