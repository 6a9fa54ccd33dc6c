"""samples.jsonl: what a policy wrote to the same prompts over a run, a line a response."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distrl.telemetry.sinks.jsonl import as_json

SAMPLES_FILE = "samples.jsonl"
SCHEMA = 1


def append_samples(path: Path, samples: Sequence[Mapping[str, Any]]) -> None:
    """Adds lines, on the disk when this returns."""
    with path.open("ab") as file:
        for one in samples:
            text = json.dumps(as_json(one), ensure_ascii=False, allow_nan=False)
            file.write(text.encode("utf-8", "backslashreplace") + b"\n")
        file.flush()
        os.fsync(file.fileno())
