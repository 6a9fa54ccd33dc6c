"""All stages one after another by the command line, each from the folder of the one before, for families beside GPT-2."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from distrl.show.style import read_numbers
from tests.rlhf.conftest import make_model, train_tokenizer
from tests.stages.conftest import command, records, summary

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt_neox", "gemma2"])
def test_a_family_goes_through_all_stages(family: str, workplace: Path, tmp_path: Path) -> None:
    folder = tmp_path / family
    make_model(family).save_pretrained(folder)
    train_tokenizer().save_pretrained(folder)
    plain = ("--batch-size", "8", "--epochs", "2", "--learning-rate", "5e-3", "--no-tensorboard")
    runs = {name: tmp_path / name for name in ("sft", "reward", "ppo")}

    command(workplace, "rlhf", "sft", "--model", str(folder), "--data", "sft.jsonl", *plain, "--run-dir", str(runs["sft"]))  # fmt: skip
    losses = [line["loss"] for line in records(runs["sft"])]
    assert losses[-1] < losses[0]

    sft = runs["sft"] / "model"
    command(workplace, "rlhf", "reward", "--model", str(sft), "--data", "pairs.jsonl", *plain, "--run-dir", str(runs["reward"]))  # fmt: skip
    losses = [line["loss"] for line in records(runs["reward"])]
    assert losses[0] == pytest.approx(math.log(2), abs=0.3) and losses[-1] < losses[0]

    reward = runs["reward"] / "model"
    asked = ("doctor", "--model", str(sft), "--data", "prompts.jsonl", "--reward", str(reward))
    assert "fail" not in command(workplace, *asked).stdout
    command(
        workplace, "rlhf", "ppo", "--model", str(sft), "--reward", str(reward), "--prompts", "prompts.jsonl",
        "--num-prompts", "8", "--iterations", "2", "--max-response", "6", "--learning-rate", "1e-3", "--no-tensorboard",
        "--run-dir", str(runs["ppo"]),
    )  # fmt: skip
    first, last = records(runs["ppo"])
    assert first["kl"] == pytest.approx(0.0, abs=1e-4)
    assert all(line["first_ratio_deviation"] < 1e-5 for line in (first, last))
    assert summary(runs["ppo"])["exit_reason"] == "finished"
    before, after = (load_file(one / "model.safetensors") for one in (sft, runs["ppo"] / "model"))
    assert before.keys() == after.keys()
    assert json.loads((runs["ppo"] / "model" / "config.json").read_text())["model_type"] == family
    assert any((before[name] != after[name]).any() for name in before)

    told = json.loads(command(workplace, "rlhf", "eval", str(runs["ppo"]), "--json").stdout)
    assert (
        np.isfinite([told["score_mean"], told["kl_mean"]]).all() and told["kl_mean"] != 0
    )  # a k1 of greedy text

    command(workplace, "show", "tokens", str(runs["ppo"]), "--out", str(tmp_path / "tokens.png"))
    numbers = read_numbers(tmp_path / "tokens.png")
    for one in numbers["episodes"]:
        assert sum(one["reward"]) == pytest.approx(one["score"] - numbers["beta"] * sum(one["kl"]), abs=1e-5)
