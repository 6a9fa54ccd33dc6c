"""The rollout workers as Ray actors: which slot hosts which env group, and what to do when a worker dies.

group g's home is slot g mod workers
home is up          -> there
home starts anew    -> any slot that lives; back home once it is up
too many deaths     -> RunFailed, with the last worker's last words
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from distrl.envs.watchdog import hang_report
from distrl.errors import RunFailed
from distrl.runtime.cluster import failed_to_start, first_line
from distrl.telemetry.spans import span

START_TIMEOUT_SEC = 120.0
CLOSE_TIMEOUT_SEC = 10.0  # what workers may take to close their envs
WAIT_STEP_SEC = 0.2
CLOSE_TIMEOUT_SEC = 15.0


@dataclass
class Slot:
    """A rollout worker's place: the Ray actor in it now, and how often one died there."""

    number: int
    handle: Any
    ready: Any  # reference that resolves once the worker is up; None from then on
    deaths: int = 0


class WorkerPool:
    """A fixed number of slots, each with a worker that lives or one that starts."""

    def __init__(
        self,
        start_worker: Callable[[], Any],
        num_workers: int,
        max_restarts: int,
        report_dir: str | None,
        on_death: Callable[[str], None],
        check_interrupt: Callable[[], None],
    ) -> None:
        self.start_worker = start_worker
        self.max_restarts = max_restarts
        self.report_dir = report_dir
        self.on_death = on_death
        self.check_interrupt = check_interrupt
        self.pids: dict[int, int] = {}
        self.slots = [Slot(number, *self._start()) for number in range(num_workers)]

    def await_all(self) -> None:
        """Wait, bounded, until every worker is up."""
        for slot in self.slots:
            self._await_ready(slot)

    def slot_of(self, group: int) -> Slot:
        """The slot with a worker that is up for this group: its home, or where the others are."""
        home = self.slots[group % len(self.slots)]
        if home.ready is None:
            return home
        alive = [slot for slot in self.slots if slot.ready is None]
        return alive[group % len(alive)] if alive else self._await_ready(home)

    def notice_started(self) -> None:
        """Take in the replacements that came up since."""
        for slot in self.slots:
            if slot.ready is not None and ray.wait([slot.ready], timeout=0)[0]:
                self._await_ready(slot)

    def died(self, slot: Slot, error: RayActorError) -> None:
        """Put a new worker in the slot, after a delay that doubles; RunFailed once that happened too often."""
        if error.actor_init_failed:
            raise failed_to_start(f"rollout worker {slot.number}", error) from error  # it would again
        why = self._last_words(slot.number) or first_line(error)
        slot.deaths += 1
        deaths = sum(other.deaths for other in self.slots)
        if deaths > self.max_restarts:
            raise RunFailed(
                f"rollout workers died {deaths} times (--max-worker-restarts {self.max_restarts}); "
                f"the last was worker {slot.number}: {why}"
            )
        ray.kill(slot.handle)
        self.on_death(f"rollout worker {slot.number} died ({why}); its groups move, a replacement starts")
        delay_until = time.monotonic() + (min(0.25 * 2**slot.deaths, 10.0) if slot.deaths > 1 else 0.0)
        while time.monotonic() < delay_until:
            self.check_interrupt()
            time.sleep(WAIT_STEP_SEC)
        slot.handle, slot.ready = self._start()

    def close_envs(self) -> None:
        """Close every env of the workers that are up, in a bounded time; a worker that does not answer is killed."""
        closing = {slot.handle.close.remote(): slot for slot in self.slots if slot.ready is None}
        deadline = time.monotonic() + CLOSE_TIMEOUT_SEC
        waiting = [*closing]
        with span("wait: close"):
            while waiting and time.monotonic() < deadline:
                _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=WAIT_STEP_SEC)
                self.check_interrupt()
        for one in waiting:
            ray.kill(closing[one].handle)

    def close(self) -> None:
        """Have every worker close its envs, bounded: one that is collecting ends its fragment first. Then kill them."""
        try:
            closing = [slot.handle.close.remote() for slot in self.slots if slot.ready is None]
            deadline = time.monotonic() + CLOSE_TIMEOUT_SEC
            while closing and time.monotonic() < deadline:  # in short steps: a second Ctrl-C leaves at once
                _, closing = ray.wait(closing, num_returns=len(closing), timeout=WAIT_STEP_SEC)
        except RayError:  # the cluster is gone, and the workers with it
            pass
        for slot in self.slots:
            ray.kill(slot.handle)

    def _start(self) -> tuple[Any, Any]:
        handle = self.start_worker()
        return handle, handle.ready.remote()

    def _await_ready(self, slot: Slot) -> Slot:
        """Wait, bounded, until the slot's worker is up; replace it where it dies on the way."""
        deadline = time.monotonic() + START_TIMEOUT_SEC
        with span("wait: start"):
            while slot.ready is not None:
                if time.monotonic() > deadline:
                    raise RunFailed(
                        f"rollout worker {slot.number} did not start within {START_TIMEOUT_SEC:.0f} s: "
                        f"the cluster has {ray.available_resources().get('CPU', 0):g} of "
                        f"{ray.cluster_resources().get('CPU', 0):g} CPUs free; each worker needs 1"
                    )
                self.check_interrupt()
                if not ray.wait([slot.ready], timeout=WAIT_STEP_SEC)[0]:
                    continue
                try:
                    self.pids[slot.number] = ray.get(slot.ready)
                    slot.ready = None
                except RayActorError as error:
                    self.died(slot, error)
        return slot

    def _last_words(self, number: int) -> str | None:
        """What the watchdog of the slot's last process left to be read, where this machine can read it."""
        pid = self.pids.pop(number, None)
        path = hang_report(self.report_dir, pid) if self.report_dir is not None and pid is not None else None
        if path is None or not path.exists():
            return None
        return f"{path.read_text(errors='replace').splitlines()[0]}; stacks in {path}"
