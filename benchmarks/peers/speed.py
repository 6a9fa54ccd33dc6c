"""What the peers' speed runners share: the arguments, the window that is measured, and the one JSON line.

Every runner trains PPO on CartPole-v1 with separate 64x64 tanh networks and counts env steps between two
iteration boundaries: the first after the warm-up, and the first one at least `--seconds` later. Rollout,
advantages, update and episode statistics are inside; imports, set-up and warm-up are not.
"""

import argparse
import json
import time
from importlib.metadata import version

# One recipe, so that all do the same work: CleanRL's ppo.py defaults (value clipping is each peer's default).
RECIPE = {
    "lr": 2.5e-4,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "clip": 0.2,
    "entropy_coef": 0.01,
    "value_coef": 0.5,
    "max_grad_norm": 0.5,
}


def arguments(description: str | None, num_envs: int) -> argparse.ArgumentParser:
    """Returns the parser of what all runners take; `num_envs` is the default of `--num-envs`."""
    parser = argparse.ArgumentParser(description=(description or "").split("\n")[0])
    parser.add_argument("--num-envs", type=int, default=num_envs)
    parser.add_argument("--num-steps", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--minibatches", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=20.0, help="length of the measured window")
    parser.add_argument("--warmup", type=float, default=3.0, help="seconds before the window")
    parser.add_argument("--threads", type=int, default=1, help="torch threads of the learner")
    return parser


def minibatch_size(options: argparse.Namespace) -> int:
    """Returns num_envs * num_steps / minibatches, which must come out even."""
    rows: int = options.num_envs * options.num_steps
    minibatches: int = options.minibatches
    if rows % minibatches:
        raise ValueError(f"minibatches must divide num_envs * num_steps, got {rows} / {minibatches}")
    return rows // minibatches


class Window:
    """The measured window: `boundary(env_steps)`, called after every iteration, says when it is over."""

    def __init__(self, warmup_sec: float, window_sec: float) -> None:
        self._warmup_sec, self._window_sec = warmup_sec, window_sec
        self._begin: float | None = None
        self._start: tuple[float, float, int] | None = None
        self.seconds, self.cpu_seconds, self.env_steps = 0.0, 0.0, 0

    @property
    def started(self) -> bool:
        """Whether the warm-up is over."""
        return self._start is not None

    def boundary(self, env_steps: int) -> bool:
        """Takes the env steps done so far; returns True once the window is complete."""
        now, cpu = time.perf_counter(), time.process_time()
        if self._begin is None:
            # The first iteration also pays for lazy initialisation: it is never part of the window.
            self._begin = now
        elif self._start is None:
            if now - self._begin >= self._warmup_sec:
                self._start = (now, cpu, env_steps)
        else:
            start, start_cpu, start_steps = self._start
            self.seconds, self.cpu_seconds, self.env_steps = (
                now - start,
                cpu - start_cpu,
                env_steps - start_steps,
            )
        return self.env_steps > 0 and self.seconds >= self._window_sec


def report(
    peer: str, package: str, options: argparse.Namespace, window: Window, settings: dict[str, object]
) -> None:
    """Prints the JSON line of one measurement."""
    common = {key: getattr(options, key) for key in ("num_steps", "epochs", "minibatches", "threads")}
    line = {
        "peer": peer,
        "version": version(package),
        "num_envs": options.num_envs,
        "env_steps": window.env_steps,
        "seconds": round(window.seconds, 3),
        # of this process alone: well below `seconds` in an in-process run, others had the core
        "cpu_seconds": round(window.cpu_seconds, 3),
        "steps_per_sec": round(window.env_steps / window.seconds, 1),
        "settings": common | settings | {"torch": version("torch"), "gymnasium": version("gymnasium")},
    }
    print(json.dumps(line), flush=True)
