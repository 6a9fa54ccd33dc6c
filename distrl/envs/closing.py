"""Closing envs: each of them, bounded in time, whatever the others do. What goes wrong is told, and stops nothing.

in the main thread   an alarm interrupts a `close` that does not return (it may need the thread that made the env)
in another thread    `close` runs in a thread beside, which is left behind where it does not return
in a subprocess      it is asked, awaited, and killed
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv

from distrl.errors import cause

LONGEST_SEC = 10.0  # of one close


class _TooLong(BaseException):
    """Not an `Exception`: an env's own `except` may not swallow it."""


def close_vector(vector: Any, who: str, longest_sec: float = LONGEST_SEC, quietly: bool = False) -> None:
    """Ends a vector env and all in it; warns (RuntimeWarning, which a run keeps) of what did not end as it should."""
    if isinstance(vector, AsyncVectorEnv):
        problems = _close_async(vector, longest_sec)
    elif isinstance(vector, SyncVectorEnv):
        problems = [problem for env in vector.envs if (problem := within(env.close, longest_sec))]
        vector.closed = True
    else:
        problems = [problem] if (problem := within(vector.close, longest_sec)) else []
    if problems and not quietly:
        more = f" ({len(problems)} of its envs)" if len(problems) > 1 else ""
        warnings.warn(f"{who}: close() {problems[0]}{more}", RuntimeWarning, stacklevel=2)


def within(function: Callable[[], Any], longest_sec: float) -> str | None:
    """Calls it; what went wrong, or None."""
    alarm_is_free = not signal.getitimer(signal.ITIMER_REAL)[0]
    in_main = threading.current_thread() is threading.main_thread()
    try:
        if in_main and alarm_is_free:
            with _alarm(longest_sec):
                function()
        else:
            return _beside(function, longest_sec)
    except _TooLong:
        return f"did not return within {longest_sec:g} s"
    except (Exception, SystemExit) as error:  # an env may raise anything
        return f"raised {cause(error)}"
    return None


@contextlib.contextmanager
def _alarm(after_sec: float) -> Iterator[None]:
    def ring(number: int, frame: Any) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, after_sec)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before if before is not None else signal.SIG_DFL)


def _beside(function: Callable[[], Any], longest_sec: float) -> str | None:
    raised: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except BaseException as error:  # told by the caller's thread
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True, name="env-close")
    thread.start()
    thread.join(longest_sec)
    if thread.is_alive():
        return f"did not return within {longest_sec:g} s"
    return f"raised {cause(raised[0])}" if raised else None


def _close_async(vector: AsyncVectorEnv[Any, Any], longest_sec: float) -> list[str]:
    """Asks the subprocesses that live to close their envs, and kills those that do not end by themselves. One in the
    middle of a step ends it first."""
    for pipe, process in zip(vector.parent_pipes, vector.processes, strict=True):
        if pipe is not None and process.is_alive():
            with contextlib.suppress(OSError, ValueError):  # it died, or its pipe is closed
                pipe.send(("close", None))
    deadline = time.monotonic() + longest_sec
    problems = []
    for process in vector.processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            problems.append(f"did not return within {longest_sec:g} s, and its process was killed")
            process.kill()
            process.join()
    for pipe in vector.parent_pipes:
        if pipe is not None:
            pipe.close()
    vector.closed = True
    return problems
