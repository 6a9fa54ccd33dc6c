"""A user's reward function in a process of its own, which may hang, crash or exit without harm to the run.

    parent  --{"prompt", "response", "fields"}-->  child        one JSON object a line, one call at a time
            <--{"score"} or {"fault"}------------               no answer in time: killed, and started anew

The child's own standard output is not in the way: what the function prints goes to standard error.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import math
import numbers
import os
import queue
import selectors
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from distrl.errors import BadInput, RunFailed

START_SEC = 120.0  # in which the function's module must be imported
EXIT_SEC = 2.0  # from the end of its output to its own
LOOK_SEC = 1.0  # between a child's looks whether its parent lives


class Exited(Exception):
    """The child is gone."""


@dataclass(frozen=True)
class Fault:
    """Why a call gave no score."""

    cause: str
    timed_out: bool = False


class FunctionProcess:
    """Calls `module:name` in a child, one call at a time, each within `timeout_sec`.

    Raises BadInput where the function cannot be loaded.
    """

    def __init__(self, function: str, timeout_sec: float) -> None:
        self.function = function
        self.timeout_sec = timeout_sec
        self._start()

    def call(self, prompt: str, response: str, fields: dict[str, Any]) -> float | Fault:
        """Its score, a finite number, or why there is none."""
        request = {"prompt": prompt, "response": response, "fields": fields}
        try:
            try:
                self._send(request)
            except Exited:  # since the last call, so it is not this one's fault
                self._restart()
                self._send(request)
            answer = self._receive(self.timeout_sec)
        except Exited:
            status = self._stop(EXIT_SEC)
            self._start()
            return Fault(f"the process {_ending(status)}")
        if answer is None:
            self._restart()
            return Fault(f"no answer within {self.timeout_sec:g} s", timed_out=True)
        return Fault(answer["fault"]) if "fault" in answer else float(answer["score"])

    def close(self) -> None:
        """Ends the child."""
        self._stop()

    def _start(self) -> None:
        self.child = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is the parent's; and what it starts is killed with it
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
        )
        self._unread = b""
        self._finalizer = weakref.finalize(self, _kill, self.child)
        try:
            self._send({"function": self.function, "timeout_sec": self.timeout_sec, "parent": os.getpid()})
            answer = self._receive(START_SEC)
        except Exited as error:
            raise RunFailed(
                f"reward function {self.function}: its process {_ending(self._stop(EXIT_SEC))} while it loaded"
            ) from error
        if answer is None:
            self._stop()
            raise RunFailed(f"reward function {self.function} did not load within {START_SEC:g} s")
        if "refused" in answer:
            self._stop()
            raise BadInput(answer["refused"])

    def _stop(self, grace_sec: float = 0.0) -> int:
        self._finalizer.detach()
        return _kill(self.child, grace_sec)

    def _restart(self) -> None:
        self._stop()
        self._start()

    def _send(self, message: dict[str, Any]) -> None:
        assert self.child.stdin is not None
        try:
            self.child.stdin.write(json.dumps(message).encode() + b"\n")
            self.child.stdin.flush()
        except BrokenPipeError as error:
            raise Exited from error

    def _receive(self, timeout_sec: float) -> dict[str, Any] | None:
        """The next answer; None where there is none in time."""
        assert self.child.stdout is not None
        deadline = time.monotonic() + timeout_sec
        with selectors.DefaultSelector() as selector:
            selector.register(self.child.stdout, selectors.EVENT_READ)
            while b"\n" not in self._unread:
                if not selector.select(max(deadline - time.monotonic(), 0.0)):
                    return None
                found = os.read(self.child.stdout.fileno(), 1 << 16)
                if not found:
                    raise Exited
                self._unread += found
        line, _, self._unread = self._unread.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer


def _kill(child: subprocess.Popen[bytes], grace_sec: float = 0.0) -> int:
    """Ends a child and what it started, after waiting for it to end of itself; how it ended."""
    if child.returncode is not None:
        return child.returncode
    deadline = time.monotonic() + grace_sec
    # looked at and not reaped: until it is, its number is nobody else's
    look = os.WEXITED | os.WNOWAIT | os.WNOHANG
    while os.waitid(os.P_PID, child.pid, look) is None and time.monotonic() < deadline:
        time.sleep(0.01)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    status = child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
    return status


def _ending(status: int) -> str:
    return f"was killed by signal {-status}" if status < 0 else f"exited with status {status}"


# the child


def main() -> None:
    """Answers requests until the parent has gone."""
    requests, answers = os.dup(0), os.fdopen(os.dup(1), "w")
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)
    waiting: queue.Queue[dict[str, Any]] = queue.Queue()
    parent = os.getppid()
    threading.Thread(target=_listen, args=(requests, waiting, parent), daemon=True).start()

    def answer(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    first = waiting.get()
    try:
        from distrl.named import load_function

        function = load_function(first["function"], "reward function")
    except BadInput as error:
        answer({"refused": str(error)})
        return
    wanted = _wanted(function)
    answer({"ready": True})
    while True:
        request = waiting.get()
        # should it hang where no thread of Python's runs, and the parent be dead: ended by the kernel
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, first["timeout_sec"] + 5.0)
        told = _call(function, wanted, request)
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        answer(told)


def _listen(requests: int, waiting: queue.Queue[dict[str, Any]], parent: int) -> None:
    """Reads while the function runs too, so that the end of the parent is the end of a call that hangs."""
    unread = b""
    with selectors.DefaultSelector() as selector:
        selector.register(requests, selectors.EVENT_READ)
        while os.getppid() == parent:
            if not selector.select(LOOK_SEC):
                continue
            found = os.read(requests, 1 << 16)
            if not found:
                break
            *lines, unread = (unread + found).split(b"\n")
            for line in lines:
                waiting.put(json.loads(line))
    os._exit(0)


def _wanted(function: Callable[..., Any]) -> set[str] | None:
    """Which fields of a prompt's line it takes; None: all."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(one.kind is one.VAR_KEYWORD for one in parameters):
        return None
    return {one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)}


def _call(function: Callable[..., Any], wanted: set[str] | None, request: dict[str, Any]) -> dict[str, Any]:
    fields = {
        name: value
        for name, value in request["fields"].items()
        if name not in ("prompt", "response") and (wanted is None or name in wanted)
    }
    try:
        return _told(function(request["prompt"], request["response"], **fields))
    except BaseException as error:  # whatever a user's function raises, exits included, is that row's fault
        return {"fault": f"{type(error).__name__}: {error}"}


def _told(value: Any) -> dict[str, Any]:
    if type(value).__module__ != "builtins" and callable(getattr(value, "item", None)):
        value = value.item()  # a scalar of NumPy's or torch's
    if not isinstance(value, numbers.Real):
        return {"fault": f"returned {type(value).__name__} {str(value)[:40]!r}, not a number"}
    score = float(value)
    return {"score": score} if math.isfinite(score) else {"fault": f"returned {score}"}


if __name__ == "__main__":
    main()
