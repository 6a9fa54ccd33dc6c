"""metrics.jsonl: one JSON object an iteration, appended and flushed line by line."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


class JsonlSink:
    """Appends records to a JSON-lines file; each line is whole on disk before `write` returns to the loop.

    With `resume_iteration=k` the lines after iteration k, and a last line torn by a kill, are cut off first. Without
    it the file must not hold anything yet.
    """

    def __init__(self, path: Path, *, resume_iteration: int | None = None) -> None:
        self.path = path
        if resume_iteration is not None and path.exists():
            last_iteration = truncate_jsonl(path, resume_iteration)
            if last_iteration < resume_iteration:
                warnings.warn(
                    f"{path} ends at iteration {last_iteration}, the checkpoint is of iteration {resume_iteration}: "
                    "the records between are lost, training is not affected",
                    RuntimeWarning,
                    stacklevel=2,
                )
        elif path.exists() and path.stat().st_size > 0:
            raise ValueError(f"{path} must be empty for a new run; resume the run, or choose another folder")
        self._file = path.open("ab")

    def write(self, record: Mapping[str, Any]) -> None:
        line = json.dumps(as_json(record), separators=(", ", ": "), allow_nan=False)
        self._file.write(line.encode() + b"\n")
        self._file.flush()

    def sync(self) -> None:
        """Forces the lines to the disk itself; before a checkpoint, so that it never outlives its metrics."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def as_json(value: Any) -> Any:
    """The value with NumPy scalars and arrays made plain, and NaN and infinities, which JSON lacks, made None."""
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return as_json(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON-lines file, up to the first line that is not a whole object."""
    records = []
    with path.open("rb") as file:
        for line in file:
            record = _parse(line)
            if record is None:
                break
            records.append(record)
    return records


def truncate_jsonl(path: Path, iteration: int) -> int:
    """Cuts the file after the record of `iteration`; returns the last iteration kept, or 0 if none was.

    Records are in order of iteration, so this is one truncation in place: a kill during it loses nothing.
    """
    last_iteration, end = 0, 0
    with path.open("r+b") as file:
        for line in file:
            record = _parse(line)
            if record is None or record["iteration"] > iteration:
                break
            last_iteration = record["iteration"]
            end += len(line)
        file.truncate(end)
        os.fsync(file.fileno())
    return last_iteration


def _parse(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and "iteration" in record else None
