"""Fixtures: a launcher of real `distrl` commands that finds what they leave behind, and reference runs."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import distrl

sys.path.insert(0, str(Path(__file__).parent))  # `toys`, as a user's module would be, and `helpers`

from helpers import HERE, MARKER, ROOT, Command, Finished, flags, processes_of, wait_until_gone

# Ray's agents look for their dead parent only once they have started, which takes long on a busy machine.
GONE_WITHIN_SEC = 40.0


@pytest.fixture(autouse=True)
def toys_are_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in the workers that a test's own process starts."""
    monkeypatch.setenv("PYTHONPATH", f"{HERE}{os.pathsep}{ROOT}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


class Launcher:
    """Starts commands that carry a marker, so that whatever they leave behind can be found."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.marker = uuid.uuid4().hex
        self.ray_folder = Path(tempfile.mkdtemp(prefix="dr", dir="/tmp"))  # short: it holds unix sockets
        self.number = 0

    def start(self, *arguments: str, **environment: str) -> Command:
        """`distrl <arguments>`, not waited for."""
        self.number += 1
        whole = {**os.environ, MARKER: self.marker, "RAY_TMPDIR": str(self.ray_folder), **environment}
        return Command(list(arguments), whole, self.folder / f"command{self.number}.log")

    def start_train(self, run_dir: Path, fields: dict[str, Any], **environment: str) -> Command:
        """`distrl train` of a new run, not waited for."""
        return self.start("train", *flags({**fields, "run_dir": run_dir}), **environment)

    def train(self, run_dir: Path, fields: dict[str, Any], **environment: str) -> Finished:
        """`distrl train` of a new run, to its end."""
        return self.start_train(run_dir, fields, **environment).wait()

    def resume(self, run_dir: Path, *arguments: str, **environment: str) -> Finished:
        """`distrl train --resume`, to its end."""
        return self.start("train", "--resume", str(run_dir), *arguments, **environment).wait()

    def assert_nothing_left(self, timeout_sec: float = GONE_WITHIN_SEC) -> None:
        """No process of these commands lives on."""
        assert wait_until_gone(self.marker, timeout_sec) == []

    def close(self) -> None:
        left = wait_until_gone(self.marker, GONE_WITHIN_SEC)
        for process in processes_of(self.marker):
            process.kill()
        shutil.rmtree(self.ray_folder, ignore_errors=True)
        assert left == [], "these outlived their run"


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[Launcher]:
    """Starts `distrl` commands; fails the test where a process outlives them by `GONE_WITHIN_SEC`."""
    one = Launcher(tmp_path)
    yield one
    one.close()


@pytest.fixture
def distrl_here(capfd: pytest.CaptureFixture[str]) -> Callable[..., Finished]:
    """`distrl <arguments>` in this process, for what needs neither Ray nor a kill: seconds less for each test."""

    def run_here(*arguments: str) -> Finished:
        from distrl.cli.main import run

        started = time.monotonic()
        capfd.readouterr()
        status = run(arguments)
        said = capfd.readouterr()
        return Finished(status, said.out + said.err, time.monotonic() - started)

    return run_here


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Callable[[dict[str, Any]], Path]:
    """The uninterrupted in-process run of some fields, trained once a session: its run directory."""
    known: dict[str, Path] = {}

    def train(fields: dict[str, Any]) -> Path:
        key = repr(sorted(fields.items()))
        if key not in known:
            run_dir = tmp_path_factory.mktemp("reference") / "run"
            distrl.train(**{**fields, "workers": 0, "run_dir": str(run_dir)})
            known[key] = run_dir
        return known[key]

    return train
