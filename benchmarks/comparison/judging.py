"""What the measurements of a section mean: medians with their range, ratios within a turn, shares of the limit."""

from __future__ import annotations

import statistics
from typing import Any

from comparison.contestants import LimitTarget, Section, Target

Rows = dict[str, dict[str, Any]]
KEPT = (
    "env_steps",
    "seconds",
    "cpu_seconds",
    "steps_per_sec",
    "load_average_before",
    "worth",
    "reached",
    "seed",
)


def summarise(lines: list[dict[str, Any]], metric: str = "steps_per_sec") -> dict[str, Any]:
    """Median and range of the metric, and what each turn gave."""
    values = [line["worth"] for line in lines]
    settings = lines[0]["settings"]
    in_process = not any(settings.get(key) for key in ("workers", "runners"))
    per_cpu = [line["env_steps"] / line["cpu_seconds"] for line in lines if line["cpu_seconds"]]
    return {
        metric: {"median": statistics.median(values), "min": min(values), "max": max(values)},
        # by the process's own CPU time: hardly moved by what others do to the clock; only where one process does it all
        "steps_per_cpu_sec": round(statistics.median(per_cpu), 1) if in_process and per_cpu else None,
        "peer": lines[0]["peer"],
        "version": lines[0]["version"],
        "num_envs": lines[0]["num_envs"],
        "settings": settings,
        "turns": [{key: line[key] for key in KEPT if key in line} for line in lines],
    }


def judge(
    target: Target, rows: Rows, missing: dict[str, str], metric: str = "steps_per_sec"
) -> dict[str, Any]:
    """How many times as fast the best of ours is as the best of theirs: in each turn, and the median, which counts.

    A target is not met while one of them was left out: it might have been the fastest.
    """
    less_is_better = metric == "seconds"

    def best(names: tuple[str, ...]) -> str:
        ordered = sorted(
            (name for name in names if name in rows), key=lambda name: rows[name][metric]["median"]
        )
        return ordered[0 if less_is_better else -1]

    absent = [name for name in target.theirs if name in missing]
    if not any(name in rows for name in target.theirs) or not any(name in rows for name in target.ours):
        return {"times": target.times, "missing": absent or list(target.ours), "met": False}
    ours, theirs = best(target.ours), best(target.theirs)
    ratios = [
        round(other["worth"] / mine["worth"] if less_is_better else mine["worth"] / other["worth"], 3)
        for mine, other in zip(rows[ours]["turns"], rows[theirs]["turns"])
    ]
    median = statistics.median(ratios)
    return {
        "ours": ours,
        "theirs": theirs,
        "times": target.times,
        "ratios": ratios,
        "median_ratio": median,
        "missing": absent,
        "met": median >= target.times and not absent,
        "peer_wins": median < 1,
    }


def share_of_limit(rate: float, flops_per_step: int, gflops: float) -> float:
    """Part of the machine's matrix rate that so many env steps a second put to use."""
    return round(rate * flops_per_step / (gflops * 1e9), 4)


def judge_limit(target: LimitTarget, rows: Rows) -> dict[str, Any]:
    """Whether `ours` reaches its share of the limit."""
    share = rows[target.ours].get("share_of_limit") if target.ours in rows else None
    met = share is not None and share >= target.share
    return {"ours": target.ours, "wanted_share": target.share, "share": share, "met": met}


def table(section: Section, rows: Rows, verdicts: list[dict[str, Any]], missing: dict[str, str]) -> str:
    """Medians with their range, the share of the limit, and what the targets say; where a peer wins, it says so."""
    race = section.metric == "seconds"
    lines = [section.title]
    order = sorted(rows, key=lambda name: rows[name][section.metric]["median"], reverse=not race)
    for name in order:
        row = rows[name]
        value, unit = row[section.metric], "s" if race else "steps/s"
        digits = 1 if race else 0
        spread = f"[{value['min']:,.{digits}f} .. {value['max']:,.{digits}f}]"
        more = f"{row['num_envs']:6d} envs"
        if row.get("share_of_limit") is not None:
            more += f"  {row['share_of_limit']:6.1%} of the limit"
        if row["steps_per_cpu_sec"]:
            more += f"  {row['steps_per_cpu_sec']:,.0f} per CPU second"
        lines.append(f"  {name:30s} {value['median']:12,.{digits}f} {unit:8s} {spread:26s} {more}")
    for name, why in missing.items():
        lines.append(f"  {name:30s} left out: {why.splitlines()[0][:90]}")
    lines += [_verdict(verdict) for verdict in verdicts]
    if section.note:
        lines.append(f"  note: {section.note}")
    return "\n".join(lines)


def _verdict(verdict: dict[str, Any]) -> str:
    said = "met" if verdict["met"] else "MISSED"
    if "wanted_share" in verdict:
        share = "not measured" if verdict["share"] is None else f"{verdict['share']:.1%}"
        return f"  target: {verdict['ours']} at {verdict['wanted_share']:.0%} of the limit or more: {share}, {said}"
    if "ours" not in verdict:
        return f"  target: {verdict['times']:g} times: {said}, left out: {', '.join(verdict['missing'])}"
    ratios = ", ".join(f"{ratio:.2f}" for ratio in verdict["ratios"])
    wins = f"; {verdict['theirs']} WINS" if verdict["peer_wins"] and verdict["times"] >= 1 else ""
    without = f"; left out: {', '.join(verdict['missing'])}" if verdict["missing"] else ""
    return (
        f"  target: {verdict['ours']} at least {verdict['times']:g} times as fast as {verdict['theirs']}: "
        f"{verdict['median_ratio']:.2f} ({ratios}), {said}{wins}{without}"
    )
