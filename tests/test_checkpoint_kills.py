"""Killed at any moment or out of space, a save leaves the checkpoints before it whole."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from distrl.checkpoint import (
    latest_checkpoint,
)

KILLED_AT_EVERY_LINE = """
import os, signal, sys
from pathlib import Path
import numpy as np
from distrl.checkpoint import latest_checkpoint, prune, write_checkpoint

root, mode, stride, first = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])

def act(value):
    tree = {"weight": np.full(40_000, value), "value": value}
    iteration = 5 if mode == "replace" else value
    write_checkpoint(root, iteration, {"policy": tree, "other": [value]}, {"value": value})
    if mode == "advance":
        prune(root, keep_last=2)

def kill_at(line_number):
    seen = 0
    def trace(frame, event, argument):
        nonlocal seen
        if Path(frame.f_code.co_filename).name not in ("writing.py", "files.py", "shutil.py"):
            return None
        if event == "line":
            seen += 1
            if seen == line_number:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace
    return trace

def check(oldest):
    folder, checkpoint, warnings = latest_checkpoint(root)
    value = checkpoint.meta["value"]
    assert warnings == [] and value >= oldest, (warnings, value, oldest)
    assert checkpoint.trees["other"] == [value] and checkpoint.trees["policy"]["value"] == value
    assert (checkpoint.trees["policy"]["weight"] == value).all()
    return value

for value in (1, 2):
    act(value)
latest, kills, line = 2, 0, first
while True:
    child = os.fork()
    if child == 0:
        try:
            sys.settrace(kill_at(line))
            act(latest + 1)
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    latest = check(latest)
    if not os.WIFSIGNALED(status):
        assert status == 0
        break
    kills += 1
    line += stride
    if mode == "advance":
        prune(root, keep_last=2)  # else each killed prune would leave more to the next
act(latest + 1)
left = sorted(os.listdir(root))
assert left == (["00000005"] if mode == "replace" else [f"{latest:08d}", f"{latest + 1:08d}"]), left
print(kills)
"""


@pytest.mark.parametrize("mode", ["advance", "replace"])
def test_killed_at_any_line_of_a_save_the_newest_checkpoint_is_whole(mode: str, tmp_path: Path) -> None:
    arguments = [str(tmp_path / "checkpoints"), mode, "2", str(random.randint(1, 2))]
    done = subprocess.run(
        [sys.executable, "-c", KILLED_AT_EVERY_LINE, *arguments], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 30


SAVES_FOR_EVER = """
import itertools, sys
from pathlib import Path
import numpy as np
from distrl.checkpoint import CheckpointWriter

writer = CheckpointWriter(Path(sys.argv[1]), keep_last=1, max_failures=1)
first = int(sys.argv[2])
for value in itertools.count(first):
    writer.save(value, {"policy": {"weight": np.full(100_000, value)}}, {"value": value})
    if value == first:
        print("saving", flush=True)
"""


def test_killed_at_random_moments_while_being_read_no_checkpoint_is_ever_lost(tmp_path: Path) -> None:
    root, latest = tmp_path / "checkpoints", 0
    for _ in range(4):
        writer = subprocess.Popen(
            [sys.executable, "-c", SAVES_FOR_EVER, str(root), str(latest + 1)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert writer.stdout is not None
        assert writer.stdout.readline() == "saving\n"
        deadline = time.monotonic() + random.uniform(0.05, 0.4)
        while True:
            over = time.monotonic() > deadline
            if over:
                writer.send_signal(signal.SIGKILL)
                assert writer.wait() == -signal.SIGKILL
            found = latest_checkpoint(root)
            assert found is not None
            _, checkpoint, warnings = found
            assert warnings == []
            assert checkpoint.iteration >= max(latest, 1)
            assert (checkpoint.trees["policy"]["weight"] == checkpoint.meta["value"]).all()
            latest = checkpoint.iteration
            if over:
                break
        writer.stdout.close()


FULL_DISK = """
import os, resource, signal, sys
from pathlib import Path
import numpy as np
from distrl.checkpoint import CheckpointError, CheckpointWriter, latest_checkpoint, write_checkpoint
from distrl.errors import RunFailed
from distrl.run_directory import write_json_atomic

root, mode = Path(sys.argv[1]), sys.argv[2]
small, large = np.ones(60_000), np.ones(250_000)  # 0.5 MB, 2 MB; the disk has 2 MiB
warnings = []
writer = CheckpointWriter(root, keep_last=5, max_failures=3, warn=warnings.append)
assert writer.save(1, {"policy": small}, {}) is None
digest = latest_checkpoint(root)[1].digest
if mode == "limit":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
for iteration in (2, 3):
    warning = writer.save(iteration, {"policy": large}, {})
    assert "No space left" in warning or "File too large" in warning, warning
    assert str(root) in warning and "needs 20000" in warning and "are free" in warning, warning
    assert f"failure {iteration - 1} of 3" in warning and "\\n" not in warning, warning
assert warnings[-1] == warning and len(warnings) == 2
assert writer.save(2, {"policy": small * 2}, {}) is None  # success starts the count again
assert writer.num_failures == 0
for iteration in (3, 4):
    assert writer.save(iteration, {"policy": large}, {}) is not None
try:
    writer.save(5, {"policy": large}, {})
except CheckpointError as error:
    assert isinstance(error, RunFailed) and error.exit_status == 1
    assert "failed 3 times in a row" in str(error), error
else:
    raise SystemExit("the third failure did not raise")
assert sorted(os.listdir(root)) == ["00000001", "00000002"], os.listdir(root)
folder, checkpoint, warnings = latest_checkpoint(root)
assert checkpoint.iteration == 2 and warnings == [] and (checkpoint.trees["policy"] == 2).all()
from distrl.checkpoint import read_checkpoint
assert read_checkpoint(root / "00000001").digest == digest

summary = root / "summary.json"
write_json_atomic(summary, {"schema": 1})
try:
    write_json_atomic(summary, "x" * 3_000_000)
except RunFailed as error:
    assert str(summary) in str(error)
else:
    raise SystemExit("a full disk took 3 MB")
assert summary.read_text().split() == ['{', '"schema":', '1', '}']
assert not list(root.glob(".summary*"))
print("done")
"""


def test_a_really_full_disk_warns_keeps_the_old_ones_and_fails_after_n(tmp_path: Path) -> None:
    mount = f"mount -t tmpfs -o size=2m tmpfs {tmp_path}"
    # A mount namespace of its own, so that the file system goes with the process, however it ends.
    for unshare in (["unshare", "--mount"], ["unshare", "--mount", "--map-root-user"]):
        if (
            shutil.which("unshare")
            and subprocess.run([*unshare, "sh", "-c", mount], capture_output=True).returncode == 0
        ):
            break
    else:
        pytest.skip("a file system cannot be mounted here; the test with a file size limit stands in")
    inside = f'{mount} && exec "$0" "$@"'
    done = subprocess.run(
        [
            *unshare,
            "sh",
            "-c",
            inside,
            sys.executable,
            "-c",
            FULL_DISK,
            str(tmp_path / "checkpoints"),
            "tmpfs",
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def test_a_file_size_limit_warns_keeps_the_old_ones_and_fails_after_n(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path / "checkpoints"), "limit"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
