"""The process around an env's code: what a constructor changes in it, and no other part expects, is put back.

The current folder, the signal handlers of Ctrl-C and SIGTERM, NumPy's error handling, torch's number of threads.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

import numpy as np

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Around the code of an env that may change them."""
    folder = _folder()
    in_main = threading.current_thread() is threading.main_thread()
    handlers = [signal.getsignal(number) for number in _SIGNALS] if in_main else []
    torch = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch is not None else 0
    try:
        with np.errstate():
            yield
    finally:
        if folder is not None and _folder() != folder:
            with contextlib.suppress(OSError):  # it is gone
                os.chdir(folder)
        for number, handler in zip(_SIGNALS, handlers, strict=False):
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)
        if torch is not None and torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


def _folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:
        return None
