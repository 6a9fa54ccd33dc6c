"""How a section is measured: candidates are scouted, then contestants take turns, within a time that is given."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comparison.contestants import Contestant, Section

ROOT = Path(__file__).parents[2]
Lines = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Pace:
    """Seconds of a window, of the warm-up before it and of a scouting window; turns; what a race may take.

    With no `scout_seconds` nothing is scouted: the first candidate of each is taken.
    """

    seconds: float = 20.0
    warmup: float = 5.0
    scout_seconds: float = 3.0
    repeats: int = 3
    give_up: float = 120.0

    def turns(self, section: Section) -> int:
        """Turns of that section."""
        return section.repeats if section.repeats and self.repeats >= 3 else self.repeats

    def cost_sec(self, section: Section) -> float:
        """About what the section takes, scouting included."""
        scouted = [
            one
            for name in section.names
            if self.scout_seconds and len(section.candidates(name)) > 1
            for one in section.candidates(name)
        ]
        first = [section.candidates(name)[0] for name in section.names]
        window = self.warmup + self.seconds
        if section.metric == "seconds":
            window = 0.25 * self.give_up
        scouting = sum(2 * self.scout_seconds + one.overhead_sec for one in scouted)
        return scouting + self.turns(section) * sum(window + one.overhead_sec for one in first)


def fit(pace: Pace, sections: list[Section], budget_sec: float) -> Pace:
    """The pace with shorter windows, then fewer turns, so that the sections fit the budget; at least 3 s and 1 turn."""
    for repeats in range(pace.repeats, 0, -1):
        for share in (1.0, 0.75, 0.5, 0.35, 0.25, 0.15):
            seconds = max(3.0, pace.seconds * share)
            tried = Pace(
                seconds,
                min(pace.warmup, max(1.0, seconds / 4)),
                min(pace.scout_seconds, max(1.0, seconds / 4)),
                repeats,
                pace.give_up,
            )
            if sum(tried.cost_sec(section) for section in sections) <= budget_sec:
                return tried
    return tried


def measure(
    contestant: Contestant, seconds: float, warmup: float, more: tuple[str, ...] = ()
) -> dict[str, Any]:
    """One contestant's JSON line, with the load average before it. RuntimeError with its last words where it fails."""
    load = os.getloadavg()[0]
    command = [*contestant.command, "--seconds", f"{seconds:g}", "--warmup", f"{warmup:g}", *more]
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0", "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=10 * (seconds + warmup) + 300,
        )
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"{shlex.join(command)} took more than {error.timeout:g} s") from error
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)} exited {done.returncode}:\n{done.stderr[-3000:]}")
    line: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return line | {"load_average_before": load}


def worth(line: dict[str, Any], metric: str, give_up: float) -> float:
    """What a line says, in the section's metric; a race that was not won takes all of its time."""
    if metric == "seconds" and line.get("reached") is None:
        return give_up
    return float(line[metric])


def scout(
    section: Section, pace: Pace, known: dict[str, Any], failures: dict[str, str]
) -> tuple[list[Contestant], dict[str, Any]]:
    """The fastest candidate of each contestant that is here, and what each candidate gave.

    `known` is an earlier scouting of the same candidates, which is not repeated. Contestants without an
    environment, or whose candidates all fail, are named in `failures`.
    """
    chosen: list[Contestant] = []
    scouted: dict[str, Any] = {}
    for name in section.names:
        candidates = section.candidates(name)
        if not candidates[0].python.exists():
            failures[name] = "no environment: benchmarks/peers/setup.sh makes it"
            print(f"  {name} is left out: benchmarks/peers/setup.sh makes its environment", file=sys.stderr)
            continue
        if len(candidates) == 1 or not pace.scout_seconds:
            chosen.append(candidates[0])
            continue
        settings = [shlex.join(one.arguments) for one in candidates]
        rates = known.get(name, {})
        if list(rates) != settings:
            rates = {}
            for text, one in zip(settings, candidates, strict=True):
                try:
                    rates[text] = measure(one, pace.scout_seconds, pace.scout_seconds)["steps_per_sec"]
                except RuntimeError as error:
                    rates[text] = None
                    failures[name] = str(error)
                shown = "failed" if rates[text] is None else f"{rates[text]:,.0f} steps/s"
                print(f"  scouting  {name:26s} {text}: {shown}", flush=True)
        scouted[name] = rates
        served = [one for one, text in zip(candidates, settings, strict=True) if rates[text] is not None]
        if served:
            failures.pop(name, None)
            chosen.append(max(served, key=lambda one: rates[shlex.join(one.arguments)]))
    return chosen, scouted


def take_turns(
    section: Section,
    chosen: list[Contestant],
    pace: Pace,
    failures: dict[str, str],
    has_time: Callable[[float], bool] = lambda _seconds: True,
) -> Lines:
    """Each contestant's lines, turn by turn: A B C A B C. A turn that no time is left for is not begun.

    One that fails is left out from there on, with all of its lines.
    """
    lines: Lines = {one.name: [] for one in chosen}
    longest = 0.0
    for turn in range(pace.turns(section)):
        if turn and not has_time(longest):
            print(f"  the time is over after {turn} turns", flush=True)
            break
        begun = time.monotonic()
        for one in chosen:
            if one.name not in lines:
                continue
            more = (
                ("--seed", str(turn + 1), "--give-up", f"{pace.give_up:g}")
                if section.metric == "seconds"
                else ()
            )
            try:
                line = measure(one, pace.seconds, pace.warmup, more)
            except RuntimeError as error:
                failures[one.name] = str(error)
                del lines[one.name]
                print(f"  {one.name} failed and is left out: {error}", file=sys.stderr)
                continue
            line["worth"] = worth(line, section.metric, pace.give_up)
            lines[one.name].append(line)
            unit = "s" if section.metric == "seconds" else "steps/s"
            print(f"  turn {turn + 1}  {one.name:34s} {line['worth']:14,.1f} {unit}", flush=True)
        longest = max(longest, time.monotonic() - begun)
    return lines
