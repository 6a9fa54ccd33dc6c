"""A sign of life of who waits for a user's code: its time is not counted as a worker's own.

Whoever watches this process sets `watched`; in a process that nobody watches a beat does nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable

EVERY_SEC = 1.0

watched: list[Callable[[], None]] = []
_last = 0.0


def beat() -> None:
    """Called again and again while user code is waited for."""
    global _last
    now = time.monotonic()
    if watched and now - _last >= EVERY_SEC:
        _last = now
        for tell in watched:
            tell()
