"""What the peers' GAE scripts share: the shapes, the discount, the stopwatch, the arguments and the line they print."""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version

GAMMA, LAMBDA = 0.99, 0.95
SHAPES_TN = [(128, 64), (2048, 8), (128, 16384)]


def median_us(call: Callable[[], object], seconds: float) -> tuple[float, int]:
    """Returns (median microseconds, repetitions) of `call`, repeated for `seconds`, at least 3 times."""
    call()
    times_sec: list[float] = []
    end = time.perf_counter() + seconds
    while len(times_sec) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times_sec.append(time.perf_counter() - start)
    return statistics.median(times_sec) * 1e6, len(times_sec)


def options_of(doc: str | None) -> argparse.Namespace:
    """Returns `--seconds` and `--threads`; sets OMP_NUM_THREADS, so it is called before torch is imported."""
    parser = argparse.ArgumentParser(description=(doc or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=3.0, help="per function and shape")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    return options


def report(peer: str, rows: list[dict[str, object]], threads: int, layout: str) -> None:
    """Prints one JSON line, as `benchmarks/gae.py` reads it."""
    settings = {"threads": threads, "layout": layout, "torch": version("torch")}
    line = {"peer": peer, "version": version(peer), "gae": rows, "settings": settings}
    print(json.dumps(line), flush=True)
