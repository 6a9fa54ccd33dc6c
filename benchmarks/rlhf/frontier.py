"""The whole frontier: label noise, the reward model's data, beta and seeds. What does each cost, and where is the top?

    python -m benchmarks.rlhf.frontier --folder runs/rlhf-frontier

Every run is `pipeline`'s with other settings; stages that two share (the SFT model, the pairs) are done once, and what is
done is not done again: stopped and begun anew, it goes on. `--processes` cases run at once, one thread each; the same
command with the same folder ends in the same results/rlhf/frontier.json, with a figure beside it.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rlhf import measure, pipeline, stages
from benchmarks.rlhf.results import as_fit, fits, normal
from benchmarks.rlhf.settings import TINY, Settings
from benchmarks.rlhf.together import together
from distrl.machine import git_revision, machine, versions

RESULTS = Path(__file__).parents[1] / "results" / "rlhf"


def prepare(job: tuple[Path, Settings]) -> None:
    """What all cases of a seed share."""
    pipeline.up_to_pairs(pipeline.Run(*job))


def case(job: tuple[Path, Settings]) -> dict[str, Any]:
    """One reward model and its betas."""
    root, settings = job
    folders, took = pipeline.run(root, settings)
    control = json.loads((folders.best_of_n / "best_of_n.json").read_text())
    curves = {beta: json.loads((to / "curve.json").read_text()) for beta, to in folders.ppo.items()}
    before = stages.final(settings, folders.language, folders.sft, folders.sft, folders.reward)
    runs = []
    for beta, to in folders.ppo.items():
        after = stages.final(settings, folders.language, to, folders.sft, folders.reward)
        runs.append({
            "beta": beta, "curve": curves[beta], "final": stages.means(after),
            "win_rate": measure.win_rate(after.gold, before.gold),
        })  # fmt: skip
    return {
        "seed": settings.seed,
        "noise": settings.noise,
        "pairs_used": settings.pairs_used,
        "reward": json.loads((folders.reward / "accuracy.json").read_text()),
        "control": control,
        "ppo": runs,
        "fits": fits(curves, control),
        "cpu_sec": {name: one["cpu_sec"] for name, one in took.items()},
    }


def table(cases: list[dict[str, Any]]) -> list[str]:
    """A line for each noise, size and beta: means over seeds, and the lowest and highest win rate."""
    groups: dict[tuple[float, int, float], list[tuple[dict[str, Any], dict[str, Any]]]] = defaultdict(list)
    for one in cases:
        for run in one["ppo"]:
            groups[one["noise"], one["pairs_used"], run["beta"]].append((one, run))
    lines = [
        f"{'noise':>6} {'pairs':>6} {'beta':>6} {'accuracy':>9} {'ceiling':>8} {'gold':>6} {'top on the way':>15} {'KL':>6} "
        f"{'proxy':>6} {'wins':>7} {'over seeds':>16}"
    ]
    for (noise, size, beta), some in sorted(groups.items()):
        accuracy = np.mean([one["reward"]["accuracy"] for one, _ in some])
        ceiling = np.mean([one["reward"]["ceiling"] for one, _ in some])
        gold, kl, proxy = (
            np.mean([run["final"][name] for _, run in some]) for name in ("gold", "kl", "proxy")
        )
        top = np.mean([max(point["gold"] for point in run["curve"]) for _, run in some])
        wins = [100 * run["win_rate"]["mean"] for _, run in some]
        lines.append(
            f"{noise:6.2f} {size:6d} {beta:6g} {accuracy:9.3f} {ceiling:8.3f} {gold:6.2f} {top:15.2f} {kl:6.1f} "
            f"{proxy:6.2f} {np.mean(wins):6.1f}% {min(wins):7.1f} to {max(wins):.1f}"
        )
    return lines


def figure(cases: list[dict[str, Any]], path: Path) -> None:
    """Gold and proxy over sqrt(KL), a panel for each noise and size."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = sorted({(one["noise"], one["pairs_used"]) for one in cases})
    drawn, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 3.8), sharey=True, squeeze=False)
    for axis, (noise, size) in zip(axes[0], panels, strict=True):
        mine = [one for one in cases if (one["noise"], one["pairs_used"]) == (noise, size)]
        for one in mine:
            for run in one["ppo"]:
                at = [math.sqrt(max(point["kl"], 0.0)) for point in run["curve"]]
                axis.plot(at, [point["proxy"] for point in run["curve"]], color="#2563c9", alpha=0.35)
                axis.plot(
                    at,
                    [normal(point["gold"], one["control"]) for point in run["curve"]],
                    color="#b8860b",
                    alpha=0.5,
                )
            told = one["fits"][f"beta {min(run['beta'] for run in one['ppo']):g}"]
            grid = np.linspace(0.0, math.sqrt(told["highest_kl"]), 60)
            axis.plot(
                grid,
                [as_fit(told, "gold").at(d * d) for d in grid],
                color="#b8860b",
                linestyle="--",
                linewidth=1,
            )
            best = one["control"]["best_of"]
            axis.plot(
                [math.sqrt(n["kl"]) for n in best],
                [normal(n["gold"], one["control"]) for n in best],
                "k.",
                markersize=4,
            )
        axis.set_title(f"{size:,} pairs, {100 * noise:.0f} % flipped", fontsize=10)
        axis.set_xlabel("sqrt(KL)")
        axis.grid(alpha=0.25)
    axes[0][0].set_ylabel("deviations of SFT's samples")
    axes[0][-1].plot([], [], color="#2563c9", label="proxy")
    axes[0][-1].plot([], [], color="#b8860b", label="gold (dashed: fitted at the smallest beta)")
    axes[0][-1].plot([], [], "k.", label="gold, best of n")
    axes[0][-1].legend(fontsize=8)
    drawn.tight_layout()
    drawn.savefig(path, dpi=110)
    plt.close(drawn)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/rlhf-frontier"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--noise", type=float, nargs="+", default=[0.0, 0.25])
    parser.add_argument("--pairs", type=int, nargs="+", default=[3_000, Settings().num_pairs])
    parser.add_argument("--betas", type=float, nargs="+", default=list(Settings().betas))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--processes", type=int, default=2, help="cases at once, one thread each")
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--best-of", type=int, default=16)
    parser.add_argument("--tiny", action="store_true", help="in seconds, to see that it runs")
    options = parser.parse_args()
    start = TINY if options.tiny else Settings(iterations=options.iterations, best_of=options.best_of)
    start = replace(start, betas=tuple(options.betas), threads=1)
    seeds = [replace(start, seed=seed) for seed in options.seeds]
    sizes = sorted({min(size, start.num_pairs) for size in options.pairs})
    grid = [
        replace(one, noise=noise, pairs_used=size)
        for one in seeds
        for noise in options.noise
        for size in sizes
    ]
    list(together(prepare, [(options.folder, one) for one in seeds], options.processes))
    cases: list[dict[str, Any]] = []
    for one in together(case, [(options.folder, one) for one in grid], options.processes):
        cases.append(one)
        told = {
            "schema": 1, "command": shlex.join(["python", "-m", "benchmarks.rlhf.frontier", *sys.argv[1:]]),
            "machine": machine(), "versions": versions(), "git_revision": git_revision(),
            "settings": start.as_json(), "cases": cases,
        }  # fmt: skip
        options.results.mkdir(parents=True, exist_ok=True)
        (options.results / "frontier.json").write_text(json.dumps(told, indent=1) + "\n")
    figure(cases, options.results / "frontier.png")
    print("\n".join(table(cases)))


if __name__ == "__main__":
    main()
