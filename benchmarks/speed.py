"""PPO beside the peers, in one run on one machine: env steps a second, seconds to a score, and the share of the limit.

    python benchmarks/speed.py [--budget MINUTES] [--resume] [--only 8 64 best ...] [--seconds 20] [--repeats 3]

A section is a row of the table (benchmarks/comparison/sections.py): everyone has the same work and the same measured
window, each in a process of its own (benchmarks/peers/speed.py). First the candidates of each contestant, its settings,
are scouted for some seconds and the fastest stays. Then the contestants take turns, A B C A B C, so that a machine
that grows slower does so for all; a ratio is formed within a turn. Results are merged into the file section by section:
an interrupted run goes on with `--resume`, and `--print` shows what is there. Peers need their environments:
benchmarks/peers/setup.sh. One that is missing is left out, and its targets are not met.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from comparison.contestants import Section
from comparison.judging import judge, judge_limit, share_of_limit, summarise, table
from comparison.limit import sgemm
from comparison.measuring import Pace, fit, scout, take_turns
from comparison.sections import SECTIONS

QUIET_LOAD = 0.7
SCHEMA = 2


def run_section(
    section: Section, pace: Pace, known: dict[str, Any], deadline: float | None
) -> dict[str, Any]:
    """Measures a section by `deadline` (monotonic seconds); returns its record. `known` is an earlier scouting."""
    from distrl import machine

    started, load = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), os.getloadavg()
    cores = os.cpu_count() or 1
    rates = [sgemm(threads, min(2.0, pace.seconds)) for threads in sorted({1, cores})]
    failures: dict[str, str] = {}
    chosen, scouted = scout(section, pace, known, failures)
    lines = take_turns(
        section,
        chosen,
        pace,
        failures,
        lambda seconds: deadline is None or time.monotonic() + seconds <= deadline,
    )
    rows = {name: summarise(measured, section.metric) for name, measured in lines.items() if measured}
    flops = section.work.rollout_flops if section.name == "rollout" else section.work.flops_per_step
    if section.metric == "steps_per_sec":
        for row in rows.values():
            rate = row["steps_per_sec"]["median"]
            row["share_of_limit"] = share_of_limit(rate, flops, rates[-1]["best_gflops"])
    verdicts = [judge(target, rows, failures, section.metric) for target in section.targets]
    verdicts += [judge_limit(target, rows) for target in section.limits]
    return {
        "title": section.title,
        "note": section.note,
        "started": started,
        "load_average_at_start": load,
        "quiet": load[0] <= QUIET_LOAD,
        "pace": asdict(pace),
        "machine": machine.machine(),
        "versions": machine.versions(),
        "git_revision": machine.git_revision(),
        "limit": {
            "sgemm": rates,
            "flops_per_env_step": flops,
            "steps_per_sec": round(rates[-1]["best_gflops"] * 1e9 / flops),
        },
        "scouted": scouted,
        "rows": rows,
        "missing": failures,
        "targets": verdicts,
    }


def load_record(path: Path) -> dict[str, Any]:
    """What is there of earlier runs; an empty record where there is nothing of this schema."""
    if path.exists():
        record: dict[str, Any] = json.loads(path.read_text())
        if record.get("schema") == SCHEMA:
            return record
    return {"schema": SCHEMA, "commands": [], "sections": {}}


def is_done(record: dict[str, Any], name: str, cpu: str) -> bool:
    """Whether a section was measured on a machine with this CPU."""
    section = record["sections"].get(name)
    return section is not None and section["machine"]["cpu"] == cpu


def write(path: Path, record: dict[str, Any]) -> None:
    """Replaces the file as a whole: an interrupted run keeps what it has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.tmp")
    aside.write_text(json.dumps(record, indent=1) + "\n")
    aside.replace(path)


def show(record: dict[str, Any], names: list[str]) -> str:
    """The tables of those sections that are there."""
    return "\n\n".join(
        table(SECTIONS[name], section["rows"], section["targets"], section["missing"])
        for name in names
        if (section := record["sections"].get(name))
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="the measured window")
    parser.add_argument("--warmup", type=float, default=5.0, help="seconds before it")
    parser.add_argument(
        "--scout-seconds", type=float, default=3.0, help="window in which settings are compared"
    )
    parser.add_argument("--repeats", type=int, default=3, help="turns of each contestant (a race has 5)")
    parser.add_argument("--give-up", type=float, default=120.0, help="seconds after which a race is lost")
    parser.add_argument("--budget", type=float, metavar="MINUTES", help="shorten the above so that all fits")
    parser.add_argument("--resume", action="store_true", help="leave out sections that are in the file")
    parser.add_argument("--rescout", action="store_true", help="scout settings again that are in the file")
    parser.add_argument(
        "--print", action="store_true", help="print the tables that are in the file, measure nothing"
    )
    parser.add_argument(
        "--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS), metavar="SECTION"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "speed.json")
    options = parser.parse_args()
    if options.repeats < 1 or options.seconds <= 0 or options.scout_seconds < 0:
        parser.error("--repeats must be 1 or more, --seconds positive and --scout-seconds 0 or more")
    if options.budget is not None and options.budget <= 0:
        parser.error("--budget must be positive")
    return options


def main() -> int:
    options = arguments()
    record = load_record(options.out)
    if not options.print:
        measure_all(options, record)
    print(show(record, options.only))
    verdicts = [
        verdict
        for name in options.only
        for verdict in record["sections"].get(name, {}).get("targets", [{"met": False}])
    ]
    return 0 if all(verdict["met"] for verdict in verdicts) else 1


def measure_all(options: argparse.Namespace, record: dict[str, Any]) -> None:
    """Measures the sections asked for, each within its share of the time left, and keeps them one by one."""
    from distrl import machine

    load = os.getloadavg()[0]
    if load > QUIET_LOAD:
        print(
            f"warning: load average {load:.2f} is over {QUIET_LOAD}: others are at work, and the numbers say little",
            file=sys.stderr,
        )
    cpu = machine.machine()["cpu"]
    left = [SECTIONS[name] for name in options.only if not (options.resume and is_done(record, name, cpu))]
    wanted = pace = Pace(
        options.seconds, options.warmup, options.scout_seconds, options.repeats, options.give_up
    )
    end = None if options.budget is None else time.monotonic() + 60 * options.budget
    record["commands"].append(shlex.join(["python", "benchmarks/speed.py", *sys.argv[1:]]))
    for index, section in enumerate(left):
        deadline = None
        if end is not None:
            seconds_left = end - time.monotonic()
            # what earlier sections took more or less than planned, the later ones share
            pace = fit(wanted, left[index:], seconds_left)
            costs = [pace.cost_sec(one) for one in left[index:]]
            if index and costs[0] > 1.5 * seconds_left:
                print(f"no time is left for {', '.join(one.name for one in left[index:])}: --resume goes on")
                return
            deadline = time.monotonic() + max(costs[0], seconds_left * costs[0] / sum(costs))
        print(
            f"section {section.name}: {section.title} ({pace.seconds:g} s x {pace.turns(section)})",
            flush=True,
        )
        same_machine = is_done(record, section.name, cpu) and not options.rescout
        known = record["sections"][section.name]["scouted"] if same_machine else {}
        record["sections"][section.name] = run_section(section, pace, known, deadline)
        record["sections"] = {
            name: record["sections"][name] for name in SECTIONS if name in record["sections"]
        }
        write(options.out, record)


if __name__ == "__main__":
    sys.exit(main())
