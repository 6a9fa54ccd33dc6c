"""samples.jsonl, and the report and wandb's table made of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distrl.telemetry.samples import shown_samples
from distrl.telemetry.sinks import open_sinks
from distrl.telemetry.sinks.samples import append_samples
from tests.telemetry.test_wandb import end_of_process, history, wandb_home  # noqa: F401


def sample(iteration: int, number: int = 0, **more: Any) -> dict[str, Any]:
    return {
        "schema": 1, "iteration": iteration, "number": number, "prompt": "2+2=", "response": f"r{iteration} 你好 <b>$",
        "score": 0.5, "scores": {"f": 0.5, "g": None}, "kl": 1.25, "tokens": 3, "ended": True, **more,
    }  # fmt: skip


def test_the_report_shows_the_first_the_middle_and_the_last_of_each_prompt(tmp_path: Path) -> None:
    for iteration in (1, 10, 20, 30, 40):
        append_samples(tmp_path / "samples.jsonl", [sample(iteration), sample(iteration, 1, score=None)])
    first, second = shown_samples(tmp_path)
    assert [one.iteration for one in first.responses] == [1, 20, 40]
    assert first.responses[0].response == "r1 你好 <b>$"
    assert first.responses[0].facts == "score 0.500 · f 0.500 · KL 1.25 nats · 3 tokens"
    assert second.responses[0].facts.startswith("no score")
    assert shown_samples(tmp_path / "none") == []


def test_a_resume_cuts_samples_back_to_its_checkpoint(tmp_path: Path) -> None:
    append_samples(tmp_path / "samples.jsonl", [sample(1), sample(2, 0), sample(2, 1), sample(3)])
    with (tmp_path / "samples.jsonl").open("ab") as file:
        file.write(b'{"iteration": 4, "torn')
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps({"iteration": n}) + "\n" for n in (1, 2, 3)))
    open_sinks(tmp_path, resume_iteration=2, tensorboard=False).close()
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [(row["iteration"], row["number"]) for row in rows] == [(1, 0), (2, 0), (2, 1)]


@pytest.mark.timeout(120)
def test_wandb_has_them_as_a_table_beside_the_record(
    wandb_home: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    with open_sinks(wandb_home, wandb=True, tensorboard=False) as sinks:
        sinks.write_samples([sample(1), sample(1, 1)])
        sinks.write({"iteration": 1, "score_mean": 0.5})
    end_of_process()
    (path,) = (wandb_home / "wandb").glob("offline-run-*/*.wandb")
    (row,) = history(path)
    assert (row["score_mean"], row["samples/_type"], row["samples/nrows"]) == (0.5, "table-file", 2)
    (table,) = (wandb_home / "wandb").glob("offline-run-*/files/media/table/samples*.json")
    told = json.loads(table.read_text())
    assert told["columns"] == ["iteration", "prompt", "response", "score", "f", "g", "kl", "tokens", "ended"]
    assert told["data"][0] == [1, "2+2=", "r1 你好 <b>$", 0.5, 0.5, None, 1.25, 3, True]
