"""A user's reward function in a process of its own, which may hang, crash or exit without harm to the run.

    parent  --rows, as base64 of a pickle-->  child        one line each way, one call at a time
            <--outcomes, as JSON------------               no answer in time: killed and restarted

The child's own standard output is not in the way: what the function prints goes to standard error.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import pickle
import queue
import selectors
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from distrl.errors import BadInput, RunFailed, translated
from distrl.rlhf.reward_calls import Callee, Form, Outcome, Row

Answer = tuple[list[Outcome], dict[str, float]]  # of each row, and what the function logged of all
START_SEC = 120.0  # in which the function's module must be imported
EXIT_SEC = 2.0  # from the end of its output to its own
LOOK_SEC = 1.0  # between a child's looks whether its parent lives


class Exited(Exception):
    """The child is gone."""


class FunctionProcess:
    """Calls `module:name` or `file.py:name` in a child, one call at a time, each within `timeout_sec`.

    `alive` is called about once a second while a call goes on. Raises BadInput where the function cannot be loaded.
    """

    form: Form

    def __init__(self, function: str, timeout_sec: float, alive: Callable[[], None] = lambda: None) -> None:
        self.function = function
        self.timeout_sec = timeout_sec
        self.alive = alive
        self._start()

    def call(self, rows: Sequence[Row], step: int = 0) -> Answer:
        """The outcome of each row; `step` is the version of the policy that wrote them."""
        request = pickle.dumps((list(rows), step))
        try:
            try:
                self._send({"rows": base64.b64encode(request).decode()})
            except Exited:  # since the last call, so it is not this one's fault
                self._restart()
                self._send({"rows": base64.b64encode(request).decode()})
            answer = self._receive(self.timeout_sec)
        except Exited:
            status = self._stop(EXIT_SEC)
            self._start()
            return [Outcome(fault=f"the process {_ending(status)}")] * len(rows), {}
        if answer is None:
            self._restart()
            return timed_out(len(rows), self.timeout_sec), {}
        return [Outcome(**one) for one in answer["outcomes"]], answer["logged"]

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
        given, takes, required = (
            None if answer[name] is None else tuple(answer[name]) for name in ("given", "takes", "required")
        )
        self.form = Form(answer["batch"], answer["first"], given or (), takes, required or ())

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
                left = deadline - time.monotonic()
                if not selector.select(min(max(left, 0.0), LOOK_SEC)):
                    if left <= LOOK_SEC:
                        return None
                    self.alive()
                    continue
                found = os.read(self.child.stdout.fileno(), 1 << 16)
                if not found:
                    raise Exited
                self._unread += found
        line, _, self._unread = self._unread.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer


def timed_out(count: int, timeout_sec: float) -> list[Outcome]:
    """Of the rows of a call that gave no answer."""
    return [Outcome(fault=f"no answer within {timeout_sec:g} s", timed_out=True)] * count


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

        with translated("could not be loaded"):  # whatever its module's attributes raise
            callee = Callee(load_function(first["function"], "reward function"))
    except BadInput as error:
        named = f"reward function {first['function']!r}"
        answer(
            {
                "refused": "\n".join(
                    one if one.startswith("reward") else f"{named} {one}" for one in error.problems
                )
            }
        )
        return
    answer({"ready": True, **asdict(callee.form)})
    while True:
        rows, step = pickle.loads(base64.b64decode(waiting.get()["rows"]))
        # should it hang where no thread of Python's runs, and the parent be dead: ended by the kernel
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, first["timeout_sec"] + 5.0)
        outcomes, logged = callee.call(rows, step)
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        answer({"outcomes": [asdict(one) for one in outcomes], "logged": logged})


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


if __name__ == "__main__":
    main()
