"""Cost as work grows: our env steps a second over envs, workers, net width, episode length and observation size.

    python benchmarks/scaling.py [--budget MINUTES] [--only envs width ...] [--again] [--draw-only]

Each point is a training of its own (benchmarks/peers/distrl_speed.py), measured for some seconds, `--repeats` times;
one that is in the results of this machine is kept, so an interrupted run goes on with the same command. The page of
curves shows the medians with their range, and beside them the limit: floating-point operations of an env step over the
rate of a matrix product, measured in the same run with as many threads as there are cores.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comparison.contestants import Contestant
from comparison.limit import Work, actor_critic, sgemm
from comparison.measuring import measure

HERE = Path(__file__).resolve().parent
SCHEMA = 1
MOST_ROWS = 2**20  # of an iteration


@dataclass(frozen=True)
class Point:
    """One training: where it stands on its curve, how it is run, and what each env step costs at least."""

    x: int
    arguments: tuple[str, ...]
    work: Work


@dataclass(frozen=True)
class Curve:
    """One question."""

    name: str
    title: str
    label: str
    fixed: str
    points: tuple[Point, ...]


def _cartpole(width: int = 64) -> Work:
    return actor_critic(4, 2, (width, width), epochs=4)


def _steps(num_envs: int) -> int:
    return max(16, min(128, MOST_ROWS // num_envs))


def curves(threads: int) -> dict[str, Curve]:
    """The five curves, for a learner of so many threads."""
    learner = ("--threads", str(threads))
    counts = tuple(4**power for power in range(9))
    sizes = (4, 16, 64, 256, 1024, 4096)
    all_curves = (
        Curve(
            "envs",
            "Environments",
            "envs",
            "CartPole-v1, in-process, 128 steps an iteration (fewer above 8,192 envs)",
            tuple(
                Point(n, ("--num-envs", str(n), "--num-steps", str(_steps(n)), *learner), _cartpole())
                for n in counts
            ),
        ),
        Curve(
            "workers",
            "Workers",
            "Ray workers (0: in-process)",
            "CartPole-v1, 4,096 envs in 8 groups, 128 steps",
            tuple(
                Point(n, ("--num-envs", "4096", "--groups", "8", "--workers", str(n), *learner), _cartpole())
                for n in (0, 1, 2, 4, 8)
            ),
        ),
        Curve(
            "width",
            "Net width",
            "units in each of two hidden layers",
            "CartPole-v1, in-process, 64 envs x 64 steps",
            tuple(
                Point(
                    n,
                    ("--num-envs", "64", "--num-steps", "64", "--hidden-sizes", f"{n},{n}", *learner),
                    _cartpole(n),
                )
                for n in (32, 64, 128, 256, 512, 1024)
            ),
        ),
        Curve(
            "episode",
            "Episode length",
            "steps until an episode is cut",
            "4 observed numbers, in-process, 1,024 envs x 128 steps",
            tuple(
                Point(
                    n,
                    (
                        "--env",
                        "scaling_envs:SIZE_4",
                        "--num-envs",
                        "1024",
                        "--max-episode-steps",
                        str(n),
                        *learner,
                    ),
                    _cartpole(),
                )
                for n in (2, 8, 32, 128, 512, 2048)
            ),
        ),
        Curve(
            "observation",
            "Observation size",
            "observed numbers",
            "in-process, 256 envs x 64 steps, episodes of 500",
            tuple(
                Point(
                    n,
                    ("--env", f"scaling_envs:SIZE_{n}", "--num-envs", "256", "--num-steps", "64", *learner),
                    actor_critic(n, 2, (64, 64), epochs=4),
                )
                for n in sizes
            ),
        ),
    )
    return {curve.name: curve for curve in all_curves}


def measure_point(point: Point, seconds: float, repeats: int) -> dict[str, Any]:
    """Median and range of the rate, and every repeat; or the reason why there is none."""
    described: dict[str, Any] = {
        "x": point.x,
        "arguments": shlex.join(point.arguments),
        "flops_per_env_step": point.work.flops_per_step,
    }
    try:
        lines = [
            measure(Contestant("distrl", None, point.arguments), seconds, min(2.0, seconds / 2))
            for _ in range(repeats)
        ]
    except RuntimeError as error:
        return described | {"failed": str(error)}
    rates = [line["steps_per_sec"] for line in lines]
    return described | {
        "steps_per_sec": {"median": statistics.median(rates), "min": min(rates), "max": max(rates)},
        "repeats": [
            {key: line[key] for key in ("env_steps", "seconds", "cpu_seconds", "load_average_before")}
            for line in lines
        ],
        "settings": lines[0]["settings"],
    }


def load_record(path: Path, cpu: str) -> dict[str, Any]:
    """What is there of earlier runs on this CPU."""
    if path.exists():
        record: dict[str, Any] = json.loads(path.read_text())
        if record.get("schema") == SCHEMA and record["machine"]["cpu"] == cpu:
            return record
    return {"schema": SCHEMA, "curves": {}}


def with_limit(points: list[dict[str, Any]], gflops: float) -> list[dict[str, Any]]:
    """The points that were measured, in order, each with what the matrix rate would allow and the share reached."""
    whole = sorted((one for one in points if "steps_per_sec" in one), key=lambda one: one["x"])
    for one in whole:
        one["limit_steps_per_sec"] = round(gflops * 1e9 / one["flops_per_env_step"])
        one["share_of_limit"] = round(one["steps_per_sec"]["median"] / one["limit_steps_per_sec"], 4)
    return whole


def draw(record: dict[str, Any], out: Path) -> None:
    """One page: a panel for each curve, the limit above it."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    from distrl.show.style import AMBER, BLUE, SOFT, page

    gflops = record["limit"]["best_gflops"]
    plans = curves(record["threads"])
    machine = record["machine"]
    subtitle = (
        f"PPO, separate 64x64 tanh networks, 4 epochs, 4 minibatches · {machine['cores']} cores, {machine['cpu']} · "
        f"{gflops:,.0f} GFLOP/s"
    )
    caption = (
        "Each point is a training of its own: median and range of env steps a second, collection, advantages, update, "
        "metrics and checkpoints inside. The limit counts the multiplications by weights alone, at the rate of a "
        "1024x1024 float32 matrix product on all cores: everything else would have to be free. A point beyond it: "
        "products that fit a cache can be faster than that one, and the machine's clock drifts by some percent."
    )
    with page(out, "Env steps a second as the work grows", subtitle, caption, (13.0, 7.2)) as figure:
        panels = figure.subplots(2, 3).ravel()
        for axes, (name, plan) in zip(panels, plans.items()):
            points = with_limit(record["curves"].get(name, []), gflops)
            axes.set_title(plan.title)
            if not points:  # a logarithmic axis wants something on it
                axes.text(0.5, 0.5, "not measured", ha="center", color=SOFT, transform=axes.transAxes)
                continue
            xs = [one["x"] for one in points]
            rates = [one["steps_per_sec"] for one in points]
            axes.plot(xs, [one["limit_steps_per_sec"] for one in points], "--", color=AMBER, label="limit")
            axes.plot(xs, [rate["median"] for rate in rates], "o-", color=BLUE, markersize=4, label="distrl")
            axes.fill_between(
                xs,
                [rate["min"] for rate in rates],
                [rate["max"] for rate in rates],
                color=BLUE,
                alpha=0.18,
                lw=0,
            )
            axes.set_xlabel(f"{plan.label}\n{plan.fixed}", fontsize=8.5)
            axes.set_yscale("log")
            if name != "workers":
                axes.set_xscale("log", base=2)
            axes.set_xticks(xs, [f"{x // 1024}k" if x >= 1024 else str(x) for x in xs])
            axes.xaxis.minorticks_off()
            axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: short(y)))
            within_a_decade = axes.get_ylim()[1] < 10 * axes.get_ylim()[0]
            minor = FuncFormatter(lambda y, _: short(y)) if within_a_decade else NullFormatter()
            axes.yaxis.set_minor_formatter(minor)
        panels[0].set_ylabel("env steps / s")
        panels[3].set_ylabel("env steps / s")
        for axes in panels[:5]:
            if axes.lines:
                axes.legend(loc="best")
                break
        _draw_shares(panels[5], record, plans, gflops, SOFT)


def _draw_shares(
    axes: Any, record: dict[str, Any], plans: dict[str, Curve], gflops: float, color: str
) -> None:
    """The best share of the limit on each curve."""
    names, shares = [], []
    for name, plan in plans.items():
        points = with_limit(record["curves"].get(name, []), gflops)
        if points:
            best = max(points, key=lambda one: one["share_of_limit"])
            names.append(f"{plan.title}\n(at {best['x']:,})")
            shares.append(100 * best["share_of_limit"])
    axes.barh(names, shares, color=color, height=0.55)
    axes.invert_yaxis()
    axes.set_title("Best share of the limit")
    axes.set_xlabel("percent")


def short(value: float) -> str:
    """1,500 as 1.5k, 2,000,000 as 2M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def main() -> int:
    names = list(curves(1))
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="the measured window of a repeat")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="the learner's")
    parser.add_argument("--budget", type=float, metavar="MINUTES", help="begin no point after so long")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="CURVE")
    parser.add_argument("--points", type=int, help="only the first so many points of each curve")
    parser.add_argument("--again", action="store_true", help="measure points anew that are in the results")
    parser.add_argument("--draw-only", action="store_true")
    parser.add_argument(
        "--out", type=Path, default=HERE / "results" / "scaling.json", help="the page lies beside it"
    )
    options = parser.parse_args()
    if options.repeats < 1 or options.seconds <= 0:
        parser.error("--repeats must be 1 or more and --seconds positive")

    from distrl import machine

    # the envs of scaling_envs.py, for the runs' processes and their workers
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH"))))
    here = machine.machine()
    record = load_record(options.out, here["cpu"])
    if not options.draw_only:
        record |= {
            "command": shlex.join(["python", "benchmarks/scaling.py", *sys.argv[1:]]),
            "measured": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "machine": here,
            "versions": machine.versions(),
            "git_revision": machine.git_revision(),
            "load_average_at_start": os.getloadavg(),
            "threads": options.threads,
            "limit": sgemm(os.cpu_count() or 1),
        }
        measure_all(options, record)
    if not record["curves"]:
        print(f"nothing of this machine is in {options.out}: run without --draw-only", file=sys.stderr)
        return 1
    draw(record, options.out.with_suffix(".png"))
    failed = [one for points in record["curves"].values() for one in points if "failed" in one]
    return 1 if failed else 0


def measure_all(options: argparse.Namespace, record: dict[str, Any]) -> None:
    """Measures what is not there yet, point by point, the small ones of every curve first."""
    end = None if options.budget is None else time.monotonic() + 60 * options.budget
    plans = curves(options.threads)
    queue = [
        (name, point)
        for rank in range(max(len(plan.points) for plan in plans.values()))
        for name, plan in plans.items()
        if name in options.only and rank < min(len(plan.points), options.points or len(plan.points))
        for point in (plan.points[rank],)
    ]
    for name, point in queue:
        there = record["curves"].setdefault(name, [])
        same = [
            one for one in there if one["arguments"] == shlex.join(point.arguments) and "failed" not in one
        ]
        if same and not options.again:
            continue
        if end is not None and time.monotonic() > end:
            print("the time is over: the same command goes on")
            return
        measured = measure_point(point, options.seconds, options.repeats)
        record["curves"][name] = sorted(
            [one for one in there if one["x"] != point.x] + [measured], key=lambda one: one["x"]
        )
        said = measured.get("failed") or f"{measured['steps_per_sec']['median']:,.0f} steps/s"
        print(f"  {name:12s} {point.x:6,d}  {said}", flush=True)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
