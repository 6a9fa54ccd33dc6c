"""Ends the process, with the stacks of all threads, when an env's step or reset does not return.

    step begins ----------------------------------------> step ends
       |  writes the time into its Beat (cheap)              |  clears it
       |                                                     |
    watcher thread: looks at all Beats every timeout / 8;
       a Beat older than the timeout -> one line that names the group, stacks, exit status 1;
       both also into a file of the process's own, for whoever finds it dead
    faulthandler's C timer: armed by a step at most every quarter of the timeout, cancelled by the watcher
       when nothing is stepping; goes off at 1.5 to 1.75 times the timeout where a hang holds the GIL

An env that hangs cannot be replaced inside its own process: the process is the unit that dies.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

_STDERR = 2
_ARM_FACTOR = 1.75  # after the last arming, a quarter of the timeout before a step at most: the watcher, which reports, is first
_CHILDREN_WAIT_SEC = 0.3


class Beat:
    """One group's sign of life: `with beat:` around each step and reset. Timeout 0 turns it off."""

    def __init__(
        self,
        label: str,
        timeout_sec: float,
        children: Callable[[], list[int]] = list,
        report_dir: str | None = None,
    ) -> None:
        self.label = label
        self.report_dir = report_dir
        self.timeout_sec = timeout_sec
        self.children = children
        self.started: float | None = None
        if timeout_sec:
            _watcher.add(self)

    def __enter__(self) -> None:
        if self.timeout_sec:
            now = time.monotonic()
            if now - _watcher.armed_at > 0.25 * self.timeout_sec:
                _watcher.arm(now, self.timeout_sec)
            self.started = now

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.started = None

    def close(self) -> None:
        """No longer watched."""
        _watcher.remove(self)


class _Watcher:
    def __init__(self) -> None:
        self.armed_at = float("-inf")
        self._beats: weakref.WeakSet[Beat] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._pid = 0

    def add(self, beat: Beat) -> None:
        with self._lock:
            self._beats.add(beat)
            # A fork copies this object without its thread and without faulthandler's timer.
            if self._thread is None or self._pid != os.getpid() or not self._thread.is_alive():
                self.armed_at, self._pid = float("-inf"), os.getpid()
                self._thread = threading.Thread(target=self._watch, name="env-watchdog", daemon=True)
                self._thread.start()

    def remove(self, beat: Beat) -> None:
        with self._lock:
            self._beats.discard(beat)

    def arm(self, now: float, timeout_sec: float) -> None:
        faulthandler.dump_traceback_later(_ARM_FACTOR * timeout_sec, exit=True, file=_STDERR)
        self.armed_at = now

    def _disarm(self) -> None:
        faulthandler.cancel_dump_traceback_later()
        self.armed_at = float("-inf")

    def _watch(self) -> None:
        last_active = time.monotonic()
        while True:
            with self._lock:
                beats = list(self._beats)
                if not beats:
                    self._disarm()
                    self._thread = None
                    return
            shortest = min(beat.timeout_sec for beat in beats)
            now = time.monotonic()
            started = {beat: beat.started for beat in beats}
            if any(since is not None for since in started.values()):
                last_active = now
            for beat, since in started.items():
                if since is not None and now - since > beat.timeout_sec:
                    _end(beat)
            # Not at the first idle look: between two steps nothing is stepping either.
            if now - last_active > 0.25 * shortest and self.armed_at != float("-inf"):
                self._disarm()
            del beats, started
            beat = since = None  # type: ignore[assignment]  # or the thread would keep a dropped group's Beat alive
            time.sleep(min(shortest / 8, 1.0))


def hang_report(folder: str, pid: int) -> Path:
    """Where the process `pid` leaves its last words."""
    return Path(folder) / f"hang-{pid}.txt"


def _report(beat: Beat, said: str) -> None:
    if beat.report_dir is None:
        return
    path = hang_report(beat.report_dir, os.getpid())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
            print(said, file=file, flush=True)
            faulthandler.dump_traceback(file=file, all_threads=True)
    except OSError:  # the report must not keep the process from ending
        return


def _end(beat: Beat) -> None:
    said = f"{beat.label}: a step or reset has not returned for {beat.timeout_sec:g} s"
    os.write(_STDERR, f"{said}; stacks follow, exit status 1\n".encode())
    _report(beat, said)
    for pid in beat.children():
        try:
            os.kill(pid, signal.SIGUSR1)
        except ProcessLookupError:
            continue
    time.sleep(_CHILDREN_WAIT_SEC if beat.children() else 0)
    faulthandler.dump_traceback(file=_STDERR, all_threads=True)
    os._exit(1)


_watcher = _Watcher()
