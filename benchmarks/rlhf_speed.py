"""RLHF beside the peers, in one run on one machine: response tokens a second, and the share of our own floor.

    python benchmarks/rlhf_speed.py [--seconds 20] [--repeats 3] [--only generate ppo grpo] [--print]

GPT-2 of 0.88 M parameters, 64 prompts of 16 tokens, 32 new tokens (benchmarks/peers/rlhf_work.py). Contestants take
turns, each in a process of its own, and a ratio is formed within a turn; the median of the ratios counts. Of several
settings of one contestant the fastest of its own scouting goes on. PPO: 4 epochs, one minibatch, a separate critic, a
reward model. GRPO: one update, groups of 8, the KL to a reference in the loss, a function for a reward. The floor is
the sum of an iteration's bare passes, measured alone (benchmarks/peers/distrl_rlhf_speed.py).
Exit status 0: all targets met.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PEERS = ROOT / "benchmarks" / "peers"
RESULTS = ROOT / "benchmarks" / "results" / "rlhf_speed.json"
SCHEMA = 1
sys.path.insert(0, str(ROOT))


@dataclass(frozen=True)
class Contestant:
    """A runner with the settings that are scouted for it; `of` is its environment, None ours."""

    name: str
    runner: str
    settings: tuple[str, ...]
    of: str | None = None

    def command(self, setting: str) -> list[str]:
        """The process that measures it with that setting."""
        python = sys.executable if self.of is None else str(PEERS / ".envs" / self.of / "bin" / "python")
        return [python, str(PEERS / self.runner), *setting.split()]


@dataclass(frozen=True)
class Section:
    """One row of the table: `times` as fast as the peer, and `share` of the floor."""

    title: str
    ours: Contestant
    peers: tuple[Contestant, ...]
    times: float
    floor: Contestant | None = None
    share: float = 0.9
    beside: tuple[Contestant, ...] = ()  # measured too, without a target


def ours(what: str, *settings: str) -> Contestant:
    """Our runner of that work."""
    return Contestant(f"distrl {what}", "distrl_rlhf_speed.py", tuple(f"{what} {one}" for one in settings))


THREADS = ("--threads 1", "--threads 2")
TRL = ("--threads 2", "--threads 2 --checkpointing", "--threads 1")
SECTIONS = {
    "generate": Section(
        "generation",
        ours("generate", *THREADS, "--threads 2 --compile"),
        (
            Contestant(
                "transformers generate()", "generate_speed.py", (*THREADS, "--threads 2 --cache static")
            ),
        ),
        1.8,
        beside=(
            Contestant(
                "generate(), compiled by hand", "generate_speed.py", ("--threads 2 --cache static --compile",)
            ),
        ),
    ),
    "ppo": Section(
        "PPO, 4 epochs, separate critic",
        ours("ppo", "--threads 2", "--threads 2 --compile", "--threads 2 --micro-batch 32", "--threads 1"),
        (Contestant("TRL 1.8 PPO", "trl_ppo_speed.py", (*TRL, "--threads 2 --micro-batch 32"), "trl-ppo"),),
        1.4,
        ours("ppo-floor", "--threads 2", "--threads 2 --compile"),
    ),
    "grpo": Section(
        "GRPO, one update",
        ours(
            "grpo --epochs 1",
            "--threads 2",
            "--threads 2 --compile",
            "--threads 2 --micro-batch 32",
            "--threads 1",
        ),
        (
            Contestant(
                "TRL 1.16 GRPO", "trl_grpo_speed.py", tuple(f"--epochs 1 {one}" for one in TRL), "trl-grpo"
            ),
        ),
        1.3,
        ours("grpo-floor --epochs 1", "--threads 2", "--threads 2 --compile"),
    ),
}


def measure(contestant: Contestant, setting: str, seconds: float) -> dict[str, Any]:
    """What its process says."""
    command = [*contestant.command(setting), "--seconds", str(seconds)]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    if done.returncode != 0:
        raise RuntimeError(f"{shlex.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    line: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return line


def run_section(section: Section, seconds: float, scout_seconds: float, repeats: int) -> dict[str, Any]:
    """Scouts settings, then has the contestants take turns."""
    contestants = [section.ours, *section.peers, *section.beside, *([section.floor] if section.floor else [])]
    scouted: dict[str, dict[str, float]] = {}
    for one in contestants:
        scouted[one.name] = {}
        for setting in one.settings:
            found = measure(one, setting, scout_seconds)["tokens_per_sec"] if len(one.settings) > 1 else 0.0
            scouted[one.name][setting] = found
            print(f"  scouting  {one.name:26} {setting}: {found:,.0f} tokens/s", flush=True)
    best = {name: max(rates, key=lambda setting: rates[setting]) for name, rates in scouted.items()}
    turns: list[dict[str, dict[str, Any]]] = []
    for turn in range(repeats):
        turns.append({one.name: measure(one, best[one.name], seconds) for one in contestants})
        told = ", ".join(f"{name} {line['tokens_per_sec']:,.0f}" for name, line in turns[-1].items())
        print(f"  turn {turn + 1}  {told}", flush=True)
    return {
        "title": section.title,
        "scouted": scouted,
        "settings": best,
        "turns": turns,
        **judge(section, turns),
    }


def judge(section: Section, turns: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Ratios within each turn, their median, and whether the targets are met."""

    def ratios(name: str) -> list[float]:
        return [turn[section.ours.name]["tokens_per_sec"] / turn[name]["tokens_per_sec"] for turn in turns]

    targets = [
        {"than": peer.name, "at_least": section.times, "ratios": ratios(peer.name)} for peer in section.peers
    ]
    if section.floor:
        targets.append({"than": "its floor", "at_least": section.share, "ratios": ratios(section.floor.name)})
    for target in targets:
        target["median"] = statistics.median(target["ratios"])
        target["met"] = target["median"] >= target["at_least"]
    return {"targets": targets, "beside": {one.name: ratios(one.name) for one in section.beside}}


def show(record: dict[str, Any]) -> str:
    """The table."""
    lines = []
    for section in record["sections"].values():
        lines.append(section["title"])
        for name in section["turns"][0]:
            rates = sorted(turn[name]["tokens_per_sec"] for turn in section["turns"])
            spread = f"[{rates[0]:,.0f} .. {rates[-1]:,.0f}]"
            lines.append(
                f"  {name:28} {statistics.median(rates):>9,.0f} tokens/s  {spread:22} {section['settings'][name]}"
            )
        for name, found in section.get("beside", {}).items():
            each = ", ".join(f"{ratio:.2f}" for ratio in found)
            lines.append(f"  {statistics.median(found):.2f} times {name} ({each})")
        for target in section["targets"]:
            each = ", ".join(f"{ratio:.2f}" for ratio in target["ratios"])
            lines.append(
                f"  target: {target['at_least']} times {target['than']}: {target['median']:.2f} ({each}), "
                f"{'met' if target['met'] else 'MISSED'}"
            )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--scout-seconds", type=float, default=6.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=tuple(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--print", action="store_true", help="print what is in the file, measure nothing")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    record = (
        json.loads(options.out.read_text()) if options.out.exists() else {"schema": SCHEMA, "sections": {}}
    )
    if not options.print:
        from distrl import machine

        load = os.getloadavg()[0]
        if load > 0.7:
            print(f"warning: load average {load:.1f}: the numbers say little", file=sys.stderr)
        for name in options.only:
            print(f"section {name}: {SECTIONS[name].title}", flush=True)
            section = run_section(SECTIONS[name], options.seconds, options.scout_seconds, options.repeats)
            record["sections"][name] = section | {
                "command": shlex.join(["python", "benchmarks/rlhf_speed.py", *sys.argv[1:]]),
                "load_average_at_start": load, "machine": machine.machine("cpu"), "versions": machine.versions(),
                "git_revision": machine.git_revision(),
            }  # fmt: skip
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(record, indent=2) + "\n")
    print(show(record))
    told = [
        target
        for name in options.only
        for target in record["sections"].get(name, {}).get("targets", [{"met": False}])
    ]
    return 0 if all(target["met"] for target in told) else 1


if __name__ == "__main__":
    sys.exit(main())
