"""What a run showed, as one JSON object: `report` draws it."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rlhf import gold, measure, stages
from benchmarks.rlhf.fits import Fit, fit
from benchmarks.rlhf.measure import Sample
from benchmarks.rlhf.settings import Settings
from distrl.machine import git_revision, machine, versions

NUM_SHOWN = 8
Curve = list[dict[str, float]]


def collect(
    settings: Settings, folders: Any, took: dict[str, dict[str, float]], command: str | None = None
) -> dict[str, Any]:
    """Reads the stages' folders (`pipeline.Folders`), lets SFT and the best policy write once more, and fits the forms."""
    control = json.loads((folders.best_of_n / "best_of_n.json").read_text())
    curves = {beta: json.loads((to / "curve.json").read_text()) for beta, to in folders.ppo.items()}
    before = stages.final(settings, folders.language, folders.sft, folders.sft, folders.reward)
    after = {
        beta: stages.final(settings, folders.language, to, folders.sft, folders.reward)
        for beta, to in folders.ppo.items()
    }
    # chosen on the curve's prompts, judged on others
    best = max(curves, key=lambda beta: curves[beta][-1]["gold"])
    return {
        "schema": 1,
        "command": command or shlex.join(["python", "-m", "benchmarks.rlhf.pipeline", *sys.argv[1:]]),
        "settings": settings.as_json(),
        "machine": machine(),
        "versions": versions(),
        "git_revision": git_revision(),
        "stages": took,
        "sft": stages.means(before) | {"gold_mean": control["gold_mean"], "gold_std": control["gold_std"]},
        "reward": json.loads((folders.reward / "accuracy.json").read_text())
        | {"correlation": control["correlation"]},
        "best_of_n": control["best_of"],
        "ppo": [
            {
                "beta": beta,
                "curve": curves[beta],
                "final": stages.means(after[beta]),
                "win_rate": measure.win_rate(after[beta].gold, before.gold),
            }
            for beta in curves
        ],
        "best_beta": best,
        "fits": fits(curves, control),
        "samples": _shown(before, after[best]),
    }


def normal(value: float, control: dict[str, Any]) -> float:
    """Gold in deviations of the SFT model's samples, from their mean: the proxy's unit."""
    return (value - float(control["gold_mean"])) / (float(control["gold_std"]) or 1.0)


def fits(curves: dict[float, Curve], control: dict[str, Any]) -> dict[str, Any]:
    """Gao et al.'s forms over sqrt(KL): of best of n, and of PPO's way at each beta and of all ways together."""
    of_n = control["best_of"]
    kl = [one["kl"] for one in of_n]
    found: dict[str, Any] = {
        "best of n": _both(
            kl, [normal(one["gold"], control) for one in of_n], [one["proxy"] for one in of_n], "best of n"
        )
    }
    for name, some in [
        *((f"beta {beta:g}", [curve]) for beta, curve in curves.items()),
        ("ppo", [*curves.values()]),
    ]:
        points = [point for curve in some for point in curve if point["kl"] > 0]
        if len(points) >= 2:
            found[name] = _both(
                [point["kl"] for point in points],
                [normal(point["gold"], control) for point in points],
                [point["proxy"] for point in points],
                "rl",
            )
    return found


def _both(kl: list[float], gold_there: list[float], proxy: list[float], form: Any) -> dict[str, Any]:
    told: dict[str, Any] = {"form": form, "highest_kl": max(kl)}
    for name, reward in (("gold", gold_there), ("proxy", proxy)):
        one = fit(kl, reward, form)
        told[name] = {"a": one.a, "b": one.b, "r_squared": one.r_squared, "kl_at_top": one.kl_at_top}
    return told


def as_fit(told: dict[str, Any], of: str) -> Fit:
    """A fit as the results have it."""
    return Fit(told["form"], **told[of])


def _shown(before: Sample, after: Sample) -> list[dict[str, Any]]:
    """Stories side by side; every so many of all, so that neither end is picked."""
    picked = np.linspace(0, len(before.prompts) - 1, min(NUM_SHOWN, len(before.prompts))).astype(int)
    return [
        {"prompt": before.prompts[i], "before": _told(before, i), "after": _told(after, i)} for i in picked
    ]


def _told(sample: Sample, i: int) -> dict[str, Any]:
    reading = gold.read(sample.prompts[i], sample.texts[i], bool(sample.ended[i]))
    return {
        "text": sample.texts[i].strip(),
        "gold": reading.score,
        "proxy": float(sample.proxy[i]),
        "lines": [list(line) for line in reading.lines],
    }


def write(results: dict[str, Any], path: Path) -> None:
    """Indented, so that a difference can be read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
