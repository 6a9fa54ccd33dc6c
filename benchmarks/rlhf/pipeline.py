"""The whole of RLHF offline: `make rlhf`, or

    python -m benchmarks.rlhf.pipeline --folder runs/rlhf --seed 1

writes results.json and report.html there; the committed ones are in benchmarks/results/rlhf/. A stage whose folder says
that it is done, from the same settings and the same stages before it, is not done again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.rlhf.settings import TINY, Settings

LANGUAGE = ("seed", "num_stories", "num_curve_prompts", "num_final_prompts", "num_prompts", "layers", "width")
SFT = (*LANGUAGE, "threads", "sft_epochs", "sft_rate", "sft_batch")
PAIRS = (*SFT, "max_response", "num_pairs", "label_temperature", "pairs_per_prompt")
REWARD = (*PAIRS, "noise", "pairs_used", "reward_epochs", "reward_rate", "reward_batch")
PPO = (
    *REWARD,
    "iterations",
    "batch",
    "ppo_rate",
    "critic_rate",
    "ppo_epochs",
    "minibatches",
    "evaluate_every",
)
BEST_OF_N = (*REWARD, "best_of")


@dataclass
class Run:
    """Folders of the stages below one, and what each took."""

    root: Path
    settings: Settings
    took: dict[str, dict[str, float]] = field(default_factory=dict)

    def stage(
        self, name: str, fields: tuple[str, ...], make: Callable[[Path, Callable[[str], None]], None]
    ) -> Path:
        """The folder of a stage that depends on these settings, made now unless it is there."""
        folder = self.root / f"{name}-{self.settings.key(*fields)}"
        done = folder / "done.json"
        if not done.is_file():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            wall, cpu = time.monotonic(), _cpu_seconds()

            def say(text: str) -> None:
                print(f"{name:>10} {time.monotonic() - wall:6.1f} s  {text}", file=sys.stderr, flush=True)

            say("begins")
            make(folder, say)
            took = {"wall_sec": time.monotonic() - wall, "cpu_sec": _cpu_seconds() - cpu}
            done.write_text(json.dumps(took) + "\n")
        self.took[name] = json.loads(done.read_text())
        return folder


@dataclass(frozen=True)
class Folders:
    """Where each stage's work lies; `ppo` by beta."""

    language: Path
    sft: Path
    pairs: Path
    reward: Path
    best_of_n: Path
    ppo: dict[float, Path]


def run(root: Path, settings: Settings) -> tuple[Folders, dict[str, dict[str, float]]]:
    """All stages; returns their folders and how long each took when it was done."""
    import torch

    from benchmarks.rlhf import stages

    torch.set_num_threads(settings.threads)
    work = Run(root, settings)
    language = work.stage("language", LANGUAGE, lambda to, say: stages.language(to, settings, say))
    sft = work.stage("sft", SFT, lambda to, say: stages.sft(to, settings, language, say))
    pairs = work.stage("pairs", PAIRS, lambda to, say: stages.pairs(to, settings, language, sft, say))
    reward = work.stage(
        "reward", REWARD, lambda to, say: stages.reward(to, settings, language, sft, pairs, say)
    )
    control = work.stage(
        "best-of-n", BEST_OF_N, lambda to, say: stages.best_of_n(to, settings, language, sft, reward, say)
    )
    trained = {}
    for beta in settings.betas:

        def make(to: Path, say: Callable[[str], None], beta: float = beta) -> None:
            stages.ppo(to, settings, language, sft, reward, beta, say)

        trained[beta] = work.stage(f"ppo-{beta:g}", PPO, make)
    return Folders(language, sft, pairs, reward, control, trained), work.took


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/rlhf"))
    parser.add_argument("--tiny", action="store_true", help="in seconds, to see that it runs")
    for one in dataclasses.fields(Settings):
        default: Any = one.default
        if isinstance(default, tuple):
            parser.add_argument(f"--{one.name}", type=float, nargs="+", default=None)
        else:
            parser.add_argument(f"--{one.name.replace('_', '-')}", type=type(default), default=None)
    options = vars(parser.parse_args())
    folder, tiny = options.pop("folder"), options.pop("tiny")
    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in options.items()
        if value is not None
    }
    settings = dataclasses.replace(TINY if tiny else Settings(), **given)
    folders, took = run(folder, settings)

    from benchmarks.rlhf.report import best_run, write_report
    from benchmarks.rlhf.results import collect, write

    results = collect(settings, folders, took)
    write(results, folder / "results.json")
    write_report(results, folder / "report.html")
    win = best_run(results)["win_rate"]
    print(
        f"win rate against SFT at beta {results['best_beta']:g}: {100 * win['mean']:.1f} % "
        f"({100 * win['low']:.1f} to {100 * win['high']:.1f}), {sum(one['wall_sec'] for one in took.values()):.0f} s; "
        f"{folder / 'report.html'}"
    )


if __name__ == "__main__":
    main()
