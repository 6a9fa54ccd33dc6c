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

    With `resume_iteration=k` the lines after iteration k, and what is not a whole record, go first; a RuntimeWarning
    says how many of iterations 1..k are missing. Without it the file must not hold anything yet.
    """

    def __init__(self, path: Path, *, resume_iteration: int | None = None) -> None:
        self.path = path
        if resume_iteration is not None:
            kept = truncate_jsonl(path, resume_iteration) if path.exists() else 0
            if kept < resume_iteration:
                warnings.warn(
                    f"{path} has {kept} of the {resume_iteration} records before the checkpoint: the others are lost, "
                    "and it will not equal an uninterrupted run's; training is not affected",
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
    """Keeps the records of iterations 1 to `iteration` and nothing else; returns how many these are.

    What a kill leaves is a torn end: one truncation in place, and a kill during it loses nothing. Where a line
    before the end is damaged, the records behind it are kept as well, in a new file that replaces the old one.
    """
    with path.open("r+b") as file:
        lines = file.readlines()
        wanted = [(record := _parse(line)) is not None and record["iteration"] <= iteration for line in lines]
        kept = sum(wanted)
        if all(wanted[:kept]):
            file.truncate(sum(map(len, lines[:kept])))
            os.fsync(file.fileno())
            return kept
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.writelines(line for line, whole in zip(lines, wanted, strict=True) if whole)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    return kept


def _parse(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("iteration"), int) else None
