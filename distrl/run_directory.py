"""The run directory: made once, written by one process at a time, its JSON files replaced in one step."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import socket
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from itertools import chain, count
from pathlib import Path
from typing import Any

from distrl.checkpoint.files import fsync_folder, make_folder_durable, replace_durable
from distrl.errors import BadInput, RunFailed, cause

ENV_NAME_LENGTH = 80  # so that a run's name stays below the 255 bytes that file systems allow

# A forked child shares the lock and would keep it after this process was killed, so it lets go of its copy.
_lock_descriptors: set[int] = set()


def _close_locks_in_child() -> None:
    for descriptor in _lock_descriptors:
        os.close(descriptor)  # not LOCK_UN: that would free the parent's lock too
    _lock_descriptors.clear()


os.register_at_fork(after_in_child=_close_locks_in_child)


def default_run_dir(env_id: str, algo: str, seed: int, now_utc: datetime) -> Path:
    """`runs/<env>-<algo>-s<seed>-<UTC time>`; what is not a letter, digit, `_`, `.` or `-` becomes `-`.

    Behind it `-2` and so on where that is taken, by another run of the same second.
    `now_utc` is aware and in UTC, else ValueError: a local time would repeat in autumn.
    """
    if now_utc.utcoffset() != timedelta(0):
        raise ValueError(f"now_utc is an aware time in UTC, got {now_utc!r}; use datetime.now(UTC)")
    env, algo = _safe(env_id)[:ENV_NAME_LENGTH], _safe(algo)[:ENV_NAME_LENGTH]
    path = Path("runs") / f"{env}-{algo}-s{seed}-{now_utc.astimezone(UTC):%Y%m%dT%H%M%SZ}"
    names = chain([path], (path.with_name(f"{path.name}-{number}") for number in count(2)))
    return next(one for one in names if not _is_taken(one))


def _is_taken(path: Path) -> bool:
    """Whether a run has that directory, or is making it."""
    return path.exists() or path.is_symlink() or any(path.parent.glob(f".{path.name}.new-*"))


@contextmanager
def new_run_directory(path: Path) -> Iterator[Path]:
    """Gives a folder to fill beside `path`; a block that ends well puts it there, in one rename that outlives a
    power cut, and one that raises leaves nothing.

    BadInput where `path` exists, is a symlink (also one to nothing), names no folder (`..`), or cannot be made.
    """
    if path.name in ("", ".."):
        raise BadInput(f"--run-dir must end in the name of a folder to make, got {str(path)!r}")
    if path.is_symlink():
        raise BadInput(
            f"--run-dir must not be a symlink, {path} is one to {path.resolve()}; name a new folder"
        )
    if path.exists():
        raise BadInput(
            f"--run-dir must not exist yet, {path} does: continue it with --resume {path}, or name another"
        )
    temporary = path.parent / f".{path.name}.new-{os.getpid()}"
    try:
        make_folder_durable(path.parent)
        temporary.mkdir()
        yield temporary
        temporary.rename(path)
        fsync_folder(path.parent)
    except OSError as error:
        raise BadInput(f"--run-dir {path} cannot be made: {error.strerror}; name another") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def lock_run_directory(path: Path) -> Iterator[None]:
    """Holds the run directory for one writer. BadInput when another process holds it.

    The lock is the kernel's (`flock` on `<path>/.lock`): it ends with the process, however that ends. The
    text inside the file only helps a person.
    """
    lock_path = path / ".lock"
    try:
        descriptor = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise BadInput(
            f"run_dir: {lock_path} cannot be opened: {error.strerror}; is {path} a run directory?"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(descriptor, 200, 0).decode("utf-8", "replace").strip() or "unknown"
        os.close(descriptor)
        raise BadInput(
            f"run_dir: {path} is being written by another process ({holder}); wait for it or stop it"
        ) from error
    except OSError as error:
        os.close(descriptor)
        raise RunFailed(
            f"{lock_path} cannot be locked: {error.strerror}; use a file system that has locks"
        ) from error
    _lock_descriptors.add(descriptor)
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"pid {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        if descriptor in _lock_descriptors:  # not in a forked child, which let go of it long ago
            _lock_descriptors.discard(descriptor)
            os.close(descriptor)


def write_json_atomic(path: Path, obj: Any) -> None:
    """Replaces `path` by `obj` as JSON in one step. ValueError for NaN or infinity, RunFailed from disk."""
    text = json.dumps(obj, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    try:
        replace_durable(path, [text.encode("utf-8")])
    except OSError as error:
        raise RunFailed(f"{path} was not written: {error.strerror}; the file before it is intact") from error


def write_fault(path: Path, error: BaseException) -> Path | None:
    """Writes the error's traceback, with those of its causes, to a new file `faults/error-<n>.txt` of the run directory.

    Returns the file; None where it cannot be written: the report of an error must not hide the error.
    """
    text = "".join(traceback.format_exception(error))
    folder = path / "faults"
    with suppress(OSError):
        folder.mkdir(exist_ok=True)
        file = folder / f"error-{len(list(folder.glob('error-*.txt'))) + 1}.txt"
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
        with open(descriptor, "w", encoding="utf-8", errors="replace") as stream:
            stream.write(text)
        return file
    return None


def failure_of(path: Path, error: Exception, how_to_resume: str) -> RunFailed:
    """How a run that `error` ended fails: its cause in a line, where its traceback is, and how to resume.

    A traceback is kept where other code than ours raised something.
    """
    lines = [str(error) if isinstance(error, RunFailed) else cause(error), how_to_resume]
    if (error.__cause__ is not None or not isinstance(error, RunFailed)) and (
        file := write_fault(path, error)
    ) is not None:
        lines.insert(1, f"traceback in {file}")
    return RunFailed("\n".join(lines))


def _safe(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-.") or "unnamed"
