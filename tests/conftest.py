"""Marks that a folder decides: `make check` leaves out what starts Ray."""

from __future__ import annotations

import pytest

WITH_RAY = ("tests/runs", "tests/launch")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The run-level tests start Ray clusters, nearly all of them."""
    for item in items:
        folder = item.path.relative_to(config.rootpath).parent.as_posix()
        if folder in WITH_RAY:
            item.add_marker(pytest.mark.ray)
