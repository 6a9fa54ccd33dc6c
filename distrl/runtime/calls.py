"""Calls of Ray actors that need one another's answers, and who is to blame when one does not come.

Each call gives two references: its answer, which the driver passes on and never looks at, and a token of a few bytes
that says that it is over. A call under way knows which calls it needs. So the driver knows at any time which worker all
the others wait for: that is the name of its own wait, and the name in the error where one dies or hangs.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from distrl.errors import BadInput, RunFailed
from distrl.runtime.cluster import first_line, root_cause
from distrl.runtime.pool import WAIT_STEP_SEC
from distrl.runtime.pulse import last_pulse
from distrl.runtime.roles import Host, RoleLost
from distrl.telemetry.spans import TRANSIT, span


@dataclass(frozen=True)
class Answer:
    """What a call returned, by whom and when: who receives it knows whom it waited for."""

    value: Any
    worker: tuple[str, int]
    at: float  # s since the epoch


@dataclass(eq=False)
class Call:
    """One that is under way until its token is there."""

    worker: Worker
    method: str
    token: Any
    needs: tuple[Call, ...]
    running_since: float | None = (
        None  # it has all that it needs and is its worker's next, or waited for user code since
    )
    pulse: bytes | None = None  # the worker's last sign of life, where it waits for user code
    over: bool = False


@dataclass(eq=False)
class Handle:
    """An answer that the driver passes on."""

    ref: Any
    call: Call


@dataclass(eq=False)
class Worker:
    """A Ray actor and what it has been asked, in order."""

    host: Host
    number: int
    actor: Any
    queue: deque[Call] = field(default_factory=deque)
    pid: int = 0
    node: str = ""

    @property
    def name(self) -> str:
        """`reward worker 1`."""
        return f"{self.host.name} worker {self.number}"


class Calls:
    """Every call under way, of all workers."""

    def __init__(
        self, workers: Sequence[Worker], timeout_sec: float, check_interrupt: Callable[[], None]
    ) -> None:
        self.workers = workers
        self.timeout_sec = timeout_sec
        self.check_interrupt = check_interrupt

    def send(self, worker: Worker, method: str, args: Sequence[Any]) -> Handle:
        """Asks a worker; handles among `args` travel as references."""
        needs = tuple(one.call for one in args if isinstance(one, Handle) and not one.call.over)
        given = [one.ref if isinstance(one, Handle) else one for one in args]
        do = worker.actor.do.options(num_returns=2, name=f"{worker.host.name}: {method}")
        ref, token = do.remote(method, time.time(), *given)
        call = Call(worker, method, token, needs)
        worker.queue.append(call)
        return Handle(ref, call)

    def answers(self, handles: Sequence[Handle]) -> list[Any]:
        """Waits until all are there."""
        with span(TRANSIT):
            self._settle()
        for handle in handles:
            while not handle.call.over:
                blocker = self._blocker(handle.call)
                with span(f"wait: {blocker.worker.host.name}"):
                    ray.wait([blocker.token], timeout=WAIT_STEP_SEC)
                    self._settle()
                self.check_interrupt()
                self._require_life()
        return [self._fetch(handle) for handle in handles]

    def _fetch(self, handle: Handle) -> Any:
        call = handle.call
        deadline = time.monotonic() + self.timeout_sec
        with span(f"wait: {call.worker.host.name}"):
            while not ray.wait([handle.ref], timeout=WAIT_STEP_SEC)[0]:
                self.check_interrupt()
                if time.monotonic() > deadline:
                    raise self._lost(call, f"its answer did not arrive within {self.timeout_sec:g} s")
            try:
                return ray.get(handle.ref).value
            except RayError as error:
                raise self._lost(call, f"its answer is lost: {first_line(error)}") from error

    def _settle(self) -> None:
        """Takes in what is over since. Raises where a call failed."""
        while heads := [worker.queue[0] for worker in self.workers if worker.queue]:
            tokens = [call.token for call in heads]
            ready = set(ray.wait(tokens, num_returns=len(tokens), timeout=0)[0])
            if not ready:
                return
            for call in heads:
                if call.token in ready:
                    self._take(call)

    def _take(self, call: Call) -> None:
        try:
            ray.get(call.token)
        except RayError as error:
            raise self._failure(call, error) from error
        call.worker.queue.popleft()
        call.over, call.needs, call.token = True, (), None

    def _blocker(self, call: Call) -> Call:
        """The call that this one waits for, at the end of the chain: it has all that it needs and is its worker's next."""
        while True:
            needed = next((one for one in call.needs if not one.over), None)
            earlier = call.worker.queue[0]
            if needed is None and earlier is call:
                return call
            call = needed or earlier

    def _require_life(self) -> None:
        """RoleLost where a worker has had one call for longer than the timeout."""
        now = time.monotonic()
        for worker in self.workers:
            if not worker.queue or not all(one.over for one in worker.queue[0].needs):
                continue
            call = worker.queue[0]
            # the time of a reward function is its own: a worker that waits for one says so
            if call.method == "scores" and (
                call.running_since is None or now - call.running_since > self.timeout_sec / 10
            ):
                before, call.pulse = call.pulse, last_pulse(worker.actor._actor_id.hex())
                if call.pulse != before:
                    call.running_since = now
            call.running_since = call.running_since or now
            if now - call.running_since > self.timeout_sec:
                raise self._lost(call, f"no answer within {self.timeout_sec:g} s (--role-timeout-sec)")

    def _lost(self, call: Call, cause: str) -> RoleLost:
        worker = call.worker
        where = f"{cause}; process {worker.pid} on node {worker.node[:8]}"
        return RoleLost(worker.host.name, worker.number, call.method, where)

    def _failure(self, call: Call, error: RayError) -> RunFailed | BadInput:
        """What the user is told: by the name of who failed first, not of who was waiting for it."""
        for needed in call.needs:
            if not needed.over and ray.wait([needed.token], timeout=0)[0]:
                try:
                    ray.get(needed.token)
                except RayError as earlier:
                    return self._failure(needed, earlier)
        if isinstance(error, RayTaskError) and not isinstance(error.cause, RayError):
            return root_cause(error, f"{call.worker.name} failed ({call.method})")
        if isinstance(error, RayActorError) and error.actor_id is not None:
            dead = next(
                (one for one in self.workers if one.actor._actor_id.hex() == error.actor_id), call.worker
            )
            call = dead.queue[0] if dead.queue else call
        return self._lost(call, _why_dead(error))


def _why_dead(error: RayError) -> str:
    """The line of Ray's that says how a process ended; its first line otherwise."""
    for line in str(error).splitlines():
        if (at := line.find("Worker exit detail: ")) >= 0:
            return "it died: " + line[at + len("Worker exit detail: ") :].split(". ")[0]
    return first_line(error)


class RayWorkers:
    """A host's workers as Ray actors."""

    def __init__(self, host: Host, workers: Sequence[Worker], calls: Calls) -> None:
        self.host = host
        self.workers = workers
        self.calls = calls

    def call(self, method: str, *args: Any) -> list[Handle]:
        return [self.calls.send(worker, method, args) for worker in self.workers]

    def first(self, method: str, *args: Any) -> Handle:
        return self.calls.send(self.workers[0], method, args)

    def get(self, handles: Sequence[Handle]) -> list[Any]:
        return self.calls.answers(handles)

    @property
    def pids(self) -> list[int]:
        """Of their processes."""
        return [worker.pid for worker in self.workers]
