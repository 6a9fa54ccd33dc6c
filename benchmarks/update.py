"""Times the PPO update of MLP policies on a CPU: the compiled twin beside torch's, over minibatch sizes and widths.

    python benchmarks/update.py [--rows 16384] [--turns 5] [--threads 1 2] [--out benchmarks/results/update.json]

One epoch of one batch: gather, forward, losses, backward, gradient clip and Adam of two networks with two tanh
layers each, advantages normalised per minibatch. Contestants take turns on the same batch and permutation. Rates are
of the fastest turn, by the clock and by the CPU time of the whole process: where other programs run, the first is
theirs too. The limit is what a CPU second gives of a float32 product on one thread (torch's of 1024x1024 or the
kernels' own from the cache, the faster), measured beside each work, over the multiplications that a sample needs:
forward, and twice that backward. Shares are of CPU time.
Exit status 1: the targets on 64x64 networks are missed, by the clock and with the most threads.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is first imported

import numba
import numpy as np
import torch
from gymnasium import spaces

from distrl import machine
from distrl.maths.mlp import multiply
from distrl.policies import PolicySpec, make_policy
from distrl.recipes import PPO
from distrl.trajectory import Trajectory
from distrl.updates.compiled import CompiledUpdate
from distrl.updates.protocol import Rates
from distrl.updates.torch import TorchUpdate

TARGETS = {256: 1.3e6, 16384: 1.6e6}  # samples a second, 64x64, by minibatch
WORKS: list[dict[str, Any]] = [
    *({"inputs": 4, "actions": 2, "width": 64, "minibatch": size} for size in (64, 256, 1024, 4096, 16384)),
    *({"inputs": 4, "actions": 2, "width": width, "minibatch": 1024} for width in (32, 128, 256, 512)),
    *({"inputs": 17, "box": 6, "width": 64, "minibatch": size} for size in (64, 1024)),
]


def make_batch(work: dict[str, Any], rows: int) -> tuple[Any, Trajectory]:
    """(the policy, a random fragment [rows / 64, 64] for it)."""
    rng = np.random.default_rng(0)
    shape = (rows // 64, 64)

    def floats(*more: int) -> np.ndarray:
        return rng.standard_normal((*shape, *more), np.float32)

    box = work.get("box")
    action_space = spaces.Box(-1, 1, (box,)) if box else spaces.Discrete(work["actions"])
    spec = PolicySpec("mlp", (work["width"],) * 2)
    policy = make_policy(spec, spaces.Box(-10, 10, (work["inputs"],)), action_space, 0)
    action = floats(box) if box else rng.integers(0, work["actions"], shape)
    no = np.zeros(shape, bool)
    trajectory = Trajectory(
        floats(work["inputs"]), action, floats(), no, no, ~no, no, floats(), floats(), 0.1 * floats() - 0.7
    )
    return policy, trajectory


def time_work(work: dict[str, Any], rows: int, turns: int, threads: list[int]) -> list[dict[str, Any]]:
    """Samples a second of every contestant."""
    size = work["minibatch"]
    order = np.random.default_rng(1).permutation(rows)
    parts = [order[i : i + size] for i in range(0, rows, size)]
    contestants = []
    for kind in ("compiled", "torch"):
        for count in threads:
            policy, trajectory = make_batch(work, rows)
            update = CompiledUpdate(policy, PPO, count) if kind == "compiled" else TorchUpdate(policy, PPO)
            batch = update.batch(trajectory, trajectory.reward, trajectory.next_value)
            contestants.append((kind, count, update, batch, [], []))
    for turn in range(turns + 1):
        for _, count, update, batch, walls, cpus in contestants:
            torch.set_num_threads(count)
            wall, cpu = time.perf_counter(), time.process_time()
            update.optimise(batch, [parts], Rates(1e-3, 0.2))
            if turn:  # the first one warms up
                walls.append(time.perf_counter() - wall)
                cpus.append(time.process_time() - cpu)
    return [
        {
            **work,
            "kind": kind,
            "threads": count,
            "samples_per_sec": rows / min(walls),
            "samples_per_cpu_sec": rows / min(cpus),
            "seconds": walls,
            "cpu_seconds": cpus,
        }
        for kind, count, _, _, walls, cpus in contestants
    ]


@numba.njit
def products(a: Any, b: Any, c: Any, times: int) -> None:
    """C = A B of 64x64 matrices, from the cache, by the kernel that the update is made of."""
    for _ in range(times):
        multiply(a, 0, 64, 1, b, 0, 64, c, 0, 0, c, 0, 64, 64, 64, 64)


def matrix_rate() -> float:
    """Float32 multiply-adds a CPU second on one thread: the faster of a large product and a small one in the cache."""
    torch.set_num_threads(1)
    x, small = torch.randn(1024, 1024), [np.zeros(64 * 64, np.float32) for _ in range(3)]
    contestants = ((lambda: x @ x, 1024**3), (lambda: products(*small, 4096), 4096 * 64**3))
    rates = []
    for product, multiply_adds in contestants:
        product()
        seconds = []
        for _ in range(15):
            begun = time.process_time()
            product()
            seconds.append(time.process_time() - begun)
        rates.append(multiply_adds / min(seconds))
    return max(rates)


def multiplications(work: dict[str, Any]) -> int:
    """Multiply-adds by weights that one sample needs: forward, gradient of the weights, gradient of their inputs."""
    inputs, width, outputs = work["inputs"], work["width"], work.get("box") or work["actions"]
    forward = 2 * (inputs * width + width * width) + width * (outputs + 1)
    return 3 * forward - 2 * inputs * width  # nobody wants the observations' gradient


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=16384)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "update.json")
    arguments = parser.parse_args()
    load_before = os.getloadavg()[0]
    results = []
    print(f"load before {load_before:.1f}; million samples/s by the clock (by CPU time), share of the limit")
    for work in WORKS:
        rows = time_work(work, arguments.rows, arguments.turns, arguments.threads)
        limit = matrix_rate()
        results += rows
        print(" ".join(f"{name} {value}" for name, value in work.items()))
        for row in rows:
            share = row["samples_per_cpu_sec"] * multiplications(work) / limit
            row |= {"share_of_limit": share, "matrix_multiply_adds_per_cpu_sec": limit}
            print(
                f"    {row['kind']:8} {row['threads']} threads  {row['samples_per_sec'] / 1e6:6.3f} "
                f"({row['samples_per_cpu_sec'] / 1e6:6.3f})  {share:5.0%}",
                flush=True,
            )
    most = max(arguments.threads)
    met = {}
    for size, target in TARGETS.items():
        (found,) = (
            row["samples_per_sec"]
            for row in results
            if (row["kind"], row["threads"], row["width"], row["minibatch"]) == ("compiled", most, 64, size)
            and "box" not in row
        )
        met[size] = found >= target
        print(
            f"target, minibatch {size}: {found / 1e6:.2f} of {target / 1e6:.1f}, {'met' if met[size] else 'missed'}"
        )
    content = {
        "schema": 1,
        "command": " ".join(["python", *sys.argv]),
        "machine": machine.machine(),
        "versions": machine.versions(),
        "git_revision": machine.git_revision(),
        "load": {"before": load_before, "after": os.getloadavg()[0]},
        "targets_met": met,
        "results": results,
    }
    arguments.out.write_text(json.dumps(content, indent=1) + "\n")
    return 0 if all(met.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
