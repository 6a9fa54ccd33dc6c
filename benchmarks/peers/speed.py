"""What the peers' speed runners share: the arguments, the window that is measured, the race, and the one JSON line.

Every runner trains PPO, by default on CartPole-v1 with separate 64x64 tanh networks, and counts env steps between
two iteration boundaries: the first after the warm-up, and the first one at least `--seconds` later. Rollout,
advantages, update and episode statistics are inside; imports, set-up and warm-up are not. With `--rollout-only` only
rollouts are inside. With `--until-return R` it is a race: from the first step of training until the mean return of
the last 100 episodes is R.
"""

import argparse
import json
import os
import statistics
import time
from collections import deque
from collections.abc import Iterable
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
RACE_EPISODES = 100


def arguments(description: str | None, num_envs: int) -> argparse.ArgumentParser:
    """Returns the parser of what all runners take; `num_envs` is the default of `--num-envs`."""
    parser = argparse.ArgumentParser(description=(description or "").split("\n")[0], allow_abbrev=False)
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--num-envs", type=int, default=num_envs)
    parser.add_argument("--num-steps", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--minibatches", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=RECIPE["lr"])
    parser.add_argument("--gamma", type=float, default=RECIPE["gamma"])
    parser.add_argument("--lam", type=float, default=RECIPE["gae_lambda"])
    parser.add_argument("--clip", type=float, default=RECIPE["clip"])
    parser.add_argument("--entropy-coef", type=float, default=RECIPE["entropy_coef"])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--total-steps", type=int, default=10**9, help="end of the schedules")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of the measured window")
    parser.add_argument("--warmup", type=float, default=3.0, help="seconds before the window")
    parser.add_argument("--threads", type=int, default=1, help="torch threads of the learner")
    parser.add_argument("--rollout-only", action="store_true", help="measure rollouts alone")
    parser.add_argument("--until-return", type=float, help="race to this mean return of 100 episodes")
    parser.add_argument("--give-up", type=float, default=300.0, help="seconds after which a race is lost")
    return parser


def minibatch_size(options: argparse.Namespace) -> int:
    """Returns num_envs * num_steps / minibatches, which must come out even."""
    rows: int = options.num_envs * options.num_steps
    minibatches: int = options.minibatches
    if rows % minibatches:
        raise ValueError(f"minibatches must divide num_envs * num_steps, got {rows} / {minibatches}")
    return rows // minibatches


def only(options: argparse.Namespace, **served: object) -> None:
    """ValueError where an option has a value that this runner does not serve: `only(options, env="CartPole-v1")`."""
    for name, value in served.items():
        if getattr(options, name) != value:
            flag = "--" + name.replace("_", "-")
            raise ValueError(f"{flag} must be {value} in this runner, got {getattr(options, name)}")


class Window:
    """The measured window: `boundary(env_steps)`, called after every iteration, says when it is over.

    Time between `leave()` and `enter()` is not counted. With `until_return` it is a race: it begins at `begin()`,
    hears of ended episodes through `episodes()`, and is over when the last 100 have that mean return, or when
    `give_up_sec` are over.
    """

    def __init__(
        self,
        warmup_sec: float,
        window_sec: float,
        until_return: float | None = None,
        give_up_sec: float = float("inf"),
    ) -> None:
        self._warmup_sec, self._window_sec = warmup_sec, window_sec
        self._until_return, self._give_up_sec = until_return, give_up_sec
        self._begin: float | None = None
        self._start: tuple[float, float, int] | None = None
        self._left: tuple[float, float] | None = None
        self._away_sec, self._away_cpu = 0.0, 0.0
        self._returns: deque[float] = deque(maxlen=RACE_EPISODES)
        self.reached: float | None = None
        self.startup_sec: float | None = None
        self.seconds, self.cpu_seconds, self.env_steps = 0.0, 0.0, 0

    @classmethod
    def of(cls, options: argparse.Namespace) -> "Window":
        """Returns the window that the arguments ask for."""
        return cls(options.warmup, options.seconds, options.until_return, options.give_up)

    @property
    def started(self) -> bool:
        """Whether the warm-up is over."""
        return self._start is not None

    @property
    def racing(self) -> bool:
        return self._until_return is not None

    def _now(self) -> tuple[float, float]:
        wall, cpu = self._left or (time.perf_counter(), time.process_time())
        return wall - self._away_sec, cpu - self._away_cpu

    def leave(self) -> None:
        """What follows is not measured."""
        self._left = time.perf_counter(), time.process_time()

    def enter(self) -> None:
        """What follows is measured."""
        if self._left is not None:
            self._away_sec += time.perf_counter() - self._left[0]
            self._away_cpu += time.process_time() - self._left[1]
            self._left = None

    def begin(self) -> None:
        """Training begins: all is imported and made. A race's clock starts here."""
        if self._begin is None:
            self.startup_sec = round(seconds_of_process(), 3)
            if self.racing:
                now, cpu = self._now()
                self._begin, self._start = now, (now, cpu, 0)

    def episodes(self, returns: Iterable[float], env_steps: int) -> bool:
        """Takes the returns of episodes that ended, in order; returns True once the race is over."""
        if not self.racing or self.reached is not None:
            return self.reached is not None
        for one in returns:
            self._returns.append(one)
            if len(self._returns) == RACE_EPISODES and statistics.fmean(self._returns) >= self._until_return:
                self.reached = statistics.fmean(self._returns)
                self._count(env_steps)
                return True
        return False

    def boundary(self, env_steps: int) -> bool:
        """Takes the env steps done so far; returns True once the window is complete."""
        now, cpu = self._now()
        if self.racing:
            if self._start is None:
                raise RuntimeError("a race wants begin() before its first boundary")
            if self.reached is None:
                self._count(env_steps)
            return self.reached is not None or self.seconds >= self._give_up_sec
        if self._begin is None:
            # The first iteration also pays for lazy initialisation: it is never part of the window.
            self._begin = now
        elif self._start is None:
            if now - self._begin >= self._warmup_sec:
                self._start = (now, cpu, env_steps)
        else:
            self._count(env_steps)
        return self.env_steps > 0 and self.seconds >= self._window_sec

    def _count(self, env_steps: int) -> None:
        assert self._start is not None
        now, cpu = self._now()
        start, start_cpu, start_steps = self._start
        self.seconds, self.cpu_seconds, self.env_steps = now - start, cpu - start_cpu, env_steps - start_steps


def seconds_of_process() -> float:
    """Seconds since this process was started (Linux)."""
    with open("/proc/self/stat") as file:
        started_ticks = int(file.read().rpartition(")")[2].split()[19])
    with open("/proc/uptime") as file:
        uptime_sec = float(file.read().split()[0])
    return uptime_sec - started_ticks / os.sysconf("SC_CLK_TCK")


def report(
    peer: str, package: str, options: argparse.Namespace, window: Window, settings: dict[str, object]
) -> None:
    """Prints the JSON line of one measurement."""
    names = (
        "env", "num_steps", "epochs", "minibatches", "learning_rate", "gamma", "lam", "clip", "entropy_coef", "threads"
    )  # fmt: skip
    common = {key: getattr(options, key) for key in names}
    line = {
        "peer": peer,
        "version": version(package),
        "num_envs": options.num_envs,
        "env_steps": window.env_steps,
        "seconds": round(window.seconds, 3),
        # of this process alone: well below `seconds` in an in-process run, others had the core
        "cpu_seconds": round(window.cpu_seconds, 3),
        "steps_per_sec": round(window.env_steps / window.seconds, 1),
        "measured": "rollouts" if options.rollout_only else "race" if window.racing else "training",
        "settings": common | settings | {"torch": version("torch"), "gymnasium": version("gymnasium")},
    }
    if window.racing:
        line |= {
            "seed": options.seed,
            "until_return": options.until_return,
            "reached": window.reached,
            "startup_sec": window.startup_sec,
        }
    print(json.dumps(line), flush=True)
