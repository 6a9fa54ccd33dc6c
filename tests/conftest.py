"""Marks that a folder decides (`make check` leaves out what starts Ray), and the signals that all tests start with."""

from __future__ import annotations

import signal

import pytest

WITH_RAY = ("tests/runs", "tests/launch")


def pytest_configure() -> None:
    """A shell starts what it runs in the background with Ctrl-C ignored, and the commands under test would inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The run-level tests start Ray clusters, nearly all of them."""
    for item in items:
        folder = item.path.relative_to(config.rootpath).parent.as_posix()
        if folder in WITH_RAY:
            item.add_marker(pytest.mark.ray)
