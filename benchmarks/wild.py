"""What people bring: the share of situations that work, are refused in one line, or fail, by area.

    python -m benchmarks.wild [--jobs 2] [--area models] [--quick]

Runs every situation of `tests/wild/`, the slow ones too unless `--quick`, each in a folder of its own, and writes
`results/wild.json` and the page docs/supported.md (a whole run alone). Exit status 0 where none fails.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "wild.json"
PAGE = HERE.parent / "docs" / "supported.md"
SCHEMA = 1
KINDS = ("works", "refused", "ended", "fails")
HEADINGS = {
    "models": "Language models",
    "tokenizers": "Tokenizers and chat templates",
    "data": "Data",
    "rewards": "Reward functions",
    "environments": "Environments",
}


def try_one(number: int, name: str) -> dict[str, Any]:
    """How the situation of that number and name ended."""
    import torch

    from tests.wild.situation import every, judge

    torch.set_num_threads(1)
    situation = every()[number]
    assert situation.id == name
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        verdict = judge(situation, Path(folder))
        said = verdict.said.replace(f"{HERE.parent}/", "").replace(folder + "/", "").replace(folder, ".")
    return {
        "area": situation.area,
        "name": situation.name,
        "expected": situation.expected,
        "kind": verdict.kind,
        "said": said,
        "why": verdict.why[-2000:],
        "seconds": round(time.perf_counter() - began, 2),
    }


def run(jobs: int, area: str | None, quick: bool) -> list[dict[str, Any]]:
    """All situations asked for, in the order in which they are written down."""
    from tests.wild.situation import every

    asked = {
        number: one.id
        for number, one in enumerate(every())
        if area in (None, one.area) and not (quick and one.slow)
    }
    found: dict[int, dict[str, Any]] = {}
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(try_one, number, name): number for number, name in asked.items()}
        for done in as_completed(waiting):
            one = found[waiting[done]] = done.result()
            if one["kind"] == "fails":
                print(f"FAILS  {one['area']}: {one['name']}\n{one['why']}", flush=True)
    return [found[number] for number in asked]


def shares(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Counts by area, and of all."""
    areas = [*(area for area in HEADINGS if any(row["area"] == area for row in rows)), "all"]
    return [
        {"area": area, "situations": len(mine)} | {kind: sum(row["kind"] == kind for row in mine) for kind in KINDS}
        for area in areas
        if (mine := [row for row in rows if area in ("all", row["area"])])
    ]  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """The shares, for a terminal."""
    lines = [f"{'area':14}{'situations':>11}{'work':>8}{'refused':>9}{'ended':>7}{'fail':>6}"]
    for one in shares(rows):
        total = one["situations"]
        lines.append(
            f"{one['area']:14}{total:>11}{one['works'] / total:>8.0%}{one['refused'] / total:>9.0%}"
            f"{one['ended'] / total:>7.0%}{one['fails'] / total:>6.0%}"
        )
    return "\n".join(lines)


def page(found: dict[str, Any]) -> str:
    """What is supported, as Markdown."""
    rows = found["situations"]
    versions = ", ".join(
        f"{name} {found['versions'][name]}" for name in ("python", "torch", "transformers", "gymnasium")
    )
    lines = [
        "# What is supported",
        "",
        f"Made by `{found['command']}` from what was run ({versions}); not edited by hand. Each row is a case of",
        "`tests/wild/`: **works** ran to its end with the right values, **refused** is one error before compute is spent",
        "(exit status 2), **ended** is one error while the run goes on (exit status 1).",
        "",
        "| area | cases | work | refused | ended | fail |",
        "|---|---|---|---|---|---|",
        *(
            f"| {one['area']} | {one['situations']} | {one['works']} | {one['refused']} | {one['ended']} | {one['fails']} |"
            for one in shares(rows)
        ),
    ]
    for area, heading in HEADINGS.items():
        mine = [row for row in rows if row["area"] == area]
        if not mine:
            continue
        lines += ["", f"## {heading}", ""]
        works = _grouped([row["name"] for row in mine if row["kind"] == "works"])
        lines += ["Works:", "", *(f"- {line}" for line in works)] if works else []
        others = [row for row in mine if row["kind"] != "works"]
        if others:
            lines += ["", "| not supported | | the error |", "|---|---|---|"]
            lines += [f"| {row['name']} | {row['kind']} | {_cell(row['said'])} |" for row in others]
    return "\n".join(lines) + "\n"


def _grouped(names: list[str]) -> list[str]:
    """`a x sft`, `b x sft` as one line `sft: a, b`, and `a folder: p`, `a folder: q` as `a folder: p, q`."""
    parts = [
        tuple(name.rsplit(" x ", 1)[::-1]) if " x " in name else tuple(name.split(": ", 1)) for name in names
    ]
    counts = Counter(part for one in parts if len(one) == 2 for part in one)
    groups: dict[str, list[str]] = {}
    for name, one in zip(names, parts):
        if len(one) == 1 or max(counts[part] for part in one) < 3:
            groups[name] = []
            continue
        head, rest = sorted(one, key=lambda part: -counts[part])
        groups.setdefault(head, []).append(rest)
    return [f"{head}: {', '.join(rest)}" if rest else head for head, rest in groups.items()]


def _cell(text: str) -> str:
    shown = text if len(text) <= 200 else text[:197] + "..."
    return "`" + shown.replace("|", "\\|").replace("`", "'") + "`" if shown else ""


def main() -> int:
    """Exit status 0 where no situation fails."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=2, help="situations at a time, each in a process")
    parser.add_argument("--area", choices=list(HEADINGS), help="one area alone; nothing is written")
    parser.add_argument("--quick", action="store_true", help="without the slow ones; nothing is written")
    asked = parser.parse_args()
    rows = run(asked.jobs, asked.area, asked.quick)
    print(table(rows))
    if asked.area is None and not asked.quick:
        from distrl.machine import machine, versions
        from distrl.run_directory import write_json_atomic

        found = {
            "schema": SCHEMA,
            "command": shlex.join(["python", "-m", "benchmarks.wild", *sys.argv[1:]]),
            "machine": machine(),
            "versions": versions(),
            "shares": shares(rows),
            "situations": rows,
        }
        write_json_atomic(RESULTS, found)
        PAGE.write_text(page(json.loads(RESULTS.read_text())), encoding="utf-8")
    return 1 if any(row["kind"] == "fails" for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
