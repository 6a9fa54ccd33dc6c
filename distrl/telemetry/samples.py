"""What a policy wrote to the same prompts over a run, as a report shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distrl.telemetry.sinks.jsonl import read_jsonl
from distrl.telemetry.sinks.samples import SAMPLES_FILE

MOST_CHARACTERS = 1200  # of a text in the report; the file has all of it


@dataclass(frozen=True)
class Shown:
    """A response in the report."""

    iteration: int
    response: str
    facts: str


@dataclass(frozen=True)
class PromptShown:
    """A prompt with its responses, side by side."""

    prompt: str
    responses: Sequence[Shown]


def shown_samples(run_dir: Path) -> list[PromptShown]:
    """Each prompt with the first, the middle and the last of its samples; empty where a run has none."""
    path = run_dir / SAMPLES_FILE
    rows = read_jsonl(path) if path.exists() else []
    by_prompt: dict[int, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_prompt.setdefault(int(row["number"]), []).append(row)
    found = []
    for _, some in sorted(by_prompt.items()):
        places = sorted({0, len(some) // 2 if len(some) > 2 else 0, len(some) - 1})
        shown = [
            Shown(int(one["iteration"]), _cut(str(one["response"])), _facts(one))
            for one in map(some.__getitem__, places)
        ]
        found.append(PromptShown(_cut(str(some[0]["prompt"]), from_the_end=True), shown))
    return found


def _facts(row: Mapping[str, Any]) -> str:
    score = "no score" if row["score"] is None else f"score {row['score']:.3f}"
    scores = row.get("scores") or {}
    several = [f"{name} {value:.3f}" for name, value in scores.items() if value is not None]
    parts = [
        score,
        *(several if len(scores) > 1 else []),
        f"KL {row['kl']:.2f} nats",
        f"{row['tokens']} tokens",
    ]
    return " · ".join(parts + ([] if row["ended"] else ["cut by the limit"]))


def _cut(text: str, from_the_end: bool = False) -> str:
    if len(text) <= MOST_CHARACTERS:
        return text
    return f"…{text[-MOST_CHARACTERS:]}" if from_the_end else f"{text[:MOST_CHARACTERS]}…"
