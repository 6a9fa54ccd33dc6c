"""Stands in for TensorBoard's `SummaryWriter` in CleanRL's files: every finished episode goes to one CSV.

The path comes from the variable EPISODES_CSV; without it nothing is written. CleanRL's own scalars are dropped.
"""

import os
from typing import Any


class SummaryWriter:
    def __init__(self, _log_dir: str) -> None:
        path = os.environ.get("EPISODES_CSV")
        self._file = open(path, "w") if path else None  # noqa: SIM115 - closed by close(), as CleanRL's last line does
        if self._file:
            self._file.write("global_step,return,length\n")

    def episode(self, global_step: int, episode_return: float, length: int) -> None:
        if self._file:
            self._file.write(f"{global_step},{episode_return:.6g},{length}\n")

    def add_scalar(self, *_: Any) -> None: ...

    def add_text(self, *_: Any) -> None: ...

    def close(self) -> None:
        if self._file:
            self._file.close()
