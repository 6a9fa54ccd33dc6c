"""Does the learner do the same on a GPU? Proved in one call, without Ray.

    python benchmarks/gpu_check.py [--require-cuda] [--quick] [--out FILE]

1. `gae_cuda` gives the CPU's advantages.
2. On each device the same updates twice give the same bits; CPU and GPU agree to rounding.
3. A checkpoint of either device goes on on either: to the bit on the same one, to rounding on the other.
4. Seconds of an update and of GAE, beside the CPU's.

Without CUDA the CPU's part of 2 and 3 runs, says so, and exits 0 (1 with `--require-cuda`). A GPU machine needs
torch, numba with numba-cuda, numpy and safetensors, and three small pure-Python packages for the spaces:
`pip install --no-deps --target wheels gymnasium cloudpickle farama-notifications`, then
`PYTHONPATH=wheels:. python benchmarks/gpu_check.py`. Ray, pydantic and the display are blocked on purpose.

With CUDA the results go to benchmarks/results/gpu_check.json; without, only where `--out` says.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

try:
    import gymnasium.spaces  # noqa: F401
except ModuleNotFoundError as error:
    sys.exit(
        f"gpu_check: {error.name} is missing: pip install --no-deps --target wheels gymnasium cloudpickle "
        "farama-notifications, and put `wheels` on PYTHONPATH"
    )

for _name in ("ray", "pydantic", "click", "rich", "wandb", "tensorboard"):
    sys.modules[_name] = None  # type: ignore[assignment]  # from here on, an import of it fails
sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.gpu_cases import CASES, SEED, Case  # noqa: E402
from distrl.checkpoint import read_checkpoint, write_checkpoint  # noqa: E402
from distrl.learner import Learner, digest  # noqa: E402
from distrl.maths.advantage import gae  # noqa: E402
from distrl.policies import parameters_and_buffers  # noqa: E402

GAMMA, LAM = 0.99, 0.95
NUM_UPDATES = 3
# What rounding may do: 10 to 100 times what first parameters moved by 3e-6 of themselves do on one CPU.
METRIC_RTOL, METRIC_ATOL = 1e-3, 1e-4
PARAMETER_RTOL = 0.01  # of the way that the parameters have come
GAE_RTOL = {"float32": 1e-4, "float64": 1e-10}


class Checks:
    """What was checked and how it went, told as it goes."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def add(self, name: str, holds: bool, **detail: Any) -> None:
        self.rows.append({"check": name, "holds": bool(holds), **detail})
        told = "  ".join(
            f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}"
            for key, value in detail.items()
        )
        print(f"{'holds ' if holds else 'FAILS '} {name:58s} {told}", flush=True)

    @property
    def hold(self) -> bool:
        return all(row["holds"] for row in self.rows)


def check_gae(checks: Checks) -> None:
    """The CUDA kernel beside the CPU's, NaN where terminated included."""
    from numba import cuda

    from distrl.maths.advantage_cuda import gae_cuda

    rng = np.random.default_rng(SEED)
    for num_steps, num_envs in ((1, 1), (7, 1), (1, 130), (128, 64), (2048, 8), (128, 16384)):
        for dtype in ("float32", "float64"):
            columns = gae_columns(num_steps, num_envs, dtype, rng)
            expected = gae(*columns, GAMMA, LAM)
            result = gae_cuda(*map(cuda.to_device, columns), GAMMA, LAM).copy_to_host()
            worst = float(np.max(np.abs(result - expected) / (1.0 + np.abs(expected))))
            checks.add(f"gae_cuda {dtype} [{num_steps}, {num_envs}]", worst <= GAE_RTOL[dtype], worst=worst)
    columns = gae_columns(64, 32, "float32", rng)
    tensors = [cuda.as_cuda_array(torch.from_numpy(column).cuda()) for column in columns]
    back = torch.as_tensor(gae_cuda(*tensors, GAMMA, LAM), device="cuda").cpu().numpy()
    worst = float(np.max(np.abs(back - gae(*columns, GAMMA, LAM))))
    checks.add("gae_cuda on torch's own tensors", worst <= 1e-3, worst=worst)


def gae_columns(num_steps: int, num_envs: int, dtype: str, rng: np.random.Generator) -> list[Any]:
    """Random reward, value, next_value, terminated and done; next_value is NaN where terminated."""
    shape = (num_steps, num_envs)
    floats = [rng.standard_normal(shape).astype(dtype) for _ in range(3)]
    terminated = rng.random(shape) < 0.05
    floats[2][terminated] = np.nan
    return [*floats, terminated, terminated | (rng.random(shape) < 0.05)]


def train(learner: Learner, case: Case, first: int, last: int) -> list[dict[str, float]]:
    """The updates of iterations first .. last - 1; their metrics."""
    return [
        learner.update([replace(one, version=iteration) for one in case.trajectories(iteration)], 0.1)
        for iteration in range(first, last)
    ]


def check_repeatable(checks: Checks, case: Case, device: str) -> None:
    """Twice the same: bits."""
    digests = []
    for _ in range(2):
        learner = case.learner(device)
        train(learner, case, 0, NUM_UPDATES)
        digests.append(digest(parameters_and_buffers(learner.policy)))
    checks.add(f"{case.name}: twice the same on {device}", digests[0] == digests[1], digest=digests[0][:12])


def distance(case: Case, ours: Learner, theirs: Learner) -> float:
    """How far apart two learners' parameters are, as a share of how far ours have come (2-norms)."""
    names = [name for name, _ in ours.policy.named_parameters()]
    first, left, right = (
        np.concatenate([arrays[name].ravel() for name in names])
        for arrays in (parameters_and_buffers(one.policy) for one in (case.learner("cpu"), ours, theirs))
    )
    return float(np.linalg.norm(left - right) / np.linalg.norm(left - first))


def check_devices_agree(checks: Checks, case: Case) -> None:
    """CPU and GPU from the same start: metrics and parameters within rounding."""
    learners = {device: case.learner(device) for device in ("cpu", "cuda")}
    metrics = {device: train(learner, case, 0, NUM_UPDATES) for device, learner in learners.items()}
    worst, where = max(
        (abs(theirs[name] - mine) / (METRIC_ATOL + METRIC_RTOL * abs(mine)), name)
        for ours, theirs in zip(metrics["cpu"], metrics["cuda"], strict=True)
        for name, mine in ours.items()
        if name != "clip_fraction"  # counts of rows at a bound: one row more is not rounding
    )
    checks.add(f"{case.name}: losses on cuda as on cpu", worst <= 1.0, worst_of_tolerance=worst, metric=where)
    apart = distance(case, learners["cpu"], learners["cuda"])
    checks.add(f"{case.name}: parameters on cuda as on cpu", apart <= PARAMETER_RTOL, apart=apart)


def check_checkpoint(checks: Checks, case: Case, source: str, target: str) -> None:
    """Learn on `source`, save, load on `target`, go on: as the uninterrupted run on `source`."""
    learner = case.learner(source)
    train(learner, case, 0, NUM_UPDATES - 1)
    resumed = case.learner(target)
    with tempfile.TemporaryDirectory() as folder:
        saved = write_checkpoint(Path(folder), 1, {"learner": learner.state()}, {"device": source})
        resumed.load_state(read_checkpoint(saved).trees["learner"])
    before, after = (digest(parameters_and_buffers(one.policy)) for one in (learner, resumed))
    checks.add(f"{case.name}: checkpoint {source} -> {target}, same parameters", before == after)
    train(learner, case, NUM_UPDATES - 1, NUM_UPDATES)
    train(resumed, case, NUM_UPDATES - 1, NUM_UPDATES)
    name = f"{case.name}: checkpoint {source} -> {target}, goes on"
    if source == target:
        ends = {digest(parameters_and_buffers(one.policy)) for one in (learner, resumed)}
        checks.add(name, len(ends) == 1, compared="bits")
    else:
        apart = distance(case, learner, resumed)
        checks.add(name, apart <= PARAMETER_RTOL, apart=apart)


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


def time_updates(devices: list[str], quick: bool) -> list[dict[str, Any]]:
    """An update's seconds by network, batch and device."""
    sizes = {
        "mlp": [(128, 8)] if quick else [(128, 8), (128, 64), (128, 512), (128, 4096)],
        "lstm": [] if quick else [(128, 64), (128, 512)],
        "cnn": [] if quick else [(128, 8), (128, 32)],
    }
    rows = []
    for base in CASES[0], CASES[3], CASES[4]:
        for shape in sizes[base.network]:
            case = replace(base, shape_TN=shape)
            trajectories = case.trajectories(0)
            for device in devices:
                if device == "cpu" and base.network == "cnn" and shape[1] > 8:
                    continue  # minutes
                learner = case.learner(device)
                seconds = median_seconds(
                    lambda learner=learner, given=trajectories: learner.update(given, 0.1),
                    device,
                    0.2 if quick else 2.0,
                )
                row_rate = shape[0] * shape[1] / seconds["median"]
                rows.append(
                    {
                        "network": base.network,
                        "T": shape[0],
                        "N": shape[1],
                        "device": device,
                        "seconds": seconds,
                    }
                )
                print(
                    f"update {base.network:5s} {shape!s:12s} {device:5s} {seconds['median'] * 1e3:10.2f} ms  {row_rate:12,.0f} rows/s"
                )
    return rows


def time_gae(with_cuda: bool, quick: bool) -> list[dict[str, Any]]:
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
            rows.append({"T": num_steps, "N": num_envs, "where": name, "seconds": seconds})
            print(f"gae    [{num_steps}, {num_envs}] {name:18s} {seconds['median'] * 1e6:10.1f} us")
    return rows


def machine(with_cuda: bool) -> dict[str, Any]:
    """What the results depend on."""
    from importlib.metadata import PackageNotFoundError, version

    versions = {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda}
    for package in ("numpy", "numba", "numba-cuda", "gymnasium", "safetensors"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    gpu = torch.cuda.get_device_name() if with_cuda else None
    return {"gpu": gpu, "cores": os.cpu_count(), "load_average": os.getloadavg()[0], "versions": versions}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--require-cuda", action="store_true", help="exit 1 where CUDA is not there")
    parser.add_argument("--quick", action="store_true", help="two policies, small timings")
    parser.add_argument("--out", type=Path, help="default with CUDA: benchmarks/results/gpu_check.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    # 10 bits of mantissa are more than rounding; a run keeps torch's default, which is TF32 in cuDNN
    torch.backends.cudnn.allow_tf32 = False
    with_cuda = torch.cuda.is_available()
    described = machine(with_cuda)
    devices = ["cpu", "cuda"] if with_cuda else ["cpu"]
    print(f"CUDA: {described['gpu']}" if with_cuda else "CUDA is not here: only the CPU's part is checked")

    checks = Checks()
    if with_cuda:
        check_gae(checks)
    for case in (CASES[0], CASES[2]) if options.quick else CASES:
        for device in devices:
            check_repeatable(checks, case, device)
        if with_cuda:
            check_devices_agree(checks, case)
        for source in devices:
            for target in devices:
                check_checkpoint(checks, case, source, target)
    updates, gaes = time_updates(devices, options.quick), time_gae(with_cuda, options.quick)

    record = {
        "schema": 1,
        "command": f"python benchmarks/gpu_check.py{' --quick' if options.quick else ''}",
        "machine": described,
        "holds": checks.hold,
        "cuda": with_cuda,
        "checks": checks.rows,
        "update": updates,
        "gae": gaes,
    }
    out = options.out or (Path(__file__).parent / "results" / "gpu_check.json" if with_cuda else None)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(record, indent=1) + "\n")
    print(f"{sum(row['holds'] for row in checks.rows)} of {len(checks.rows)} checks hold")
    if options.require_cuda and not with_cuda:
        print("gpu_check: --require-cuda, and torch sees no CUDA device", file=sys.stderr)
        return 1
    return 0 if checks.hold else 1


if __name__ == "__main__":
    sys.exit(main())
