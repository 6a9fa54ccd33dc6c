"""`import distrl` does what the commands of RLHF do, to the bit, with errors as exceptions."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import distrl
from tests.stages.conftest import command, records, same_parameters, summary

SMALL = {"num_prompts": 8, "iterations": 3, "max_response": 6, "checkpoint_every": 1, "tensorboard": False}
TRAINED = {"tensorboard": False, "epochs": 1, "batch_size": 8, "learning_rate": 1e-3}
FLAGS = ("--no-tensorboard", "--epochs", "1", "--batch-size", "8", "--learning-rate", "1e-3")


@pytest.fixture(autouse=True)
def in_the_workplace(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    monkeypatch.setattr(sys, "path", [*sys.path])  # to which the folder is added, as by the commands


def test_ppo_trains_what_the_command_trains_and_is_resumed_and_evaluated_like_it(
    undisturbed: Callable[..., Path], workplace: Path, tmp_path: Path
) -> None:
    outcome = distrl.rlhf_ppo(
        Path("gpt2"), Path("prompts.jsonl"), reward_function="my_reward:score", learning_rate=1e-3,
        learning_rate_schedule="constant", run_dir=tmp_path / "run", **SMALL | {"iterations": 2},
    )  # fmt: skip
    assert outcome.exit_status == 0 and outcome.run_dir == tmp_path / "run"
    outcome = distrl.resume(outcome.run_dir, iterations=3)
    by_command = undisturbed("--learning-rate-schedule", "constant")
    assert outcome.summary["digests"] == summary(by_command)["digests"]
    assert records(outcome.run_dir) == records(by_command)
    asked = {"sample": True, "samples": 2, "limit": 3, "max_response": 4, "seed": 7}
    told = distrl.rlhf_evaluate(outcome.run_dir, prompts=Path("prompts.jsonl"), checkpoint=2, **asked)
    flags = ("--sample", "--samples", "2", "--limit", "3", "--max-response", "4", "--seed", "7")
    flags = (*flags, "--prompts", "prompts.jsonl", "--checkpoint", "2", "--json")
    assert told == json.loads(command(workplace, "rlhf", "eval", str(outcome.run_dir), *flags).stdout)
    assert told["responses"] == 6 and told["checkpoint"] == 2


def test_sft_trains_what_the_command_trains(workplace: Path, tmp_path: Path) -> None:
    outcome = distrl.rlhf_sft("gpt2", "sft.jsonl", run_dir=tmp_path / "python", **TRAINED)
    flags = ("--model", "gpt2", "--data", "sft.jsonl", "--run-dir", str(tmp_path / "command"), *FLAGS)
    command(workplace, "rlhf", "sft", *flags)
    same_parameters(outcome.run_dir, tmp_path / "command")


def test_a_reward_model_is_what_the_command_trains_and_is_taken_by_ppo(
    workplace: Path, tmp_path: Path
) -> None:
    outcome = distrl.rlhf_reward("gpt2", "pairs.jsonl", run_dir=tmp_path / "python", **TRAINED)
    flags = ("--model", "gpt2", "--data", "pairs.jsonl", "--run-dir", str(tmp_path / "command"), *FLAGS)
    command(workplace, "rlhf", "reward", *flags)
    same_parameters(outcome.run_dir, tmp_path / "command")
    reward = outcome.run_dir / "model"
    for given in (reward, [reward]):
        trained = distrl.rlhf_ppo(
            "gpt2", "prompts.jsonl", reward=given, run_dir=tmp_path / type(given).__name__,
            **SMALL | {"iterations": 1},
        )  # fmt: skip
        assert trained.summary["last_metrics"]["episode_return_mean"] is not None
        told = distrl.rlhf_evaluate("gpt2", prompts="prompts.jsonl", reward=given, max_response=4)
        assert told["score_mean"] is not None


def test_a_toml_file_counts_below_what_is_given(workplace: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(
        'model = "gpt2"\nprompts = "nowhere.jsonl"\nreward_function = "my_reward:score"\nbeta = 0.3\n'
    )
    outcome = distrl.rlhf_ppo(
        prompts="prompts.jsonl", config=file, run_dir=tmp_path / "run", **SMALL | {"iterations": 1}
    )
    assert json.loads((outcome.run_dir / "config.json").read_text())["beta"] == 0.3


def test_all_that_is_wrong_comes_as_one_exception(tmp_path: Path) -> None:
    with pytest.raises(distrl.BadInput) as caught:
        distrl.rlhf_ppo("gpt2", learning_rat=1, iterations=0)
    assert len(caught.value.problems) == 4, caught.value.problems
    with pytest.raises(distrl.BadInput, match="--data: must be given"):
        distrl.rlhf_sft("gpt2")
    with pytest.raises(distrl.BadInput, match="--sampls: no such option .* did you mean samples"):
        distrl.rlhf_evaluate("gpt2", sampls=2)
    with pytest.raises(distrl.BadInput, match="greedy responses are all alike"):
        distrl.rlhf_evaluate("gpt2", samples=2)


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [("samples", 0, "1 or more"), ("batch", -1, "1 or more"), ("temperature", 0.0, "more than 0")],
)
def test_numbers_for_an_evaluation_have_the_commands_limits(name: str, value: float, rule: str) -> None:
    with pytest.raises(distrl.BadInput, match=f"--{name} must be {rule}, got {value}"):
        distrl.rlhf_evaluate("gpt2", prompts="prompts.jsonl", **{name: value})


def test_nothing_heavy_is_imported_before_a_function_is_called() -> None:
    code = (
        "import sys, distrl\n"
        "distrl.rlhf_sft, distrl.rlhf_reward, distrl.rlhf_ppo, distrl.rlhf_evaluate\n"
        "print([name for name in ('torch', 'transformers', 'ray', 'gymnasium') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
