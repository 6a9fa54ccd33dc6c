"""Files that survive a crash: flushed to the disk before anything refers to them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ReadableBuffer = bytes | memoryview
READ_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class FileRecord:
    """What a manifest says of one file: its SHA-256 (hexadecimal) and its size."""

    sha256: str
    bytes: int

    def to_json(self) -> dict[str, Any]:
        return {"sha256": self.sha256, "bytes": self.bytes}


def write_durable(path: Path, chunks: Iterable[ReadableBuffer]) -> FileRecord:
    """Creates `path` from `chunks` and flushes it to the disk; OSError when it exists or the disk refuses.

    The hash is taken of what was meant to be written, not read back, so that it also finds out a bad disk.
    """
    digest = hashlib.sha256()
    num_bytes = 0
    with open(path, "xb") as file:
        for chunk in chunks:
            file.write(chunk)
            digest.update(chunk)
            num_bytes += len(chunk)
        file.flush()
        os.fsync(file.fileno())
    return FileRecord(digest.hexdigest(), num_bytes)


def replace_durable(path: Path, chunks: Iterable[ReadableBuffer]) -> None:
    """Puts `chunks` in the place of `path` in one step: a reader, or a crash, sees the old or the new.

    Raises OSError, and then leaves the old file as it was and nothing beside it.
    """
    for stale in path.parent.glob(f".{path.name}.*.tmp"):
        if not is_other_live_process(stale.name.split(".")[-2]):
            stale.unlink(missing_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write_durable(temporary, chunks)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def make_folder_durable(folder: Path) -> None:
    """Makes `folder` and those above it where they are missing; their names outlive a power cut."""
    if not folder.is_dir():
        make_folder_durable(folder.parent)
        folder.mkdir(exist_ok=True)
        fsync_folder(folder.parent)


def fsync_folder(folder: Path) -> None:
    """Flushes the names in `folder`: without it a rename may be lost with the power."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_record(path: Path) -> FileRecord:
    """Hashes a file as it is on the disk, in constant memory. Does not follow a symlink (OSError)."""
    digest = hashlib.sha256()
    num_bytes = 0
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    with open(descriptor, "rb", buffering=0) as file:
        while chunk := file.read(READ_CHUNK_BYTES):
            digest.update(chunk)
            num_bytes += len(chunk)
    return FileRecord(digest.hexdigest(), num_bytes)


def is_other_live_process(pid_text: str) -> bool:
    """Whether a process other than this one has that id; a text that is no id counts as dead."""
    if not pid_text.isdecimal() or int(pid_text) in (0, os.getpid()):
        return False
    try:
        os.kill(int(pid_text), 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True
