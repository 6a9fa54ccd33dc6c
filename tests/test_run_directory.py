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
    create_run_directory,
    default_run_dir,
    lock_run_directory,
    resolve_run,
    truncate_metrics,
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
    assert resolve_run(Path("runs"), path.name) == path


def test_a_time_that_is_not_utc_is_refused() -> None:
    for time in (NOON.replace(tzinfo=None), NOON.astimezone(timezone(timedelta(hours=2)))):
        with pytest.raises(ValueError, match="aware time in UTC"):
            default_run_dir("CartPole-v1", "ppo", 0, time)


@pytest.mark.parametrize(
    "name", ["../x", "a/../../x", "/etc", "..", ".", "", ".hidden", "a b", "a\n", "x" * 201]
)
def test_a_run_name_that_leaves_its_root_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="run name"):
        create_run_directory(Path(name), root=tmp_path / "runs") if name not in ("", ".") else resolve_run(
            tmp_path / "runs", name
        )
    assert list(tmp_path.iterdir()) == []


def test_a_run_name_that_is_a_symlink_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "runs" / "dangling").symlink_to(tmp_path / "nothing")
    for name in ("mine", "dangling"):
        with pytest.raises(BadInput, match="symlink"):
            create_run_directory(Path(name), root=tmp_path / "runs")
        with pytest.raises(BadInput, match="symlink"):
            create_run_directory(tmp_path / "runs" / name)
    assert not (tmp_path / "nothing").exists()


def test_an_explicit_path_may_be_anywhere_but_must_be_new(tmp_path: Path) -> None:
    path = create_run_directory(tmp_path / "a" / "b" / ".." / "run one")
    assert path.is_dir()
    with pytest.raises(BadInput, match="exists; continue that run with --resume"):
        create_run_directory(path)
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="exists"):
        create_run_directory(tmp_path / "file")
    with pytest.raises(BadInput, match="cannot be made"):
        create_run_directory(tmp_path / "file" / "run")
    with pytest.raises(BadInput, match=r"not in \.\."):
        create_run_directory(tmp_path / "new" / "..")


HOLDS_THE_LOCK = """
import os, sys, time
from pathlib import Path
from distrl.run_directory import lock_run_directory

with lock_run_directory(Path(sys.argv[1])):
    child = os.fork() if sys.argv[2] == "fork" else 0
    if sys.argv[2] != "fork" or child:
        print(child, flush=True)
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


def metrics_file(folder: Path, ending: bytes) -> Path:
    path = folder / "metrics.jsonl"
    lines = [json.dumps({"iteration": i, "loss": None}).encode() + b"\n" for i in range(1, 6)]
    path.write_bytes(b"".join(lines) + ending)
    return path


@pytest.mark.parametrize(
    "ending", [b"", b'{"iteration": 6, "lo', b"{", b'{"iteration": 6}', b'{"iterat\n', b"\0\0\n"]
)
def test_metrics_are_cut_to_the_checkpoint_and_a_torn_line_goes(ending: bytes, tmp_path: Path) -> None:
    path = metrics_file(tmp_path, ending)
    assert truncate_metrics(path, 9) == 5
    assert truncate_metrics(path, 3) == 3
    assert [json.loads(line)["iteration"] for line in path.read_bytes().splitlines()] == [1, 2, 3]
    assert path.read_bytes().endswith(b"}\n")
    assert truncate_metrics(path, 0) == 0
    assert path.read_bytes() == b""
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_no_metrics_file_is_no_lines(tmp_path: Path) -> None:
    assert truncate_metrics(tmp_path / "metrics.jsonl", 3) == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("line", [b"not json", b"[1]", b'{"loss": 1}', b'{"iteration": null}'])
def test_a_bad_line_in_the_middle_is_named_and_nothing_is_lost(line: bytes, tmp_path: Path) -> None:
    path = metrics_file(tmp_path, line + b"\n" + b'{"iteration": 6}\n')
    before = path.read_bytes()
    with pytest.raises(RunFailed, match=r"metrics\.jsonl:6 is not a metrics line"):
        truncate_metrics(path, 9)
    assert path.read_bytes() == before
