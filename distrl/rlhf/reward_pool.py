"""Calls of one reward function, several at once: in processes of its own, or in threads where it is a Python object.

Which call is made where changes nothing: outcomes are in the order of the requests.
"""

from __future__ import annotations

import copy
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, Protocol

from distrl.rlhf.reward_calls import Callee, Form, Outcome, Row
from distrl.rlhf.reward_process import LOOK_SEC, Answer, FunctionProcess, timed_out

Alive = Callable[[], None]


class Caller(Protocol):
    """Makes one call at a time, in bounded time; `form` is the function's."""

    form: Form

    def call(self, rows: Sequence[Row], step: int = 0) -> Answer: ...

    def close(self) -> None: ...


class ThreadCaller:
    """Calls a Python object in a thread of this process; a call that hangs is left behind, and a new thread made.

    What a function changes in its arguments it changes in a copy.
    """

    def __init__(self, function: Callable[..., Any], timeout_sec: float, alive: Alive = lambda: None) -> None:
        self.function, self.timeout_sec, self.alive = function, timeout_sec, alive
        self.callee = Callee(function)
        self.form = self.callee.form
        self._requests: queue.SimpleQueue[Any] | None = None

    def call(self, rows: Sequence[Row], step: int = 0) -> Answer:
        """The outcome of each row; `step` is the version of the policy that wrote them."""
        if self._requests is None:
            self._requests = queue.SimpleQueue()
            threading.Thread(target=_serve, args=(self.callee, self._requests), daemon=True).start()
        answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        self._requests.put(([_copied(row) for row in rows], step, answers))
        left = self.timeout_sec
        while left > 0:
            try:
                return answers.get(timeout=min(left, LOOK_SEC))
            except queue.Empty:
                left -= LOOK_SEC
                self.alive()
        self._requests.put(None)  # should it ever return
        self._requests = None
        return timed_out(len(rows), self.timeout_sec), {}

    def close(self) -> None:
        """Ends its thread."""
        if self._requests is not None:
            self._requests.put(None)
            self._requests = None


def _serve(callee: Callee, requests: queue.SimpleQueue[Any]) -> None:
    while (request := requests.get()) is not None:
        rows, step, answers = request
        answers.put(callee.call(rows, step))


def _copied(row: Row) -> Row:
    return Row(row.prompt, row.response, _copy(row.columns), _copy(row.messages), row.conversational, row.ids)


def _copy(value: Any) -> Any:
    try:
        return copy.deepcopy(value)
    except Exception:  # it holds a lock or a handle, for example: shared then
        return dict(value) if isinstance(value, Mapping) else value


class Pool:
    """As many callers as calls may go on at once; the first is there from the start, others once they are needed."""

    def __init__(
        self,
        function: str,
        given: Callable[..., Any] | None,
        timeout_sec: float,
        concurrency: int,
        alive: Alive,
    ) -> None:
        self._function, self._given, self._timeout_sec = function, given, timeout_sec
        self._concurrency, self._alive = concurrency, alive
        self.callers: list[Caller] = [self._caller(alive)]
        self.form = self.callers[0].form

    def _caller(self, alive: Alive) -> Caller:
        if self._given is not None:
            return ThreadCaller(self._given, self._timeout_sec, alive)
        return FunctionProcess(self._function, self._timeout_sec, alive)

    def run(
        self, requests: Sequence[Sequence[Row]], step: int, most_timeouts: int | None = None
    ) -> tuple[list[Answer], int]:
        """An answer to each, and how many calls gave none in time.

        Once those are more than `most_timeouts` the rest is not called, and has the same fault.
        """
        answers: list[Answer | None] = [None] * len(requests)
        enough = Enough(most_timeouts)

        def work(caller: Caller, number: int) -> None:
            if enough.why is None:
                answers[number] = answer = caller.call(requests[number], step)
                enough.count(answer)

        if self._concurrency == 1 or len(requests) < 2:
            for number in range(len(requests)):
                work(self.callers[0], number)
                self._alive()
        else:
            self._at_once(len(requests), work)
        found = [
            answer if answer is not None else ([Outcome(fault=enough.why)] * len(rows), {})
            for answer, rows in zip(answers, requests, strict=True)
        ]
        return found, enough.timeouts

    def _at_once(self, num_requests: int, work: Callable[[Caller, int], None]) -> None:
        count = min(self._concurrency, num_requests)
        free: queue.SimpleQueue[Caller | None] = queue.SimpleQueue()
        for place in range(count):  # those that are not there yet are made by who takes them, side by side
            free.put(self.callers[place] if place < len(self.callers) else None)

        def one(number: int) -> None:
            caller = free.get()
            try:
                if caller is None:
                    caller = self._caller(lambda: None)
                    self.callers.append(caller)
                work(caller, number)
            finally:
                free.put(caller)

        threads = ThreadPoolExecutor(count, "reward")
        try:
            waiting: set[Future[None]] = {threads.submit(one, number) for number in range(num_requests)}
            while waiting:
                over, waiting = wait(waiting, timeout=LOOK_SEC, return_when=FIRST_COMPLETED)
                self._alive()
                for future in over:
                    future.result()
        except BaseException:  # Ctrl-C too: calls under way are ended, not waited for
            self.close()
            raise
        finally:
            threads.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        """Ends what it started."""
        for caller in self.callers:
            caller.close()


class Enough:
    """Counts calls without an answer in time; `why` is the fault of the last, once they are too many."""

    def __init__(self, most: int | None) -> None:
        self.most, self.timeouts = most, 0
        self.why: str | None = None
        self._lock = threading.Lock()

    def count(self, answer: Answer) -> None:
        """One more answer."""
        hung = next((one for one in answer[0] if one.timed_out), None)
        if hung is None:
            return
        with self._lock:
            self.timeouts += 1
            if self.most is not None and self.timeouts > self.most:
                self.why = hung.fault
