"""Makes `small` importable here and in the workers that a test starts."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import distrl

HERE = Path(__file__).parent
ROOT = Path(str(distrl.__file__)).parent.parent
sys.path.insert(0, str(HERE))


@pytest.fixture(autouse=True)
def parts_are_importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ray's sockets want a short path."""
    monkeypatch.setenv("PYTHONPATH", f"{HERE}{os.pathsep}{ROOT}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with tempfile.TemporaryDirectory(prefix="dr", dir="/tmp", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        yield
