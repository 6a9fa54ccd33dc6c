"""Ctrl-C and SIGTERM: the first asks, the second leaves at once.

While collecting or waiting, the first raises `Interrupted` on the spot: what is collected is thrown
away, the last boundary's state is whole. While learning or saving it is kept until that is done. The
second ends the process without further ado; what is on disk is whole at any moment.

Ray's compiled code cannot be left by an exception: where it runs, `polled` is set, the handler only takes
note, and the runtime calls `check` between its short waits.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_INTERRUPTED = 130


class Interrupted(BaseException):
    """The run was asked to stop. Not an `Exception`: nobody on the way may swallow it."""

    def __init__(self, signal_number: int) -> None:
        self.signal_name = signal.Signals(signal_number).name
        super().__init__(self.signal_name)


class Interrupts:
    """Handlers of SIGINT and SIGTERM while its context is entered; in another thread than the main one, nothing."""

    def __init__(self) -> None:
        self._pending: int | None = None
        self._deferred = 0
        self.polled = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Interrupts:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._previous[number] = signal.signal(number, self._handle)
            except ValueError:  # not the main thread: a notebook's or script's own business
                break
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous.clear()

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """No interrupt inside; one that came is raised at the end."""
        self._deferred += 1
        try:
            yield
        finally:
            self._deferred -= 1
        self.check()

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """An interrupt is raised on the spot, even where it is polled or deferred otherwise.

        For a long stretch inside which runs no code of Ray's, and which the caller can leave at any point.
        """
        polled, deferred = self.polled, self._deferred
        self.polled, self._deferred = False, 0
        try:
            self.check()
            yield
        finally:
            self.polled, self._deferred = polled, deferred

    def check(self) -> None:
        """Raise the interrupt that came, if one did and none is being dealt with."""
        if self._pending is not None and not self._deferred:
            raise Interrupted(self._pending)

    def settle(self) -> None:
        """The interrupt is being dealt with: from here on only the second one counts."""
        self._deferred += 1

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._pending is not None:
            print("distrl: stopped at once; the last checkpoint stands", file=sys.stderr, flush=True)
            os._exit(EXIT_INTERRUPTED)
        self._pending = number
        if not self._deferred and not self.polled:
            raise Interrupted(number)
        print(
            f"distrl: {signal.Signals(number).name}: stopping as soon as this step is done",
            file=sys.stderr,
            flush=True,
        )
