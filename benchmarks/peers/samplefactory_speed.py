"""Times Sample Factory's APPO on CartPole-v1, its workers in processes of their own.

Usage: benchmarks/peers/.envs/samplefactory/bin/python benchmarks/peers/samplefactory_speed.py --num-envs 64

What runs is its own example for Gymnasium envs, in a process group of its own that is ended from outside (it ignores
its time limit). Env steps are the "Total num frames" of its log lines, which come every 5 seconds with their time:
the window is from the first line after the warm-up to the first at least `--seconds` later. Separate 64x64 tanh
networks, no normalisation, no RNN; asynchronous by default, as it is meant (`--no-async` for its synchronous mode,
`--serial` for one process). `--workers` times `--splits` must divide `--num-envs`.
"""

import argparse
import contextlib
import datetime
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading

from speed import RECIPE, Window, arguments, minibatch_size, only, report

LINE = re.compile(r"\[(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),(\d{3})\].*Total num frames: (\d+)")
START_SEC = 240.0


def frames(line: str) -> tuple[float, int] | None:
    """Returns (seconds since the epoch, frames in all) of a log line with a frame count; None for others."""
    found = LINE.search(line)
    if found is None:
        return None
    moment = datetime.datetime.strptime(found[1], "%Y-%m-%d %H:%M:%S").timestamp()
    return moment + int(found[2]) / 1000, int(found[3])


class LogWindow(Window):
    """A window whose clock is that of the log lines."""

    log_sec: float = 0.0

    def _now(self) -> tuple[float, float]:
        return self.log_sec, 0.0


def command(options: argparse.Namespace, folder: str) -> list[str]:
    """Returns the command line of its example; ValueError where the envs cannot be shared out."""
    processes = 1 if options.serial else options.workers
    if options.num_envs % (processes * options.splits):
        raise ValueError(
            f"workers * splits must divide num_envs, got {options.num_envs} / ({processes} * {options.splits})"
        )
    flags = {
        "env": options.env,
        "train_dir": folder,
        "experiment": "speed",
        "device": "cpu",
        "seed": options.seed,
        "serial_mode": options.serial,
        "async_rl": options.asynchronous and not options.serial,
        "batched_sampling": options.batched,
        "num_workers": processes,
        "num_envs_per_worker": options.num_envs // processes,
        "worker_num_splits": options.splits,
        "rollout": options.num_steps,
        "batch_size": minibatch_size(options),
        "num_batches_per_epoch": options.minibatches,
        "num_epochs": options.epochs,
        "learning_rate": options.learning_rate,
        "gamma": options.gamma,
        "gae_lambda": options.lam,
        "ppo_clip_ratio": options.clip,
        "ppo_clip_value": 0.2,
        "exploration_loss_coeff": options.entropy_coef,
        "value_loss_coeff": RECIPE["value_coef"],
        "max_grad_norm": RECIPE["max_grad_norm"],
        "adam_eps": 1e-5,
        "with_vtrace": False,
        "use_rnn": False,
        "normalize_input": False,
        "normalize_returns": False,
        "nonlinearity": "tanh",
        "actor_critic_share_weights": False,
        "train_for_env_steps": options.total_steps,
        "save_every_sec": 10**6,
        "log_to_file": False,
    }
    return [
        sys.executable, "-m", "sf_examples.train_gym_env",
        *(f"--{name}={value}" for name, value in flags.items()), "--encoder_mlp_layers", "64", "64",
    ]  # fmt: skip


def main() -> None:
    parser = arguments(__doc__, num_envs=64)
    parser.add_argument("--workers", type=int, default=2, help="rollout workers")
    parser.add_argument(
        "--splits", type=int, default=2, help="2: one half of the envs acts as the other steps"
    )
    parser.add_argument("--serial", action="store_true", help="all in one process")
    parser.add_argument("--no-async", dest="asynchronous", action="store_false")
    parser.add_argument("--batched", action="store_true", help="its batched sampling")
    options = parser.parse_args()
    only(options, rollout_only=False, until_return=None, env="CartPole-v1")
    window = LogWindow(options.warmup, options.seconds)
    one = str(options.threads)
    with tempfile.TemporaryDirectory(prefix="sample-factory-", ignore_cleanup_errors=True) as folder:
        child = subprocess.Popen(
            command(options, folder),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": one, "MKL_NUM_THREADS": one, "WANDB_MODE": "disabled"},
            start_new_session=True,
        )
        said: list[str] = []
        limit_sec = START_SEC + 4 * (options.warmup + options.seconds)
        watchdog = threading.Timer(limit_sec, os.killpg, (child.pid, signal.SIGKILL))
        watchdog.start()
        try:
            assert child.stdout is not None
            for line in child.stdout:
                said.append(line)
                counted = frames(line)
                if counted is not None:
                    window.log_sec, steps = counted
                    if steps and window.boundary(steps):
                        break
        finally:
            watchdog.cancel()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        if not window.env_steps:
            sys.exit(f"no whole window was logged:\n{''.join(said[-30:])}")
    settings = {
        "workers": 0 if options.serial else options.workers,
        "splits": options.splits,
        "async": options.asynchronous and not options.serial,
        "batched_sampling": options.batched,
        "value_clip": 0.2,
    }
    report("sample-factory", "sample-factory", options, window, settings)


if __name__ == "__main__":
    main()
