"""How fast a CPU could be at most: floating-point operations of an iteration over the measured rate of a matrix product.

    python benchmarks/comparison/limit.py [--seconds 2] [--threads 2]      prints one JSON line

Only the multiplications by weights are counted, two operations per weight and row: environments, activations, losses
and the optimiser are taken as free, so the limit is out of reach by design. A minibatch's backward costs twice its
forward, but for the first layer, which needs no gradient of its input.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Work:
    """What is done with each env step: one forward in the rollout, `epochs` forwards and backwards in the update.

    `networks` has the multiplications of each layer of each network, per row; the first layer is first.
    """

    networks: tuple[tuple[int, ...], ...]
    epochs: int

    @property
    def rollout_flops(self) -> int:
        """Operations of one forward of all networks."""
        return 2 * sum(sum(layers) for layers in self.networks)

    @property
    def update_flops(self) -> int:
        """Operations of the update, per env step collected."""
        first = 2 * sum(layers[0] for layers in self.networks)
        return self.epochs * (3 * self.rollout_flops - first)

    @property
    def flops_per_step(self) -> int:
        """All operations per env step."""
        return self.rollout_flops + self.update_flops


def mlp(observations: int, hidden: tuple[int, ...], outputs: int) -> tuple[int, ...]:
    """Multiplications of each layer of an MLP, per row."""
    widths = (observations, *hidden, outputs)
    return tuple(before * after for before, after in zip(widths, widths[1:]))


def actor_critic(observations: int, actions: int, hidden: tuple[int, ...], epochs: int) -> Work:
    """Separate actor and critic."""
    return Work((mlp(observations, hidden, actions), mlp(observations, hidden, 1)), epochs)


def shared_trunk(observations: int, actions: int, hidden: tuple[int, ...], epochs: int) -> Work:
    """Actor and critic as two heads of one trunk."""
    return Work((mlp(observations, hidden, actions + 1),), epochs)


def nature_cnn(actions: int, epochs: int) -> Work:
    """The CNN of Mnih et al. 2015 on 84x84x4, with 512 units before both heads."""
    convolutions = (20 * 20 * 32 * 4 * 8 * 8, 9 * 9 * 64 * 32 * 4 * 4, 7 * 7 * 64 * 64 * 3 * 3)
    return Work(((*convolutions, 7 * 7 * 64 * 512, 512 * (actions + 1)),), epochs)


def best_rate(call: Callable[[], object], flops: int, seconds: float) -> float:
    """Operations a second in the fastest of the calls made within `seconds`, 3 at least."""
    call()
    best_sec, end, calls = float("inf"), time.perf_counter() + seconds, 0
    while calls < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        best_sec, calls = min(best_sec, time.perf_counter() - start), calls + 1
    return flops / best_sec


def sgemm(threads: int, seconds: float = 2.0, size: int = 1024) -> dict[str, Any]:
    """The rate of a square float32 product by NumPy's and by torch's library, in a process with so many threads."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    command = [
        sys.executable,
        __file__,
        "--seconds",
        f"{seconds:g}",
        "--threads",
        str(threads),
        "--size",
        str(size),
    ]
    environment = os.environ | dict.fromkeys(names, str(threads))
    done = subprocess.run(
        command,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
        cwd=Path(__file__).parent,
    )
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--size", type=int, default=1024)
    options = parser.parse_args()
    import numpy as np
    import torch

    torch.set_num_threads(options.threads)
    left, right = np.random.default_rng(0).standard_normal((2, options.size, options.size), np.float32)
    out = np.empty_like(left)
    of_torch = torch.from_numpy(left), torch.from_numpy(right), torch.from_numpy(out)
    flops = 2 * options.size**3
    with torch.no_grad():
        rates = {
            "numpy": best_rate(lambda: np.matmul(left, right, out=out), flops, options.seconds / 2),
            "torch": best_rate(
                lambda: torch.mm(of_torch[0], of_torch[1], out=of_torch[2]), flops, options.seconds / 2
            ),
        }
    gflops = {name: round(rate / 1e9, 1) for name, rate in rates.items()}
    line = {
        "threads": options.threads,
        "size": options.size,
        "gflops": gflops,
        "best_gflops": max(gflops.values()),
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
