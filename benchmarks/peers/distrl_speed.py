"""Times distrl's PPO on CartPole-v1, in-process or on Ray workers, by the protocol of the peers' runners.

Usage: .venv/bin/python benchmarks/peers/distrl_speed.py --num-envs 64 [--workers 2 --groups 2]

What runs is what `distrl train` runs: run directory, metrics.jsonl and checkpoints every 50 iterations are inside
the window. Only TensorBoard's events and the display are off, as the peers' are. Value clipping is on, as in
CleanRL. The default `--vectorization sync` is distrl's own; `vector_entry_point` is gymnasium's batched
CartPoleVectorEnv with NEXT_STEP autoreset (its reset rows are not counted as env steps).
"""

import os
import shutil
import sys
import tempfile
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from speed import RECIPE, Window, arguments, minibatch_size, report

CLIP_VALUE = 0.2


def main() -> None:
    parser = arguments(__doc__, num_envs=64)
    parser.add_argument("--workers", type=int, default=0, help="Ray rollout workers; 0 is in-process")
    parser.add_argument("--groups", type=int, default=1)
    parser.add_argument("--vectorization", choices=["sync", "vector_entry_point"], default="sync")
    parser.add_argument("--profile", type=Path, help="write the window's cProfile there (in-process only)")
    options = parser.parse_args()
    minibatch_size(options)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    window = Window(options.warmup, options.seconds)
    folder = Path(tempfile.mkdtemp(prefix="distrl-speed-"))
    try:
        train(options, window, folder / "run")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    settings = {name: getattr(options, name) for name in ("workers", "groups", "vectorization")}
    report("distrl", "distrl", options, window, settings | {"value_clip": CLIP_VALUE})


def train(options: Any, window: Window, run_dir: Path) -> None:
    """Trains as `distrl train` does, until the window closes."""
    from distrl import session
    from distrl.loops import train_synchronous
    from distrl.resolve import resolve

    fields = {
        "env": "CartPole-v1",
        "algo": "ppo",
        "workers": options.workers,
        "num_envs": options.num_envs,
        "groups": options.groups,
        "num_steps": options.num_steps,
        "epochs": options.epochs,
        "minibatches": options.minibatches,
        "learning_rate": RECIPE["lr"],
        "gamma": RECIPE["gamma"],
        "lam": RECIPE["gae_lambda"],
        "clip": RECIPE["clip"],
        "clip_value": CLIP_VALUE,
        "entropy_coef": RECIPE["entropy_coef"],
        "value_coef": RECIPE["value_coef"],
        "max_grad_norm": RECIPE["max_grad_norm"],
        "vectorization": options.vectorization,
        "autoreset": "disabled" if options.vectorization == "sync" else "next_step",
        "learner_threads": options.threads,
        "device": "cpu",
        "tensorboard": False,
        "eval_episodes": 0,
        "total_steps": 10**9,
        "run_dir": str(run_dir),
    }

    class Timed:
        """The run as its loop sees it, with a look at the clock after each iteration, and an end when it is time."""

        def __init__(self, run: Any) -> None:
            self.run = run
            self.over = False
            self.profiler: Any = None

        @property
        def iteration(self) -> int:
            return int(self.run.iteration)

        @property
        def progress(self) -> float:
            return 1.0 if self.over else float(self.run.progress)

        def uninterrupted(self) -> AbstractContextManager[None]:
            return self.run.uninterrupted()  # type: ignore[no-any-return]

        def keep(self, collected: Any, updated: Any) -> None:
            self.run.keep(collected, updated)
            self.over = window.boundary(self.run.state.env_steps)
            if options.profile is not None:
                self.profile()

        def profile(self) -> None:
            if window.started and self.profiler is None:
                import cProfile

                self.profiler = cProfile.Profile(time.process_time)  # others may be busy
                self.profiler.enable()
            elif self.over:
                self.profiler.disable()
                self.profiler.dump_stats(options.profile)

    # The loop stays what it is; only what it talks to is timed.
    session.train_synchronous = lambda runtime, run: train_synchronous(runtime, Timed(run))
    session.run_training(resolve(fields, None), quiet=True)


if __name__ == "__main__":
    sys.exit(main())
