"""A run goes on from any folder, and its model has the dtype and the vocabulary that its start has."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.rlhf.conftest import VOCABULARY, make_model, train_tokenizer
from tests.stages.conftest import command, ppo_flags, records, summary
from tests.stages.test_supervised_runs import flags


@pytest.fixture(autouse=True)
def imports(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Modules and the places where they are found, put back."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    yield


@pytest.fixture
def place(workplace: Path, tmp_path: Path) -> Path:
    """A copy of the workplace that may be moved."""
    shutil.copytree(workplace, tmp_path / "place", ignore=shutil.ignore_patterns("*run*"))
    return tmp_path / "place"


def test_config_json_holds_absolute_paths_and_resume_and_eval_work_from_any_folder(
    place: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    run = place / "run"
    more = ("--learning-rate-schedule", "constant")
    command(place, *ppo_flags(Path("run"), "--iterations", "1", *more))
    config = json.loads((run / "config.json").read_text())
    assert config["model"] == str(place / "gpt2") and config["prompts"] == str(place / "prompts.jsonl")
    assert config["run_dir"] == str(run) and config["started_in"] == str(place)
    command(elsewhere, "rlhf", "ppo", "--resume", str(run), "--iterations", "2")
    told = json.loads(command(elsewhere, "rlhf", "eval", str(run), "--json").stdout)
    assert np.isfinite(told["score_mean"])
    command(elsewhere, "rlhf", "ppo", "--resume", str(run), "--model", str(place / "gpt2"))
    whole = place / "whole"
    command(place, *ppo_flags(whole, "--iterations", "2", *more))
    assert summary(run)["parameters_sha256"] == summary(whole)["parameters_sha256"]


def test_a_moved_folder_is_named_with_its_flag_and_its_new_place_is_taken(place: Path) -> None:
    run = place / "run"
    command(place, *ppo_flags(run, "--iterations", "1"))
    (place / "gpt2").rename(place / "moved")
    told = command(place, "rlhf", "ppo", "--resume", str(run), "--iterations", "2", status=2).stderr
    assert f"--model: {place / 'gpt2'}" in told and "--model PATH" in told
    command(place, "rlhf", "ppo", "--resume", str(run), "--iterations", "2", "--model", "moved")
    assert summary(run)["iterations"] == 2
    assert json.loads((run / "config.json").read_text())["model"] == str(place / "moved")
    make_model("gpt2", seed=5).save_pretrained(place / "moved")
    told = command(place, "rlhf", "ppo", "--resume", str(run), "--iterations", "3", status=2).stderr
    assert "started with other data or models" in told


def test_a_run_of_before_with_relative_paths_goes_on_from_the_folder_it_was_started_in(place: Path) -> None:
    run = place / "run"
    command(place, *ppo_flags(run, "--iterations", "1"))
    config = json.loads((run / "config.json").read_text())
    del config["started_in"]
    config |= {"model": "gpt2", "prompts": "prompts.jsonl", "run_dir": "run"}
    (run / "config.json").write_text(json.dumps(config))
    command(place, "rlhf", "ppo", "--resume", "run", "--iterations", "2")
    assert summary(run)["iterations"] == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_model_is_saved_in_the_dtype_of_its_folder_and_that_is_said(
    dtype: torch.dtype, workplace: Path, tmp_path: Path
) -> None:
    folder, run = tmp_path / "half", tmp_path / "run"
    make_model("gpt2").to(dtype).save_pretrained(folder)
    train_tokenizer().save_pretrained(folder)
    asked = flags("sft", "sft.jsonl", run)
    asked[asked.index("gpt2")] = str(folder)
    command(workplace, *asked)
    saved = load_file(run / "model" / "model.safetensors")
    assert {one.dtype for one in saved.values()} == {dtype}
    name = str(dtype).removeprefix("torch.")
    assert json.loads((run / "model" / "config.json").read_text())["dtype"] == name
    said = [one for one in summary(run)["warnings"] if "saved in" in one]
    assert len(said) == (dtype != torch.float32) and all(name in one for one in said)
    assert records(run)[-1]["loss"] < records(run)[0]["loss"]


def test_sft_gives_no_probability_to_rows_beyond_the_tokenizer(workplace: Path, tmp_path: Path) -> None:
    """A row whose logit is the highest of all changes no loss."""
    folder, run = tmp_path / "padded", tmp_path / "run"
    model = make_model("gpt2", vocabulary=VOCABULARY + 8)
    model.save_pretrained(folder)
    train_tokenizer().save_pretrained(folder)
    asked = flags("sft", "sft.jsonl", run)
    asked[asked.index("gpt2")] = str(folder)
    command(workplace, *asked)
    with torch.no_grad():
        model.transformer.wte.weight[VOCABULARY:] *= 100
    model.save_pretrained(folder)
    asked[asked.index(str(run))] = str(tmp_path / "other")
    command(workplace, *asked)
    losses = [[line["loss"] for line in records(one)] for one in (run, tmp_path / "other")]
    assert losses[0] == losses[1]
