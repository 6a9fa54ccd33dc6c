"""Times GAE on one CPU thread beside a NumPy loop, a torch loop, TorchRL's and PufferLib's, and a copy of its bytes.

    python benchmarks/gae.py [--seconds 2] [--out benchmarks/results/gae.json]

The loops go over time and are vectorised over environments, as CleanRL's is. All get the same float32 columns, about
one step in 200 ending an episode; every result is checked against the NumPy loop first. Contestants take turns of
some calls each, so that a busy machine slows all alike; medians are of calls with warm caches. `copy` is the limit:
NumPy copying as many bytes as GAE must read and write. The target must be met by the ratio of medians and by that of
minima, since preemption hits long calls more often.
TorchRL and PufferLib (C) run in environments of their own, after the others, if `benchmarks/peers/setup.sh` has made
them; ours must be 3 times as fast as the fastest of the NumPy loop and these at each shape.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is first imported

import numpy as np
import torch

from distrl.maths.advantage import gae

GAMMA, LAM = 0.99, 0.95
SHAPES_TN = [(128, 64), (2048, 8), (128, 16384)]
TARGET_SHAPE_TN, TARGET_SPEEDUP = (2048, 8), 100
PEER_SPEEDUP = 3  # at each shape, the fastest of the NumPy loop, TorchRL and PufferLib
Columns = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]
PEERS = Path(__file__).parent / "peers"


def make_columns(num_steps: int, num_envs: int) -> Columns:
    """reward, value, next_value, terminated, done; each [T, N]."""
    rng = np.random.default_rng(0)
    shape = (num_steps, num_envs)
    reward, value, next_value = rng.standard_normal((3, *shape)).astype(np.float32)
    done = rng.random(shape) < 1 / 200
    return reward, value, next_value, done & (rng.random(shape) < 0.5), done


def numpy_loop(
    reward: np.ndarray, value: np.ndarray, next_value: np.ndarray, terminated: np.ndarray, done: np.ndarray
) -> np.ndarray:
    """CleanRL's loop, told termination from truncation."""
    alive, goes_on = 1.0 - terminated.astype(np.float32), 1.0 - done.astype(np.float32)
    advantage = np.zeros_like(reward)
    later = np.zeros_like(reward[0])
    for t in reversed(range(len(reward))):
        delta = reward[t] + GAMMA * next_value[t] * alive[t] - value[t]
        advantage[t] = later = delta + GAMMA * LAM * goes_on[t] * later
    return advantage


def torch_loop(
    reward: torch.Tensor,
    value: torch.Tensor,
    next_value: torch.Tensor,
    terminated: torch.Tensor,
    done: torch.Tensor,
) -> torch.Tensor:
    """The same in torch."""
    alive, goes_on = 1.0 - terminated.float(), 1.0 - done.float()
    advantage = torch.zeros_like(reward)
    later = torch.zeros_like(reward[0])
    for t in reversed(range(len(reward))):
        delta = reward[t] + GAMMA * next_value[t] * alive[t] - value[t]
        advantage[t] = later = delta + GAMMA * LAM * goes_on[t] * later
    return advantage


def time_in_turns(
    calls: dict[str, Callable[[], object]], seconds: float, turn_sec: float = 0.05
) -> dict[str, dict[str, float]]:
    """Microseconds of each call: median, min, max and repeats; `seconds` is about what all together may take.

    A turn is calls of one contestant in a row. The first has caches full of the others' data: it is kept apart, as
    `cold_median_us`, which is what one call between two long rollouts costs.
    """
    times_us: dict[str, list[float]] = {name: [] for name in calls}
    cold_us: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    end = time.perf_counter() + seconds
    while len(cold_us[next(iter(calls))]) < 3 or time.perf_counter() < end:
        for name, call in calls.items():
            sample: list[float] = []
            start = time.perf_counter()
            turn_end = start + turn_sec
            while len(sample) < 3 or start < turn_end:
                start = time.perf_counter()
                call()
                sample.append((time.perf_counter() - start) * 1e6)
            cold_us[name].append(sample[0])
            times_us[name] += sample[1:]
    return {
        name: {
            "median_us": round(statistics.median(sample), 2),
            "min_us": round(min(sample), 2),
            "max_us": round(max(sample), 2),
            "repeats": len(sample),
            "cold_median_us": round(statistics.median(cold_us[name]), 2),
        }
        for name, sample in times_us.items()
    }


def measure(num_steps: int, num_envs: int, seconds: float) -> dict[str, Any]:
    """One row of the table: every contestant of this process at one shape."""
    columns = make_columns(num_steps, num_envs)
    tensors = tuple(torch.from_numpy(column) for column in columns)
    expected = numpy_loop(*columns)
    np.testing.assert_allclose(gae(*columns, GAMMA, LAM), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(torch_loop(*tensors), expected, rtol=1e-4, atol=1e-4)

    moved_bytes = sum(column.nbytes for column in columns) + expected.nbytes
    source = np.zeros(moved_bytes // 2, np.uint8)  # a copy reads and writes each byte
    target = np.zeros_like(source)
    times = time_in_turns(
        {
            "distrl": lambda: gae(*columns, GAMMA, LAM),
            "copy": lambda: np.copyto(target, source),
            "torch_loop": lambda: torch_loop(*tensors),
            "numpy_loop": lambda: numpy_loop(*columns),
        },
        seconds,
    )
    return {"T": num_steps, "N": num_envs, "moved_bytes": moved_bytes, "times": times}


def measure_peer(peer: str, seconds: float) -> dict[str, Any] | None:
    """What `peers/<peer>_gae.py` prints, from the peer's own environment; None where there is none."""
    python = PEERS / ".envs" / peer / "bin" / "python"
    if not python.exists():
        print(f"{peer} is left out: benchmarks/peers/setup.sh {peer} makes its environment", file=sys.stderr)
        return None
    command = [str(python), str(PEERS / f"{peer}_gae.py"), "--seconds", str(seconds), "--threads", "1"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600).stdout
    found: dict[str, Any] = json.loads(printed.strip().splitlines()[-1])
    return found


def machine() -> dict[str, Any]:
    """What the times depend on."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "load_average": os.getloadavg()[0],
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("numpy", "numba", "llvmlite", "torch")},
    }


def add_peers(row: dict[str, Any], peers: dict[str, dict[str, Any] | None]) -> None:
    """Puts each peer's best into the row, and each contestant's median over ours: above one, ours is faster."""
    medians = {name: sample["median_us"] for name, sample in row["times"].items()}
    row["peers_us"] = {
        name: one["best_us"]
        for name, peer in peers.items()
        if peer is not None
        for one in peer["gae"]
        if (one["T"], one["N"]) == (row["T"], row["N"])
    }
    row["times_ours"] = {
        name: round(us / medians["distrl"], 3)
        for name, us in (medians | row["peers_us"]).items()
        if name != "distrl"
    }


def judge(row: dict[str, Any], missing: list[str]) -> dict[str, Any]:
    """How many times as fast ours is as the fastest peer at this shape; not met while one is missing."""
    rivals = {name: row["times_ours"][name] for name in ("numpy_loop", *row["peers_us"])}
    fastest = min(rivals, key=lambda name: rivals[name])
    return {
        "shape_TN": [row["T"], row["N"]],
        "fastest_peer": fastest,
        "times_fastest_peer": PEER_SPEEDUP,
        "measured": rivals[fastest],
        "missing": missing,
        "met": rivals[fastest] >= PEER_SPEEDUP and not missing,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Medians with the range in brackets, microseconds; and the ratios to ours."""
    lines = []
    for row in rows:
        lines.append(f"T={row['T']} N={row['N']}")
        for name, sample in row["times"].items():
            ratio = row["times_ours"].get(name, 1)
            spread = f"[{sample['min_us']:.1f} .. {sample['max_us']:.1f}]"
            cold = f"cold {sample['cold_median_us']:.0f} us"
            lines.append(
                f"  {name:12} {sample['median_us']:10.1f} us  {spread:24} {ratio:8.2f} x ours   {cold}"
            )
        lines += [
            f"  {name:12} {us:10.1f} us  {'':24} {row['times_ours'][name]:8.2f} x ours"
            for name, us in row["peers_us"].items()
        ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--seconds", type=float, default=2.0, help="per shape, and per function and shape of a peer"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "gae.json")
    options = parser.parse_args()
    torch.set_num_threads(1)

    rows = [measure(*shape, options.seconds) for shape in SHAPES_TN]
    peers = {peer: measure_peer(peer, options.seconds) for peer in ("torchrl", "pufferlib")}
    for row in rows:
        add_peers(row, peers)
    beside_peers = [judge(row, [name for name, peer in peers.items() if peer is None]) for row in rows]
    target_row = next(row for row in rows if (row["T"], row["N"]) == TARGET_SHAPE_TN)
    ours, loop = target_row["times"]["distrl"], target_row["times"]["numpy_loop"]
    speedup = round(min(loop["median_us"] / ours["median_us"], loop["min_us"] / ours["min_us"]), 1)
    met = speedup >= TARGET_SPEEDUP

    print(table(rows))
    for verdict in beside_peers:
        print(
            f"target: {PEER_SPEEDUP} times the fastest peer at {tuple(verdict['shape_TN'])}: "
            f"{verdict['measured']:.2f} times {verdict['fastest_peer']}, {'met' if verdict['met'] else 'MISSED'}"
        )
    print(
        f"target: {TARGET_SPEEDUP} times the NumPy loop at {TARGET_SHAPE_TN}: {speedup:.0f} times, {'met' if met else 'MISSED'}"
    )
    record = {
        "schema": 2,
        "command": f"python benchmarks/gae.py --seconds {options.seconds:g}",
        "gamma": GAMMA,
        "lam": LAM,
        "dtype": "float32",
        "threads": 1,
        "machine": machine(),
        "rows": rows,
        "peers": peers,
        "target": {
            "shape_TN": TARGET_SHAPE_TN,
            "times_numpy_loop": TARGET_SPEEDUP,
            "measured": speedup,
            "met": met,
        },
        "beside_peers": beside_peers,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=1) + "\n")
    return 0 if met and all(verdict["met"] for verdict in beside_peers) else 1


if __name__ == "__main__":
    sys.exit(main())
