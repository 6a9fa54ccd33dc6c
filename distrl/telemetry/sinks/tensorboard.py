"""TensorBoard events: one event a record, its x axis env steps, one file a run.

Written with the tensorboard package's own record writer: torch's SummaryWriter would import torch, write from a thread
and start a new file at each resume. Here a resume cuts the one file where the checkpoint was and appends, so
that reading it back shows each step once; `purge_step` would only ask the reader to forget.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

FILE_NAME = "events.out.tfevents.distrl"  # TensorBoard looks for "tfevents" in the name
_HEADER_BYTES, _FOOTER_BYTES = 12, 4  # uint64 length and its CRC; CRC of the data


class TensorBoardSink:
    """Writes the numbers of each record as scalars under their own names. With `resume_iteration`, cuts back first."""

    def __init__(self, run_dir: Path, *, resume_iteration: int | None = None) -> None:
        self.path = run_dir / FILE_NAME
        is_new = not self.path.exists()
        if not is_new:
            is_new = truncate_events(self.path, resume_iteration or 0) == 0
        self._file = self.path.open("ab")
        self._writer = RecordWriter(self._file)
        if is_new:
            self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def write(self, record: Mapping[str, Any]) -> None:
        values = [
            Summary.Value(tag=name, simple_value=float(value))
            for name, value in record.items()
            if isinstance(value, int | float) or hasattr(value, "dtype")
        ]
        self._write(
            Event(wall_time=time.time(), step=int(record["env_steps"]), summary=Summary(value=values))
        )

    def close(self) -> None:
        self._file.close()

    def _write(self, event: Event) -> None:
        self._writer.write(event.SerializeToString())
        self._writer.flush()


def truncate_events(path: Path, iteration: int) -> int:
    """Cuts the event file after the record of `iteration`, torn records included; returns the bytes kept."""
    end = 0
    with path.open("r+b") as file:
        while header := file.read(_HEADER_BYTES):
            if len(header) < _HEADER_BYTES:
                break
            (num_bytes,) = struct.unpack("<Q", header[:8])
            data = file.read(num_bytes + _FOOTER_BYTES)
            if len(data) < num_bytes + _FOOTER_BYTES:
                break
            event = Event.FromString(data[:num_bytes])
            if any(
                value.tag == "iteration" and value.simple_value > iteration for value in event.summary.value
            ):
                break
            end = file.tell()
        file.truncate(end)
        os.fsync(file.fileno())
    return end
