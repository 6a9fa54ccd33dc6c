"""Run directories of before a field was there: read, resumed and evaluated with what such a run did."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from distrl.fields import Schema
from distrl.resolve import CONFIG_FILE, read_config_as
from distrl.stages.ppo_config import PPO
from distrl.stages.supervised_config import REWARD, SFT
from tests.stages.conftest import ROOT, command, ppo_flags, records, summary

CONFIGS = (
    ROOT / "tests" / "assets" / "configs"
)  # as they were written before `Schema.before` had its first field
DID = {
    "chat_kwargs": {}, "tools": None, "system_prompt": None, "field": {}, "save_adapter": False, "turns": "last",
    "reward_concurrency": 1, "sample_every": 0, "print_samples": False,
}  # fmt: skip


@pytest.mark.parametrize(("stage", "schema"), [("sft", SFT), ("reward", REWARD), ("ppo", PPO)])
def test_an_older_config_is_read_with_what_its_run_did(stage: str, schema: Schema[Any]) -> None:
    path = CONFIGS / f"{stage}.json"
    config = read_config_as(schema, path).config
    new = {*schema.fields} - {*json.loads(path.read_text())}
    assert new == {*schema.before}
    assert all(getattr(config, name) == DID[name] for name in new & {*DID})


def as_older(run_dir: Path, schema: Schema[Any], stage: str) -> None:
    """The run's config.json as it would have been written, and its last checkpoint gone."""
    path = run_dir / CONFIG_FILE
    known = {*json.loads((CONFIGS / f"{stage}.json").read_text())}
    kept = {name: value for name, value in json.loads(path.read_text()).items() if name in known}
    path.write_text(json.dumps(kept))
    shutil.rmtree(max((run_dir / "checkpoints").iterdir()))


@pytest.mark.parametrize(
    ("stage", "schema", "data"), [("sft", SFT, "sft.jsonl"), ("reward", REWARD, "pairs.jsonl")]
)
def test_an_older_supervised_run_goes_on_to_the_same_end(
    workplace: Path, tmp_path: Path, stage: str, schema: Schema[Any], data: str
) -> None:
    run = tmp_path / "run"
    flags = ("--batch-size", "4", "--checkpoint-every", "1", "--no-tensorboard", "--run-dir", str(run))
    flags += ("--max-response", "4") if stage == "reward" else ()
    command(workplace, "rlhf", stage, "--model", "gpt2", "--data", data, *flags)
    lines, digest = records(run), summary(run)["parameters_sha256"]
    as_older(run, schema, stage)
    command(workplace, "rlhf", stage, "--resume", str(run))
    assert records(run) == lines and summary(run)["parameters_sha256"] == digest
    asked = ("--prompts", "prompts.jsonl", "--max-response", "2")
    which = ("gpt2", "--reward", str(run / "model")) if stage == "reward" else (str(run),)
    command(workplace, "rlhf", "eval", *which, *asked)


def test_an_older_ppo_run_goes_on_without_samples_and_is_evaluated(workplace: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command(workplace, *ppo_flags(run, "--sample-every", "0"))
    lines, digest = records(run), summary(run)["parameters_sha256"]
    as_older(run, PPO, "ppo")
    command(workplace, "rlhf", "ppo", "--resume", str(run))
    assert records(run) == lines and summary(run)["parameters_sha256"] == digest
    assert not (run / "samples.jsonl").exists()
    command(workplace, "rlhf", "eval", str(run), "--max-response", "2")
