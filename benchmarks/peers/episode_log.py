"""Stands in for TensorBoard's `SummaryWriter` in CleanRL's files: each finished episode goes to one CSV.

The variable EPISODES_CSV names the file, written at the end; without it nothing is. CleanRL's scalars are
dropped.
"""

import os
from pathlib import Path
from typing import Any


class SummaryWriter:
    def __init__(self, _log_dir: str) -> None:
        self._rows = ["global_step,return,length\n"]

    def episode(self, global_step: int, episode_return: float, length: int) -> None:
        self._rows.append(f"{global_step},{episode_return:.6g},{length}\n")

    def add_scalar(self, *_: Any) -> None: ...

    def add_text(self, *_: Any) -> None: ...

    def close(self) -> None:
        if "EPISODES_CSV" in os.environ:
            Path(os.environ["EPISODES_CSV"]).write_text("".join(self._rows))
