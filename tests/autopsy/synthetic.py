"""Sessions written by hand: events of a synchronous iteration as Ray's processes would record them, in milliseconds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from distrl.autopsy.categories import ENV, INFERENCE
from distrl.autopsy.measure import Effort, Measured, Watch, summarise
from distrl.autopsy.model import Costs, fit
from distrl.autopsy.probe import Line, Rollout
from distrl.config import TrainConfig
from distrl.resolve import resolve
from distrl.telemetry.spans import Event

MS = 1_000_000


@dataclass
class Iterations:
    """What each process does in an iteration, ms by span, and how long a call or an answer takes."""

    workers: list[dict[str, float]]  # of one group's fragment
    learner: dict[str, float]
    log_ms: float = 1.0
    hop_ms: float = 1.0
    groups: int = 0  # default: one a worker
    bytes_: int = 1_000_000
    env_steps: int = 1024
    count: int = 3
    events: dict[str, list[Event]] = field(default_factory=dict)
    boundaries: list[int] = field(default_factory=list)
    of_groups: dict[int, dict[str, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [f"worker {number}" for number in range(len(self.workers))]
        self.events = {name: [] for name in (*names, "learner", "driver")}
        at = 0
        self.boundaries = [at]
        last = {name: at for name in self.events}
        for _ in range(self.count):
            submitted = at
            done = at
            for number, name in enumerate(names):
                now = submitted + self._ns(self.hop_ms)
                groups = range(number, self.groups or len(names), len(names))
                self.events[name].append(("wait: learner", last[name], now))
                for group in groups:
                    now = self._spend(name, self.workers[number], now, self.of_groups.setdefault(group, {}))
                last[name] = now
                done = max(done, now)
            answered = done + self._ns(self.hop_ms)
            self.events["driver"].append(("wait: workers", submitted, answered))
            learning = answered + self._ns(self.hop_ms)
            self.events["learner"].append(("wait: workers", last["learner"], learning))
            last["learner"] = self._spend("learner", self.learner, learning, {})
            learned = last["learner"] + self._ns(self.hop_ms)
            self.events["driver"].append(("wait: learner", answered, learned))
            at = learned + self._ns(self.log_ms)
            self.events["driver"].append(("log", learned, at))
            self.boundaries.append(at)

    @staticmethod
    def _ns(ms: float) -> int:
        return round(ms * MS)

    def _spend(self, process: str, spans: dict[str, float], now: int, total: dict[str, int]) -> int:
        for span, ms in spans.items():
            self.events[process].append((span, now, now + self._ns(ms)))
            total[span] = total.get(span, 0) + self._ns(ms)
            now += self._ns(ms)
        return now

    def measured(self, config: TrainConfig) -> Measured:
        """As a session's watch would have seen it."""
        watch = Watch(Effort())
        watch.boundaries = self.boundaries
        watch.env_steps = [self.env_steps] * self.count
        watch.num_bytes = [self.bytes_] * self.count
        watch.events.update(self.events)
        for group, spans in self.of_groups.items():
            watch.groups[group].update(spans)
        return summarise(config, watch)


def config(**flags: Any) -> TrainConfig:
    """A configuration from flat names."""
    return resolve({"env": "CartPole-v1", **flags}).config


WORK = {"rollout: env step": 20.0, "rollout: inference": 20.0, "rollout: rows": 5.0, "rollout: send": 2.0}
LEARN = {"learn: gather": 1.0, "learn: advantage": 1.0, "learn: update": 16.0, "learn: publish": 1.0}


def costs_of(session: Measured, idle: float = 0.0, speed: dict[int, float] | None = None) -> Costs:
    """As after probes: half of a step's inference is fixed, the env's cost is by the row."""
    rollout = Rollout({ENV: Line(0.0, 1e-3), INFERENCE: Line(4e-3, 1e-3)}, Line(0.0, 1e-6), 0.0, idle)
    return fit(session, rollout, Line(1e-4, 1e-6), speed or {session.config.learner_threads: 1.0})


def session(workers: list[dict[str, float]], learn: dict[str, float], **flags: Any) -> Measured:
    """A session of workers that each take so long for a group's fragment, and a learner."""
    fields = {"workers": len(workers), "groups": len(workers), "num_envs": 4 * len(workers), **flags}
    steps = fields["num_envs"] * fields.get("num_steps", 128)
    return Iterations(workers, learn, env_steps=steps, groups=fields["groups"]).measured(config(**fields))
