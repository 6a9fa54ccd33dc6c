"""One small run on the gridworld, trained once for all pictures that look at it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from distrl.show import bellman
from distrl.show.trained import run_directory


@pytest.fixture(scope="session")
def gridworld_run() -> Iterator[Path]:
    """A run directory: PPO on the gridworld, 16,384 steps, in-process."""
    with run_directory(None, 1, **{**bellman.SMALL_RUN, "total_steps": 16_384}) as path:
        yield path
