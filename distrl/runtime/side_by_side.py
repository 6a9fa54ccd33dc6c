"""A few threads, the caller's among them, that share numbered tasks: with the results, and the failure, of taking turns.

caller      task 0 |--- task 2 ---|. waits .|
helper 1    task 1 ------|--- task 3 -------|
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from threading import Event, Lock
from typing import TypeVar

from distrl.telemetry.spans import span

Result = TypeVar("Result")


class SideBySide:
    """`threads` of them; one is the caller's own and starts no other.

    Each thread takes the next task, so that all tasks before one that fails have begun, and end: of several failures
    the first task's is raised, as it would be where they take turns.
    """

    def __init__(self, threads: int, name: str) -> None:
        self.threads = threads
        self.given_up = Event()  # what runs is no longer wanted: tasks look at it
        self._pool = ThreadPoolExecutor(threads - 1, name) if threads > 1 else None

    def run(self, task: Callable[[int], Result], count: int, waits_as: str) -> list[Result]:
        """[task(0), ..., task(count - 1)]; the caller's time after its own last task goes to the span `waits_as`."""
        if self._pool is None or count < 2:
            return [task(number) for number in range(count)]
        self.given_up.clear()
        results: dict[int, Result] = {}
        failures: dict[int, Exception] = {}
        numbers, lock = iter(range(count)), Lock()

        def take() -> None:
            while not failures and not self.given_up.is_set():
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return
                try:
                    results[number] = task(number)
                except Exception as error:  # a task may raise anything; told below
                    failures[number] = error

        helpers: list[Future[None]] = []
        try:
            for _ in range(min(self.threads, count) - 1):
                helpers.append(self._pool.submit(take))
            take()
            with span(waits_as):
                for helper in helpers:
                    helper.result()
        except BaseException:  # Ctrl-C, in the caller's thread
            self.given_up.set()
            wait(helpers)
            raise
        if failures:
            raise failures[min(failures)]
        return [results[number] for number in range(count)]

    def close(self) -> None:
        """Ends the threads, once their tasks are done."""
        if self._pool is not None:
            self._pool.shutdown()
