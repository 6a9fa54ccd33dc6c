"""Standard output kept for what a command prints itself: what envs, models and libraries print goes to standard error."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def others_to_stderr() -> Iterator[None]:
    """Inside, whatever is printed, by Python or by C, is on standard error."""
    try:
        descriptor = sys.stdout.fileno()
    except (AttributeError, OSError, ValueError):  # no file: a notebook's, or a test's
        descriptor = -1
    sys.stdout.flush()
    kept = os.dup(descriptor) if descriptor == 1 else None
    try:
        if kept is not None:
            os.dup2(2, descriptor)
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        if kept is not None:
            ctypes.CDLL(None).fflush(None)  # what C has printed and not yet written
            os.dup2(kept, descriptor)
            os.close(kept)
