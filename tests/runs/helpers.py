"""What the tests of whole runs share: starting `distrl train`, killing it, and comparing what two runs left."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
NOT_DETERMINISTIC = re.compile(r"wall_sec|steps_per_sec|time/.*|system/.*")  # the contract's list, exactly
MARKER = "DISTRL_TEST_RUN"

# Four kinds of run, each small: 6 envs in 3 groups, so that 2 workers share unevenly and 3 have one each.
GROUPS = {"num_envs": 6, "groups": 3, "eval_episodes": 0, "tensorboard": False}
CASES: dict[str, dict[str, Any]] = {
    "mlp": {"env": "CartPole-v1", "num_steps": 16, "epochs": 2, **GROUPS},
    "lstm": {
        "env": "CartPole-v1", "network": "lstm", "lstm_size": 16, "hidden_sizes": "16", "num_steps": 16,
        "minibatches": 2, "epochs": 2, **GROUPS,
    },
    "normalised": {
        "env": "HalfCheetah-v5", "normalize_observation": True, "normalize_reward": True, "num_steps": 16,
        "epochs": 2, "hidden_sizes": "16,16", "max_episode_steps": 60, **GROUPS,
    },
    "image": {"env": "toys:Picture-v0", "num_steps": 8, "minibatches": 2, "epochs": 1, **GROUPS},
    "atari": {
        "env": "ALE/Breakout-v5", "num_steps": 4, "minibatches": 2, "epochs": 1, "max_episode_steps": 30, **GROUPS,
    },
}  # fmt: skip


def case(name: str, iterations: int = 20, **more: Any) -> dict[str, Any]:
    """The fields of a run of `CASES` that lasts so many iterations."""
    fields = CASES[name]
    return {**fields, "total_steps": iterations * fields["num_envs"] * fields["num_steps"], **more}


def flags(fields: dict[str, Any]) -> list[str]:
    """Fields as `distrl train` takes them."""
    arguments: list[str] = []
    for name, value in fields.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, dict):
            arguments += [
                part for key, one in value.items() for part in (f"--{flag}.{key.replace('_', '-')}", str(one))
            ]
        else:
            arguments += [f"--{flag}", str(value)]
    return arguments


@dataclass
class Finished:
    """How a command ended."""

    status: int
    output: str
    seconds: float


class Command:
    """A running `python -m distrl ...` in a process group of its own."""

    def __init__(self, arguments: list[str], environment: dict[str, str], log: Path) -> None:
        self.log = log
        self.started = time.monotonic()
        with log.open("wb") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "distrl", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=log.parent,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        """What it said so far, standard output and error together."""
        return self.log.read_text(errors="replace")

    @property
    def running(self) -> bool:
        """Whether the driver still lives."""
        return self.process.poll() is None

    def wait(self, timeout_sec: float = 90.0) -> Finished:
        """Its end; a command that does not end in time is killed, and AssertionError shows what it said."""
        try:
            status = self.process.wait(timeout_sec)
        except subprocess.TimeoutExpired:
            self.kill_all()
            raise AssertionError(f"still running after {timeout_sec} s; it said:\n{self.output}") from None
        return Finished(status, self.output, time.monotonic() - self.started)

    def signal(self, number: int) -> None:
        """To the driver alone."""
        self.process.send_signal(number)

    def signal_all(self, number: int) -> None:
        """To the whole process group."""
        with contextlib.suppress(ProcessLookupError):  # the last of it just ended
            os.killpg(self.process.pid, number)

    def kill_all(self) -> None:
        """kill -9 of the whole process group."""
        self.signal_all(signal.SIGKILL)
        self.process.wait()

    def wait_until(
        self, what: str, condition: Callable[[], bool], timeout_sec: float = 60.0, poll_sec: float = 0.02
    ) -> None:
        """Poll until `condition()`; AssertionError where the command ends or the time is up before."""
        deadline = time.monotonic() + timeout_sec
        while not condition():
            assert self.running, f"it ended before {what}; it said:\n{self.output}"
            if time.monotonic() > deadline:
                self.kill_all()
                raise AssertionError(f"not {what} after {timeout_sec} s; it said:\n{self.output}")
            time.sleep(poll_sec)


def processes_of(marker: str) -> list[psutil.Process]:
    """Every live process that inherited the run's marker: driver, Ray's own, workers, envs."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARKER) == marker and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def wait_until_gone(marker: str, timeout_sec: float = 10.0) -> list[str]:
    """What is left of the run after at most that long: a line for each process, none where all is well."""
    deadline = time.monotonic() + timeout_sec
    while True:
        left = processes_of(marker)
        if not left or time.monotonic() > deadline:
            return [f"{process.pid} {process.name()} {' '.join(process.cmdline())[:100]}" for process in left]
        time.sleep(0.1)


def summary(run_dir: Path) -> dict[str, Any]:
    """`summary.json`."""
    return json.loads((run_dir / "summary.json").read_text())


def digest(run_dir: Path) -> str:
    """SHA-256 of the parameters that the run ended with."""
    return summary(run_dir)["parameters_sha256"]


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    """`metrics.jsonl` without the keys that the contract calls not deterministic."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [
        {key: value for key, value in json.loads(line).items() if not NOT_DETERMINISTIC.fullmatch(key)}
        for line in lines
    ]


def assert_same_run(run_dir: Path, reference: Path, iterations: int = 20) -> None:
    """Equal parameters to the bit, equal metrics, and as many iterations as meant."""
    assert [record["iteration"] for record in metrics(reference)] == list(range(1, iterations + 1))
    assert metrics(run_dir) == metrics(reference)
    assert digest(run_dir) == digest(reference)
    assert summary(run_dir)["reproducibility"] == summary(reference)["reproducibility"] == "exact"


def checkpoint_numbers(run_dir: Path) -> list[int]:
    """Iterations that have a checkpoint folder."""
    return sorted(int(folder.name) for folder in (run_dir / "checkpoints").glob("[0-9]*"))


def checkpoint_bytes(run_dir: Path, iteration: int) -> str:
    """One SHA-256 over every file of a checkpoint."""
    total = hashlib.sha256()
    for path in sorted((run_dir / "checkpoints" / f"{iteration:08d}").iterdir()):
        total.update(path.name.encode() + path.read_bytes())
    return total.hexdigest()
