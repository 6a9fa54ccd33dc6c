"""The ladder's runs: one `distrl train` process for each rung and seed, as many at once as there are cores.

    run_ladder -- starts, polls --> distrl train (rung, seed)  x jobs     each waits for nobody
               <-- metrics.jsonl, exit status --

What is finished stays finished: called again with the same folder, complete runs are skipped and others
resumed from their last checkpoint, so a ladder may be stopped and gone on with at any time.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from distrl.errors import BadInput, RunFailed
from distrl.recipes import LADDER
from distrl.run_directory import write_json_atomic

SETTINGS_FILE = "settings.json"
SCHEMA = 1
STEPS_BETWEEN_CHECKPOINTS = 100_000
EPISODES_BETWEEN_CHECKPOINTS = 1_000
POLL_SEC = 0.5
PLAIN_EVERY_SEC = 30.0
STOP_SEC = 60.0  # what a run may take to write its checkpoint
_TAIL_BYTES = 8192


@dataclass(frozen=True)
class Settings:
    """What decides the ladder's curves; a folder holds one such."""

    env: str
    total_steps: int
    workers: int


@dataclass
class Job:
    """One rung with one seed, and its process while it runs."""

    algo: str
    seed: int
    run_dir: Path
    log: Path
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        return self.run_dir.name

    @property
    def finished(self) -> bool:
        """Whether the run reached its last step."""
        summary = self.run_dir / "summary.json"
        return summary.exists() and json.loads(summary.read_text())["exit_reason"] == "finished"

    def command(self, settings: Settings) -> list[str]:
        """The command that starts it, or goes on with what is there."""
        train = [sys.executable, "-m", "distrl", "train"]
        if (self.run_dir / "config.json").exists():
            return [*train, "--resume", str(self.run_dir)]
        recipe = LADDER[self.algo]
        every = (
            EPISODES_BETWEEN_CHECKPOINTS
            if recipe.collects == "episodes"
            else max(1, STEPS_BETWEEN_CHECKPOINTS // (recipe.num_envs * recipe.num_steps))
        )
        flags = {
            "env": settings.env, "algo": self.algo, "seed": self.seed, "workers": settings.workers,
            "total-steps": settings.total_steps, "eval-episodes": 0, "checkpoint-every": every,
            "keep-checkpoints": 1, "run-dir": self.run_dir,
        }  # fmt: skip
        return [*train, "--no-tensorboard", *(f"--{name}={value}" for name, value in flags.items())]

    def start(self, settings: Settings) -> None:
        """Start its process, with one thread and its output in `log`."""
        with self.log.open("ab") as log:
            # a session of its own: Ctrl-C reaches this process alone, which asks each run once
            self.process = subprocess.Popen(
                self.command(settings),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )

    def newest(self) -> dict[str, Any]:
        """The last whole record of its metrics, {} before the first."""
        try:
            with (self.run_dir / "metrics.jsonl").open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
                lines = file.read().split(b"\n")[:-1]
            record: dict[str, Any] = json.loads(lines[-1]) if lines else {}
        except (FileNotFoundError, ValueError):
            return {}
        return record


def run_ladder(
    *, env: str, seeds: int, total_steps: int, out: Path, workers: int = 0, jobs: int | None = None
) -> Path:
    """Trains every rung with seeds 1..`seeds` below `out` and writes `out`/report.html; returns its path.

    `jobs` runs train at once; by default as many as there are cores, or cores / workers. Raises BadInput
    where the env does not suit or `out` holds a ladder with other settings, RunFailed where runs failed (the
    report of the others is written).
    """
    settings = Settings(env, total_steps, workers)
    _check(settings)
    _claim(out, settings)
    todo = [
        Job(algo, seed, out / "runs" / f"{algo}-s{seed}", out / "logs" / f"{algo}-s{seed}.log")
        for seed in range(1, seeds + 1)  # seeds outside: a ladder that was stopped has whole rounds
        for algo in LADDER
    ]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    at_once = jobs if jobs is not None else max(1, cores // max(workers, 1))
    failed = _train_all(todo, settings, at_once)
    from distrl.ladder.report import write_ladder_report

    report = write_ladder_report(out, settings, [job.run_dir for job in todo if job.finished])
    if failed:
        raise RunFailed(
            f"{len(failed)} of {len(todo)} runs failed: {', '.join(job.name for job in failed)}; see "
            f"{failed[0].log}, then give the same command again: finished runs are kept"
        )
    assert report is not None
    return report


def _check(settings: Settings) -> None:
    """Raises BadInput where the env is none or a rung cannot train on it, before anything is started."""
    from distrl.build import work_spec
    from distrl.preflight import check_before_run
    from distrl.resolve import resolve

    for algo in LADDER:
        config = resolve(
            {
                "env": settings.env,
                "algo": algo,
                "workers": settings.workers,
                "total_steps": settings.total_steps,
            }
        ).config
        check_before_run(config)
        work_spec(config)


def _claim(out: Path, settings: Settings) -> None:
    """The folder, with its settings written before the first run; BadInput where it holds others."""
    path = out / SETTINGS_FILE
    wanted = {"schema": SCHEMA, **asdict(settings)}
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        if found != wanted:
            differing = [
                f"{name} {found.get(name)!r}" for name, value in wanted.items() if found.get(name) != value
            ]
            raise BadInput(f"--out: {out} holds a ladder with {', '.join(differing)}; name another folder")
        return
    if out.exists() and any(out.iterdir()):
        raise BadInput(f"--out: {out} holds something else; name an empty or a new folder")
    try:
        for name in ("runs", "logs"):
            (out / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"--out: {out} cannot be made ({error.strerror}); name another") from error
    write_json_atomic(path, wanted)


def _train_all(todo: Sequence[Job], settings: Settings, at_once: int) -> list[Job]:
    """Trains what is not finished; returns the runs that failed."""
    waiting = [job for job in todo if not job.finished]
    running: list[Job] = []
    failed: list[Job] = []
    with _interrupt_on_sigterm(), _Display(todo, settings) as display:
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    running.append(waiting.pop(0))
                    running[-1].start(settings)
                time.sleep(POLL_SEC)
                for job in [job for job in running if job.process and job.process.poll() is not None]:
                    running.remove(job)
                    if not job.finished:
                        failed.append(job)
                display.update(running, failed)
        finally:
            _stop(running)
    return failed


def _stop(running: Sequence[Job]) -> None:
    """Ask each run to stop, which it does at a checkpoint; end what does not answer."""
    processes = [job.process for job in running if job.process is not None]
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + STOP_SEC
    for process in processes:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def _interrupt_on_sigterm() -> Iterator[None]:
    """SIGTERM is told as Ctrl-C is, so that it stops the runs too; nothing in another thread than the main one."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    try:
        previous = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


class _Display:
    """Bars on a terminal, a line now and then elsewhere: all env steps, and the runs that go on now."""

    def __init__(self, todo: Sequence[Job], settings: Settings) -> None:
        self.todo = todo
        self.total = settings.total_steps
        self.console = Console(stderr=True, highlight=False)
        self.progress = Progress(
            TextColumn("{task.description:<26}"),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f}%  {task.fields[note]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=self.console,
            disable=not self.console.is_terminal,
            transient=True,
        )
        self.bars: dict[str, Any] = {}
        self.done = {job.name for job in todo if job.finished}
        self.next_plain_sec = 0.0

    def __enter__(self) -> _Display:
        self.progress.start()
        self.all = self.progress.add_task(
            "all runs", total=self.total * len(self.todo), completed=self.total * len(self.done), note=""
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def update(self, running: Sequence[Job], failed: Sequence[Job]) -> None:
        """Show how far the runs are."""
        now = {job.name: job.newest() for job in running}
        for name in [name for name in self.bars if name not in now]:
            self.progress.remove_task(self.bars.pop(name))
            if name not in {job.name for job in failed}:
                self.done.add(name)
        for name, record in now.items():
            steps, mean = record.get("env_steps", 0), record.get("episode_return_mean")
            note = "" if mean is None else f"return {mean:.1f}"
            if name not in self.bars:
                self.bars[name] = self.progress.add_task(name, total=self.total, note=note)
            self.progress.update(self.bars[name], completed=min(steps, self.total), note=note)
        steps = self.total * len(self.done) + sum(
            min(record.get("env_steps", 0), self.total) for record in now.values()
        )
        note = f"{len(self.done)} of {len(self.todo)} runs done" + (
            f", {len(failed)} failed" if failed else ""
        )
        self.progress.update(self.all, completed=steps, note=note)
        if not self.console.is_terminal and time.monotonic() >= self.next_plain_sec:
            self.next_plain_sec = time.monotonic() + PLAIN_EVERY_SEC
            share = 100 * steps / (self.total * len(self.todo))
            running_now = ", ".join(f"{name} {record.get('env_steps', 0):,}" for name, record in now.items())
            self.console.print(
                f"ladder {share:5.1f} %  {note}; running: {running_now or 'none'}", soft_wrap=True
            )
