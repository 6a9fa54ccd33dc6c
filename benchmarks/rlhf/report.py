"""The report of a run: results.json as one self-contained HTML file.

python -m benchmarks.rlhf.report runs/rlhf/results.json report.html
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rlhf import gap
from benchmarks.rlhf.pictures import Picture, Series, picture
from benchmarks.rlhf.results import as_fit, normal
from distrl.telemetry.page import templates, write_page

COLOURS = ("one", "two", "three", "four", "five")
TEMPLATE = "rlhf.html.j2"


def write_report(results: dict[str, Any], path: Path) -> None:
    """Replaces `path`. OSError from the disk."""
    page = templates(Path(__file__).parent).get_template(TEMPLATE)
    write_page(path, page.render(**context(results)))


def context(results: dict[str, Any]) -> dict[str, Any]:
    """What the template shows."""
    settings = results["settings"]
    return {
        "settings": {name: _plain(value) for name, value in settings.items()},
        "tiles": _tiles(results),
        "samples": [_side_by_side(one) for one in results["samples"]],
        "best_beta": f"{results['best_beta']:g}",
        "frontier": frontier(results),
        "pictures": [over_optimisation(results, "best of n"), over_optimisation(results, furthest(results))],
        "fits": _fit_rows(results),
        "runs": _run_rows(results),
        "reward": results["reward"],
        "accuracies": _accuracies(results["reward"], settings["noise"]),
        "slips": _slips(results),
        "times": _times(results),
        "facts": _facts(results),
        "command": results["command"],
        "minutes": None if results.get("elapsed_sec") is None else f"{results['elapsed_sec'] / 60:.0f}",
        "cores": results["machine"]["cores"],
        "stop": _stop(results),
        "certificate": gap.section(),
    }


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def best_run(results: dict[str, Any]) -> dict[str, Any]:
    """The run of the best beta."""
    found: dict[str, Any] = next(run for run in results["ppo"] if run["beta"] == results["best_beta"])
    return found


def _tiles(results: dict[str, Any]) -> list[tuple[str, str, str]]:
    best, sft, reward = best_run(results), results["sft"], results["reward"]
    win, end = best["win_rate"], best["final"]
    return [
        (
            "wins against SFT",
            f"{100 * win['mean']:.1f} %",
            f"by gold, {win['num_prompts']} prompts; 95\u00a0% interval {100 * win['low']:.1f} to {100 * win['high']:.1f}",
        ),
        ("gold, of 10 points", f"{sft['gold']:.2f} → {end['gold']:.2f}", f"SFT → PPO, beta {best['beta']:g}"),
        (
            "flawless stories",
            f"{100 * sft['flawless']:.0f} → {100 * end['flawless']:.0f} %",
            "all 10 points; SFT → PPO",
        ),
        ("KL from SFT", f"{end['kl']:.1f} nats", "a response, PPO"),
        (
            "reward model, held out",
            f"{100 * reward['accuracy']:.1f} %",
            f"of pairs right; gold itself: {100 * reward['ceiling']:.1f} %",
        ),
    ]


def _side_by_side(one: dict[str, Any]) -> dict[str, Any]:
    return {"prompt": one["prompt"], "sides": [_side("SFT", one["before"]), _side("PPO", one["after"])]}


def _side(name: str, told: dict[str, Any]) -> dict[str, Any]:
    lines = [(what, f"{points:+g}".replace("-", "−"), points > 0) for what, points in told["lines"]]
    return {"name": name, **told, "gold": f"{told['gold']:g}", "proxy": f"{told['proxy']:+.2f}".replace("-", "−"), "lines": lines}  # fmt: skip


def _gold(results: dict[str, Any], value: float) -> float:
    return normal(value, results["sft"])


def frontier(results: dict[str, Any]) -> Picture:
    """Gold over KL: each run's way, and best of n."""
    settings = results["settings"]
    series = [
        Series(
            f"PPO, beta {run['beta']:g}",
            COLOURS[i],
            line=[(point["kl"], point["gold"]) for point in run["curve"]],
            dots=[(run["curve"][-1]["kl"], run["curve"][-1]["gold"])],
        )
        for i, run in enumerate(results["ppo"])
    ]
    of_n = results["best_of_n"]
    series.append(
        Series(
            "best of n",
            "control",
            [(one["kl"], one["gold"]) for one in of_n],
            [(one["kl"], one["gold"]) for one in of_n],
            [f"n = {one['n']}, gold {one['gold']:.2f}" for one in of_n],
        )
    )
    return picture(
        "Gold over KL", series, "KL from SFT, nats a response", "gold, points",
        f"Each line is a run's way from SFT, its dot where it ended: one story to each of {settings['num_curve_prompts']} "
        f"prompts. Best of n is over {settings['best_of']} stories to each, so the two start apart by chance.",
    )  # fmt: skip


def over_optimisation(results: dict[str, Any], which: str) -> Picture:
    """Gold and proxy over sqrt(KL), in the same unit, with Gao et al.'s form."""
    told = results["fits"][which]
    gold_dots, proxy_dots = [], []
    if which == "best of n":
        for one in results["best_of_n"]:
            gold_dots.append((math.sqrt(one["kl"]), _gold(results, one["gold"])))
            proxy_dots.append((math.sqrt(one["kl"]), one["proxy"]))
    else:
        curve = next(run["curve"] for run in results["ppo"] if f"beta {run['beta']:g}" == which)
        for point in curve:
            at = math.sqrt(max(point["kl"], 0.0))
            gold_dots.append((at, _gold(results, point["gold"])))
            proxy_dots.append((at, point["proxy"]))
    grid = np.linspace(0.0, math.sqrt(told["highest_kl"]), 80)
    series = []
    for name, colour, dots in (("proxy", "proxy", proxy_dots), ("gold", "gold", gold_dots)):
        form = as_fit(told, name)
        series.append(Series(name, colour, [(float(d), form.at(float(d) ** 2)) for d in grid], dots))
    top = told["gold"]["kl_at_top"]
    marks = (
        [(math.sqrt(top), f"top of the fit, KL {top:.1f}")]
        if top is not None and top <= told["highest_kl"]
        else []
    )
    title = "Best of n" if which == "best of n" else f"PPO, {which}"
    return picture(
        title, series, "square root of the KL", "deviations of SFT's samples",
        "Dots: held-out prompts. Lines: " + ("d (a − b d)." if which == "best of n" else "d (a − b log d)."), marks=marks,
    )  # fmt: skip


def furthest(results: dict[str, Any]) -> str:
    """The fit of the run that goes furthest from SFT, which has the smallest beta."""
    return f"beta {min(run['beta'] for run in results['ppo']):g}"


def _stop(results: dict[str, Any]) -> str:
    """Where gold was highest on the way of the smallest beta, as measured and as fitted, and what came after."""
    which = furthest(results)
    told = results["fits"][which]
    curve = next(run["curve"] for run in results["ppo"] if f"beta {run['beta']:g}" == which)
    best, last = max(curve, key=lambda point: float(point["gold"])), curve[-1]
    top, r_squared = told["gold"]["kl_at_top"], told["gold"]["r_squared"]
    fitted = (
        "the fitted form still rises there"
        if top is None or top > told["highest_kl"]
        else f"the fitted form, with an R² of {r_squared:.2f}, has its top at {top:.1f}"
    )
    seen = (
        f"At {which} gold is highest, {best['gold']:.2f} points, at a KL of {best['kl']:.1f} nats ({fitted})."
    )
    if last["gold"] >= best["gold"]:
        return f"{seen} That is where the run ends."
    way = "rises" if last["proxy"] > best["proxy"] else "goes"
    return (
        f"{seen} From there to the end, at {last['kl']:.1f} nats, the proxy {way} from {best['proxy']:.2f} to "
        f"{last['proxy']:.2f} and gold falls to {last['gold']:.2f}: what the reward model likes and gold does not. "
        "Stop there, or keep a larger beta, whose run never goes so far."
    )


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _of(name: str) -> str:
    """A run by its beta, which breaks from no line of its own."""
    return f"PPO, {name}".replace("beta ", "beta\u00a0")


def _fit_rows(results: dict[str, Any]) -> list[list[str]]:
    rows = []
    for name, told in results["fits"].items():
        for of in ("gold", "proxy"):
            one = told[of]
            top = one["kl_at_top"]
            shown = "none" if top is None else f"{top:.1f}" if top < 1000 else "> 1000"
            beyond = " (not reached)" if top is not None and top > told["highest_kl"] else ""
            way = "PPO, all betas" if name == "ppo" else name if name == "best of n" else _of(name)
            numbers = [f"{one[of_form]:.3f}".replace("-", "−") for of_form in ("a", "b", "r_squared")]
            rows.append([way, of, *numbers, shown + beyond])
    return rows


def _run_rows(results: dict[str, Any]) -> list[list[str]]:
    rows = [["SFT", "", *_worth(results["sft"])]]
    for run in results["ppo"]:
        win = run["win_rate"]
        interval = f"{100 * win['low']:.1f} to {100 * win['high']:.1f}"
        rows.append([_of(f"beta {run['beta']:g}"), f"{100 * win['mean']:.1f}\u00a0% ({interval})", *_worth(run["final"])])  # fmt: skip
    return rows


def _worth(told: dict[str, float]) -> list[str]:
    gold = f"{told['gold']:.2f}\u00a0± {told['gold_error']:.2f}"
    return [gold, _signed(told["proxy"]), f"{told['kl']:.1f}", f"{100 * told['flawless']:.0f}\u00a0%"]


def _accuracies(reward: dict[str, Any], noise: float) -> list[tuple[str, float, float]]:
    rows = [("labels, none flipped", reward["accuracy_without_noise"], reward["ceiling_without_noise"])]
    if noise:
        rows.insert(0, (f"labels, {100 * noise:.0f} % flipped", reward["accuracy"], reward["ceiling"]))
    return [(name, round(100 * accuracy, 1), round(100 * ceiling, 1)) for name, accuracy, ceiling in rows]


def _slips(results: dict[str, Any]) -> list[tuple[str, ...]]:
    """Each slip's cost in gold and in proxy, both in deviations of SFT's samples, the dearest first."""
    unit = results["sft"]["gold_std"] or 1.0
    rows: list[tuple[str, ...]] = []
    for one in sorted(results["reward"].get("slips", []), key=lambda one: -float(one["gold"])):
        cost = one["gold"] / unit
        seen = f"{100 * one['proxy'] / cost:.0f}\u00a0%".replace("-", "−") if cost > 0 else ""
        rows.append((one["slip"], f"{one['gold']:.2f}", _signed(-cost), _signed(-one["proxy"]), seen))
    return rows


def _times(results: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Wall, CPU, and share of the CPU time: the last stages run side by side."""
    stages = results["stages"]
    cpu = sum(took["cpu_sec"] for took in stages.values()) or 1.0
    rows = [
        (name, f"{took['wall_sec']:.0f}", f"{took['cpu_sec']:.0f}", f"{100 * took['cpu_sec'] / cpu:.0f} %")
        for name, took in stages.items()
    ]
    elapsed = results.get("elapsed_sec")
    return [*rows, ("all", "" if elapsed is None else f"{elapsed:.0f}", f"{cpu:.0f}", "100 %")]


def _facts(results: dict[str, Any]) -> list[tuple[str, str]]:
    machine = dict(results["machine"])
    memory = f"{machine.pop('memory_bytes') / 2**30:.1f} GiB"
    revision = (results["git_revision"] or "none")[:12]
    shown = {**machine, "memory": memory, "git revision": revision, **results["versions"]}
    return [(str(name), str(value)) for name, value in shown.items()]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path)
    parser.add_argument("page", type=Path)
    options = parser.parse_args()
    write_report(json.loads(options.results.read_text()), options.page)


if __name__ == "__main__":
    main()
