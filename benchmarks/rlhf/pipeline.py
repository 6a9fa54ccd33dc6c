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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.rlhf.settings import TINY, Settings
from benchmarks.rlhf.together import together

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
DONE = "done.json"


@dataclass(frozen=True)
class Stage:
    """Work of its own folder: `function(folder, settings, *inputs, say)`, again where one of these fields is another."""

    name: str
    fields: tuple[str, ...]
    function: Callable[..., None]
    inputs: tuple[Any, ...] = ()


@dataclass
class Run:
    """Folders of the stages below one, and what each took."""

    root: Path
    settings: Settings
    took: dict[str, dict[str, float]] = field(default_factory=dict)

    def stage(self, name: str, fields: tuple[str, ...], function: Callable[..., None], *inputs: Path) -> Path:
        """The folder of a stage, made now unless it is there."""
        return self.stages([Stage(name, fields, function, inputs)])[0]

    def stages(self, some: Sequence[Stage]) -> list[Path]:
        """As `stage`, for several of which none needs another: as many at once as there are threads."""
        folders = [self.root / f"{one.name}-{self.settings.key(*one.fields)}" for one in some]
        missing = [
            (folder, one, self.settings)
            for folder, one in zip(folders, some, strict=True)
            if not (folder / DONE).is_file()
        ]
        list(together(_make, missing, self.settings.threads))
        for folder, one in zip(folders, some, strict=True):
            self.took[one.name] = json.loads((folder / DONE).read_text())
        return folders


def _make(job: tuple[Path, Stage, Settings]) -> None:
    folder, stage, settings = job
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    wall, cpu = time.monotonic(), _cpu_seconds()

    def say(text: str) -> None:
        print(f"{stage.name:>10} {time.monotonic() - wall:6.1f} s  {text}", file=sys.stderr, flush=True)

    say("begins")
    stage.function(folder, settings, *stage.inputs, say)
    took = {"wall_sec": time.monotonic() - wall, "cpu_sec": _cpu_seconds() - cpu}
    (folder / DONE).write_text(json.dumps(took) + "\n")


@dataclass(frozen=True)
class Folders:
    """Where each stage's work lies; `ppo` by beta."""

    language: Path
    sft: Path
    pairs: Path
    reward: Path
    best_of_n: Path
    ppo: dict[float, Path]

    def every(self) -> list[Path]:
        """All of them."""
        return [self.language, self.sft, self.pairs, self.reward, self.best_of_n, *self.ppo.values()]


def run(root: Path, settings: Settings) -> tuple[Folders, dict[str, dict[str, float]]]:
    """All stages; returns their folders and how long each took when it was done."""
    from benchmarks.rlhf import stages

    work = Run(root, settings)
    language, sft, pairs = up_to_pairs(work)
    reward = work.stage("reward", REWARD, stages.reward, language, sft, pairs)
    inputs = language, sft, reward
    last = [Stage(f"ppo-{beta:g}", PPO, stages.ppo, (*inputs, beta)) for beta in settings.betas]
    *trained, control = work.stages([*last, Stage("best-of-n", BEST_OF_N, stages.best_of_n, inputs)])
    trained_by = dict(zip(settings.betas, trained, strict=True))
    return Folders(language, sft, pairs, reward, control, trained_by), work.took


def up_to_pairs(work: Run) -> tuple[Path, Path, Path]:
    """The stages that know nothing of noise or beta."""
    import torch

    from benchmarks.rlhf import stages

    torch.set_num_threads(work.settings.threads)
    language = work.stage("language", LANGUAGE, stages.language)
    sft = work.stage("sft", SFT, stages.sft, language)
    return language, sft, work.stage("pairs", PAIRS, stages.pairs, language, sft)


def _cpu_seconds() -> float:
    """Of this process and of those that it had and that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


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
    began, start = time.time(), time.monotonic()
    folders, took = run(folder, settings)

    from benchmarks.rlhf.report import best_run, write_report
    from benchmarks.rlhf.results import collect, write

    results = collect(settings, folders, took)
    anew = all((one / DONE).stat().st_mtime >= began for one in folders.every())
    # as a whole it was timed only if no stage was done before
    results["elapsed_sec"] = time.monotonic() - start if anew else None
    write(results, folder / "results.json")
    write_report(results, folder / "report.html")
    win = best_run(results)["win_rate"]
    print(
        f"win rate against SFT at beta {results['best_beta']:g}: {100 * win['mean']:.1f} % "
        f"({100 * win['low']:.1f} to {100 * win['high']:.1f}), {time.monotonic() - start:.0f} s; "
        f"{folder / 'report.html'}"
    )


if __name__ == "__main__":
    main()
