"""A run directory is new, has one writer, and its files are replaced whole."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import IO

import pytest

from distrl.errors import BadInput, RunFailed
from distrl.run_directory import (
    default_run_dir,
    lock_run_directory,
    new_run_directory,
    write_json_atomic,
)

NOON = datetime(2026, 3, 1, 12, 0, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    ("env_id", "expected"),
    [
        ("CartPole-v1", "runs/CartPole-v1-ppo-s3-20260301T120005Z"),
        ("ALE/Pong-v5", "runs/ALE-Pong-v5-ppo-s3-20260301T120005Z"),
        ("module:ns/Name-v0", "runs/module-ns-Name-v0-ppo-s3-20260301T120005Z"),
        ("../../etc/x y-v0", "runs/etc-x-y-v0-ppo-s3-20260301T120005Z"),
        ("..", "runs/unnamed-ppo-s3-20260301T120005Z"),
        ("é" * 300 + "A" * 300, f"runs/{'A' * 80}-ppo-s3-20260301T120005Z"),
    ],
)
def test_the_default_name_is_safe_whatever_the_env_is_called(env_id: str, expected: str) -> None:
    path = default_run_dir(env_id, "ppo", 3, NOON)
    assert path == Path(expected)
    assert path.resolve().parent == Path("runs").resolve()


def test_runs_of_one_second_have_names_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = []
    for _ in range(3):
        path = default_run_dir("CartPole-v1", "ppo", 3, NOON)
        with new_run_directory(path):
            while_it_is_made = default_run_dir("CartPole-v1", "ppo", 3, NOON)
        assert while_it_is_made != path
        names.append(path.name.removeprefix("CartPole-v1-ppo-s3-20260301T120005Z"))
    assert names == ["", "-2", "-3"]


def test_a_time_that_is_not_utc_is_refused() -> None:
    for time in (NOON.replace(tzinfo=None), NOON.astimezone(timezone(timedelta(hours=2)))):
        with pytest.raises(ValueError, match="aware time in UTC"):
            default_run_dir("CartPole-v1", "ppo", 0, time)


def make(path: Path) -> None:
    with new_run_directory(path) as folder:
        (folder / "config.json").write_text("{}")


def test_a_run_directory_appears_whole_under_folders_that_are_made_for_it(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / ".." / "run one"
    with new_run_directory(path) as folder:
        (folder / "config.json").write_text("{}")
        assert not path.exists()
    assert [entry.name for entry in path.iterdir()] == ["config.json"]
    assert sorted(entry.name for entry in (tmp_path / "a").iterdir()) == ["b", "run one"]


def test_a_block_that_raises_leaves_no_run_directory(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), new_run_directory(tmp_path / "run") as folder:
        (folder / "config.json").write_text("{}")
        raise ZeroDivisionError
    with pytest.raises(BadInput, match="cannot be made: No space"), new_run_directory(tmp_path / "run"):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_a_run_directory_that_exists_or_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "file").write_text("mine")
    for name, why in (
        ("run", r"does: continue it with --resume .*/run"),
        ("file", "does"),
        ("file/run", "cannot be made"),
    ):
        with pytest.raises(BadInput, match=why):
            make(tmp_path / name)
    assert list((tmp_path / "run").iterdir()) == []
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("name", ["..", "new/..", "../..", "/", "."])
def test_a_run_directory_without_a_name_of_its_own_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match="must end in the name of a folder"):
        make(Path(name))
    assert list(tmp_path.iterdir()) == []


def test_a_run_directory_that_is_a_symlink_is_refused_even_one_to_nothing(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "mine").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    for name in ("mine", "dangling"):
        with pytest.raises(BadInput, match="must not be a symlink"):
            make(tmp_path / name)
    assert not (tmp_path / "nothing").exists()
    assert list((tmp_path / "elsewhere").iterdir()) == []


HOLDS_THE_LOCK = """
import os, sys, time
from pathlib import Path
from distrl.run_directory import lock_run_directory

with lock_run_directory(Path(sys.argv[1])):
    child = os.fork() if sys.argv[2] == "fork" else 0
    if sys.argv[2] != "fork":
        print(0, flush=True)
    elif child == 0:  # it says itself that it runs: what a fork does to the lock is done by then
        print(os.getpid(), flush=True)
    time.sleep(60)
"""


def start_holder(path: Path, mode: str = "alone") -> tuple[subprocess.Popen[str], IO[str], int]:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDS_THE_LOCK, str(path), mode], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    return holder, holder.stdout, int(holder.stdout.readline())


def test_a_second_writer_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    holder, output, _ = start_holder(tmp_path)
    try:
        second = subprocess.run(
            [sys.executable, "-c", HOLDS_THE_LOCK, str(tmp_path), "alone"],
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert second.returncode != 0
        assert f"is being written by another process (pid {holder.pid} on " in second.stderr
        with pytest.raises(BadInput, match=f"pid {holder.pid}"), lock_run_directory(tmp_path):
            pass
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        output.close()
    with lock_run_directory(tmp_path):
        assert (tmp_path / ".lock").read_text().startswith(f"pid {os.getpid()} on ")


def test_children_that_outlive_a_killed_holder_do_not_keep_its_lock(tmp_path: Path) -> None:
    holder, output, child = start_holder(tmp_path, "fork")
    try:
        with pytest.raises(BadInput, match="another process"), lock_run_directory(tmp_path):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        os.kill(child, 0)  # still there
        with lock_run_directory(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        output.close()


def test_the_lock_is_free_after_the_block_and_after_an_error_in_it(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), lock_run_directory(tmp_path):
        with pytest.raises(BadInput, match="another process"), lock_run_directory(tmp_path):
            pass
        raise ZeroDivisionError
    with lock_run_directory(tmp_path):
        pass
    with pytest.raises(BadInput, match=r"is .* a run directory"), lock_run_directory(tmp_path / "nowhere"):
        pass


def test_json_is_replaced_whole_and_adds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    (tmp_path / ".summary.json.999999999.tmp").write_text("left by a dead writer")
    for obj in ({"schema": 1, "name": "é", "none": None}, [1, 2.5]):
        write_json_atomic(path, obj)
        assert json.loads(path.read_text()) == obj
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json_atomic(path, {"loss": float("nan")})
    assert json.loads(path.read_text()) == [1, 2.5]
    assert [entry.name for entry in tmp_path.iterdir()] == ["summary.json"]


def test_a_folder_that_is_gone_is_a_failed_run_not_a_traceback(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="was not written: No such file"):
        write_json_atomic(tmp_path / "gone" / "summary.json", {})
