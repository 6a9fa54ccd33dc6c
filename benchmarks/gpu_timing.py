"""What gpu_check.py times: updates, GAE and inference, on each device, beside what the GPU's measured rates allow.

The limit of an update is its floating-point operations (counted by torch) over the rate of a large matrix product
of that precision, plus its bytes over the rate of a pinned copy; that of GAE its bytes over the rate of a copy on
the device. The rates are measured in the same run.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu_cases import CASES, SEED, Case
from distrl.inference import TorchInference
from distrl.maths.advantage import gae
from distrl.trajectory import Trajectory

GAMMA, LAM = 0.99, 0.95
Rates = dict[str, float]


def median_seconds(call: Callable[[], object], device: str, budget_sec: float) -> dict[str, float]:
    """Median, fastest and slowest of at least three calls, the device's work included, after one to warm up."""

    def once() -> float:
        start = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    once()
    begin, samples = time.perf_counter(), [once(), once(), once()]
    while time.perf_counter() - begin < budget_sec and len(samples) < 1000:
        samples.append(once())
    return {"median": statistics.median(samples), "min": min(samples), "max": max(samples)}


def rates_of(device: str) -> Rates:
    """What the device can do: FLOP/s of a large product in float32 (no TF32) and bfloat16, bytes/s of copies."""
    size = 4096
    rates = {}
    for name, kind in (("fp32_flops", torch.float32), ("bf16_flops", torch.bfloat16)):
        square = torch.rand(size, size, device=device).to(kind)
        seconds = median_seconds(lambda given=square: given @ given, device, 1.0)
        rates[name] = 2.0 * size**3 / seconds["median"]
    here = torch.empty(1 << 28, dtype=torch.uint8, pin_memory=True)
    there, beside = (torch.empty_like(here, device=device) for _ in range(2))
    seconds = median_seconds(lambda: there.copy_(here, non_blocking=True), device, 1.0)
    rates["upload_bytes"] = len(here) / seconds["median"]
    seconds = median_seconds(lambda: beside.copy_(there), device, 1.0)
    rates["memory_bytes"] = 2.0 * len(here) / seconds["median"]  # read and written
    for name, value in rates.items():
        print(f"rate   {name:14s} {value:.3g} /s")
    return rates


def gae_columns(num_steps: int, num_envs: int, dtype: str, rng: np.random.Generator) -> list[Any]:
    """Random reward, value, next_value, terminated and done; next_value is NaN where terminated."""
    shape = (num_steps, num_envs)
    floats = [rng.standard_normal(shape).astype(dtype) for _ in range(3)]
    terminated = rng.random(shape) < 0.05
    floats[2][terminated] = np.nan
    return [*floats, terminated, terminated | (rng.random(shape) < 0.05)]


def time_updates(devices: list[str], quick: bool, rates: Rates | None) -> list[dict[str, Any]]:
    """An update's seconds by network, batch, device, twin and precision; on a GPU also the share of the limit."""
    sizes: dict[str, list[tuple[int, int]]] = {
        "mlp": [(128, 8)] if quick else [(128, 8), (128, 64), (128, 512), (128, 4096)],
        "lstm": [] if quick else [(128, 64), (128, 512)],
        "cnn": [] if quick else [(128, 8), (128, 32)],
    }
    rows = []
    for base in CASES[0], CASES[3], CASES[4]:
        for shape in sizes[base.network]:
            given = replace(base, shape_TN=shape).trajectories(0)
            for device in devices:
                if device == "cpu" and base.network == "cnn" and shape[1] > 8:
                    continue  # minutes
                twins = ["torch"] if device == "cpu" or base.network == "lstm" else ["torch", "captured"]
                precisions = ["fp32"] if device == "cpu" or base.network == "lstm" else ["fp32", "bf16"]
                for twin in twins:
                    for precision in precisions:
                        case = replace(base, shape_TN=shape, precision=precision)
                        row = time_update(case, given, device, twin, 0.2 if quick else 2.0)
                        rows.append(row | share(row, rates if device == "cuda" else None))
                        print_row("update", rows[-1], shape[0] * shape[1])
    return rows


def time_update(
    case: Case, given: list[Trajectory], device: str, twin: str, budget_sec: float
) -> dict[str, Any]:
    """Seconds, floating-point operations and bytes sent of one update."""
    learner = case.learner(device, twin)
    seconds = median_seconds(lambda: learner.update(given, 0.1), device, budget_sec)
    with FlopCounterMode(display=False) as counter:
        case.learner(device).update(given, 0.1)
    return {
        "network": case.network,
        "T": case.shape_TN[0],
        "N": case.shape_TN[1],
        "device": device,
        "update": twin,
        "precision": case.precision,
        "flops": float(counter.get_total_flops()),
        "bytes": sum(one.num_bytes for one in given),
        "seconds": seconds,
    }


def share(row: dict[str, Any], rates: Rates | None) -> dict[str, float]:
    """The limit's share of the seconds; nothing where there are no rates."""
    if rates is None:
        return {}
    limit = row["flops"] / rates[f"{row['precision']}_flops"] + row["bytes"] / rates["upload_bytes"]
    return {"limit_sec": limit, "share_of_limit": limit / row["seconds"]["median"]}


def time_inference(devices: list[str], quick: bool, rates: Rates | None) -> list[dict[str, Any]]:
    """Seconds of `act` on arrays, there and back, of small and large nets and batches."""
    wide = replace(CASES[1], name="mlp 1024x1024", hidden_sizes=(1024, 1024))
    rows = []
    for base in (CASES[1],) if quick else (CASES[1], wide, CASES[4]):
        for num_envs in (8,) if quick else (8, 64, 1024):
            case = replace(base, shape_TN=(1, num_envs))
            first, second = case.trajectories(0)
            observation = np.concatenate([first.observation[0], second.observation[0]])
            for device in devices:
                policy = case.policy().to(device)
                noise = policy.distribution.noise(np.random.default_rng(SEED), (num_envs,))
                inference = TorchInference(policy)
                with torch.inference_mode():
                    act: Callable[[], object] = lambda one=inference, o=observation, n=noise: one.act(  # noqa: E731
                        o, None, n, None
                    )
                    seconds = median_seconds(act, device, 0.1 if quick else 0.5)
                    with FlopCounterMode(display=False) as counter:
                        act()
                row = {
                    "network": case.name,
                    "T": 1,
                    "N": num_envs,
                    "device": device,
                    "precision": "fp32",
                    "flops": float(counter.get_total_flops()),
                    "bytes": observation.nbytes + noise.nbytes,
                    "seconds": seconds,
                }
                rows.append(row | share(row, rates if device == "cuda" else None))
                print_row("act", rows[-1], num_envs)
    return rows


def print_row(what: str, row: dict[str, Any], num_rows: int) -> None:
    how = " ".join(str(row[name]) for name in ("device", "update", "precision") if name in row)
    limit = f"  {row['share_of_limit']:6.1%} of the limit" if "share_of_limit" in row else ""
    median = row["seconds"]["median"]
    print(
        f"{what:6s} {row['network']:16s} [{row['T']}, {row['N']}] {how:20s} {median * 1e3:10.3f} ms"
        f"  {num_rows / median:12,.0f} rows/s{limit}",
        flush=True,
    )


def time_gae(with_cuda: bool, quick: bool, rates: Rates | None) -> list[dict[str, Any]]:
    """GAE's seconds: the CPU's, the GPU's on arrays that are there, and the GPU's with the copies there and back."""
    rng = np.random.default_rng(SEED)
    rows = []
    for num_steps, num_envs in [(128, 64)] if quick else [(128, 64), (2048, 8), (128, 16384)]:
        columns = gae_columns(num_steps, num_envs, "float32", rng)
        calls: dict[str, Callable[[], object]] = {"cpu": lambda given=columns: gae(*given, GAMMA, LAM)}
        if with_cuda:
            from numba import cuda

            from distrl.maths.advantage_cuda import gae_cuda

            there = [cuda.to_device(column) for column in columns]
            calls["cuda"] = lambda given=there: gae_cuda(*given, GAMMA, LAM)
            calls["cuda with copies"] = lambda given=columns: gae_cuda(
                *map(cuda.to_device, given), GAMMA, LAM
            ).copy_to_host()
        for name, call in calls.items():
            seconds = median_seconds(call, "cuda" if "cuda" in name else "cpu", 0.1 if quick else 1.0)
            row: dict[str, Any] = {"T": num_steps, "N": num_envs, "where": name, "seconds": seconds}
            if rates is not None and name == "cuda":
                limit = (sum(column.nbytes for column in columns) + columns[0].nbytes) / rates["memory_bytes"]
                row |= {"limit_sec": limit, "share_of_limit": limit / seconds["median"]}
            rows.append(row)
            print(f"gae    [{num_steps}, {num_envs}] {name:18s} {seconds['median'] * 1e6:10.1f} us")
    return rows
