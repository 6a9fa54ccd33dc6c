"""Does the learner do the same on a GPU? Proved in one call, without Ray.

    python benchmarks/gpu_check.py [--require-cuda] [--quick] [--out FILE]

1. `gae_cuda` gives the CPU's advantages.
2. On each device the same updates twice give the same bits; CPU and GPU agree to rounding.
3. A checkpoint of either device goes on on either: to the bit on the same one, to rounding on the other.
4. The captured update: its steps without graphs and with them give the same bits, torch's to rounding (on the CPU
   to the bit); it waits for the GPU once an iteration; its checkpoints go on, also with torch's update.
5. A language model's generation in fixed shapes writes the plain loop's tokens, greedy and sampled; its captured steps
   give the bits of those without graphs.
6. Seconds of an update (torch eager, captured, bf16), of GAE and of inference, beside the CPU's and beside what the
   GPU's measured rates of arithmetic and memory allow.
7. With CUDA: generation of a model of 0.5 B in bfloat16 beside transformers' generate() and beside what the memory's
   measured rate allows, and an iteration of PPO and of GRPO at that size (about 30 GB of GPU memory). Left out by
   `--quick`, and 5 and 7 where transformers is not installed.

Without CUDA the CPU's part of 2, 3, 4 and 5 runs, says so, and exits 0 (1 with `--require-cuda`). A GPU machine needs
torch, numba with numba-cuda, numpy, safetensors and transformers, and three small pure-Python packages for the spaces:
`pip install --no-deps --target wheels gymnasium cloudpickle farama-notifications`, then
`PYTHONPATH=wheels:. python benchmarks/gpu_check.py`. Ray, pydantic and the display are blocked on purpose.

With CUDA the results go to benchmarks/results/gpu_check.json; without, only where `--out` says.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
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
from benchmarks.gpu_timing import gae_columns, rates_of, time_gae, time_inference, time_updates  # noqa: E402
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


def check_captured(checks: Checks, case: Case, device: str) -> None:
    """Graphs or none: the same bits; torch's update: to the bit on a CPU, to rounding on a GPU."""
    plain, stepwise = case.learner(device), case.learner(device, "captured", capture=False)
    for learner in (plain, stepwise):
        train(learner, case, 0, NUM_UPDATES)
    name = f"{case.name}: captured without graphs as torch on {device}"
    if device == "cpu":
        checks.add(name, digests_of(plain) == digests_of(stepwise), compared="bits")
        return
    apart = distance(case, plain, stepwise)
    checks.add(name, apart <= PARAMETER_RTOL, apart=apart)
    captured = case.learner(device, "captured")
    train(captured, case, 0, NUM_UPDATES)
    num_graphs = len(captured.optimisation.steps)  # type: ignore[attr-defined]
    same = digests_of(captured) == digests_of(stepwise)
    checks.add(f"{case.name}: captured as without graphs", same and num_graphs > 0, graphs=num_graphs)
    begun, resumed, by_torch = (case.learner(device, kind) for kind in ("captured", "captured", "torch"))
    train(begun, case, 0, NUM_UPDATES - 1)
    train(resumed, case, 5, 6)  # it has graphs of another state, which must not be stepped
    for learner in (resumed, by_torch):
        learner.load_state(begun.state())
        train(learner, case, NUM_UPDATES - 1, NUM_UPDATES)
    checks.add(f"{case.name}: captured goes on from its state", digests_of(resumed) == digests_of(captured))
    apart = distance(case, captured, by_torch)
    checks.add(f"{case.name}: torch goes on from it", apart <= PARAMETER_RTOL, apart=apart)


def digests_of(learner: Learner) -> tuple[str, str]:
    """Of the parameters and of the optimiser's state."""
    slots = {
        f"{number}.{name}": array
        for number, one in learner.optimisation.optimiser_state().items()
        for name, array in one.items()
    }
    return digest(parameters_and_buffers(learner.policy)), digest(slots)


def check_one_wait(checks: Checks, case: Case) -> None:
    """An iteration of the captured learner: torch's own waits are errors, and one event is waited for."""
    learner = case.learner("cuda", "captured")
    given = [case.trajectories(0), case.trajectories(0)]
    learner.update(given[0], 0.0)  # captures
    torch.cuda.synchronize()
    waits, real = [0], torch.cuda.Event.synchronize

    def counted(event: Any) -> None:
        waits[0] += 1
        real(event)

    torch.cuda.Event.synchronize = counted  # type: ignore[method-assign]
    torch.cuda.set_sync_debug_mode("error")
    said = ""
    try:
        learner.update(given[1], 0.1)
    except RuntimeError as error:
        said = str(error).splitlines()[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
        torch.cuda.Event.synchronize = real  # type: ignore[method-assign]
    checks.add(
        f"{case.name}: waits once an iteration", waits[0] == 1 and not said, waits=waits[0], error=said
    )


def machine(with_cuda: bool) -> dict[str, Any]:
    """What the results depend on."""
    from importlib.metadata import PackageNotFoundError, version

    versions = {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda}
    for package in ("numpy", "numba", "numba-cuda", "gymnasium", "safetensors", "transformers"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    gpu = torch.cuda.get_device_name() if with_cuda else None
    return {"gpu": gpu, "cores": os.cpu_count(), "load_average": os.getloadavg()[0], "versions": versions}


def responses_part() -> Any:
    """benchmarks/gpu_rlhf.py; None, and said so, where transformers is not there."""
    try:
        import transformers  # noqa: F401
    except ModuleNotFoundError as error:
        print(f"{error.name} is not here: generation is neither checked nor timed")
        return None
    import benchmarks.gpu_rlhf

    return benchmarks.gpu_rlhf


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
    for case in (CASES[0], CASES[2]) if options.quick else CASES:
        if case.network == "lstm":
            continue  # not served
        for device in devices:
            check_captured(checks, case, device)
        if with_cuda and not case.normalise:
            check_one_wait(checks, case)
    responses = responses_part()
    for device in devices if responses is not None else []:
        responses.check_generation(checks, device)
    rates = rates_of("cuda") if with_cuda else None
    updates = time_updates(devices, options.quick, rates)
    gaes = time_gae(with_cuda, options.quick, rates)
    inferences = time_inference(devices, options.quick, rates)
    writing: list[dict[str, Any]] = []
    steps: list[dict[str, Any]] = []
    if with_cuda and responses is not None and not options.quick:
        writing = responses.time_generation(responses.HALF_BILLION, responses.SIZES, "cuda", rates)
        steps = responses.time_steps(responses.HALF_BILLION, responses.SIZES[0], "cuda")

    record = {
        "schema": 3,
        "command": f"python benchmarks/gpu_check.py{' --quick' if options.quick else ''}",
        "machine": described,
        "holds": checks.hold,
        "cuda": with_cuda,
        "checks": checks.rows,
        "update": updates,
        "gae": gaes,
        "inference": inferences,
        "generation": writing,
        "rlhf_steps": steps,
        "rates": rates,
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
