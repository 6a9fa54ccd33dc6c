"""What was trained is saved before what may fail; texts that do not fit a model are refused before anything starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distrl.rlhf.rewards import read_reward
from distrl.rlhf.training import Trainer
from distrl.stages import supervised
from distrl.stages.evaluation import Evaluator
from tests.stages.conftest import command, ppo_flags, records, summary, write_lines
from tests.stages.test_supervised_runs import flags

LONG = "say it again " * 30  # 95 tokens or so, of the 128 that these models read


def test_a_reward_model_is_saved_before_its_scores_are_normalised(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"

    def fails(*given: Any, **more: Any) -> Any:
        raise IndexError("index 128 is out of bounds")

    monkeypatch.setattr(supervised, "reference_samples", fails)
    ended = command(workplace, *flags("reward", "pairs.jsonl", run), status=1)
    assert "Traceback" not in ended.stderr
    assert "scores could not be normalized: IndexError: index 128" in ended.stderr
    assert str(run / "model") in ended.stderr and "--no-normalize" in ended.stderr
    assert read_reward(run / "model").scale.num_samples == 0
    assert summary(run)["exit_reason"].startswith("failed: the scores could not be normalized")
    before = (run / "model" / "model.safetensors").read_bytes()
    steps = len(records(run))
    command(workplace, "rlhf", "reward", "--resume", str(run), status=1)
    command(workplace, "rlhf", "reward", "--resume", str(run), "--no-normalize")
    assert summary(run)["exit_reason"] == "finished" and len(records(run)) == steps
    assert (run / "model" / "model.safetensors").read_bytes() == before


def test_a_last_evaluation_that_fails_leaves_the_model(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, own = tmp_path / "run", Trainer.evaluate

    def fails(trainer: Trainer) -> dict[str, float]:
        if trainer.finished:
            raise MemoryError("no room")
        return own(trainer)

    monkeypatch.setattr(Trainer, "evaluate", fails)
    ended = command(workplace, *flags("sft", "sft.jsonl", run), status=1)
    assert "held-out rows could not be evaluated: MemoryError: no room" in ended.stderr
    assert (run / "model" / "model.safetensors").is_file()
    command(workplace, "rlhf", "sft", "--resume", str(run))
    assert summary(run)["exit_reason"] == "finished"


@pytest.mark.parametrize("at", [1, 3])
def test_an_evaluation_of_ppo_that_fails_loses_no_iteration(
    at: int, workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, told = tmp_path / "run", iter(range(1, 10))
    own = Evaluator.evaluate

    def fails(evaluator: Evaluator, parts: Any) -> Any:
        if next(told) == at:
            raise ZeroDivisionError("division by zero")
        return own(evaluator, parts)

    monkeypatch.setattr(Evaluator, "evaluate", fails)
    more = ("--eval-prompts", "prompts.jsonl", "--eval-every", "1", "--checkpoint-every", "50")
    ended = command(workplace, *ppo_flags(run, *more), status=1)
    assert f"the evaluation of iteration {at} failed: ZeroDivisionError" in ended.stderr
    assert len(records(run)) == at and "Traceback" not in ended.stderr
    assert (run / "model" / "model.safetensors").is_file() == (at == 3)
    command(workplace, "rlhf", "ppo", "--resume", str(run))
    assert [line["iteration"] for line in records(run)] == [1, 2, 3]
    assert summary(run)["exit_reason"] == "finished"


def test_a_model_that_cannot_be_saved_is_one_line_and_resume_saves_it(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import SafetensorError

    run, own = tmp_path / "run", supervised.save

    def full(*given: Any) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(supervised, "save", full)
    ended = command(workplace, *flags("sft", "sft.jsonl", run), status=1)
    assert "the model was not saved" in ended.stderr and "No space left" in ended.stderr
    assert "Traceback" not in ended.stderr and not (run / "model").exists()
    monkeypatch.setattr(supervised, "save", own)
    command(workplace, "rlhf", "sft", "--resume", str(run))
    assert (run / "model" / "model.safetensors").is_file()


@pytest.fixture(scope="module")
def near(workplace: Path) -> Path:
    """Files whose second line is near the context limit."""
    short, long = "the cat", LONG
    write_lines(workplace / "near-prompts.jsonl", [{"prompt": short}, {"prompt": long}])
    pairs = [{"prompt": text, "chosen": " sat", "rejected": " ran"} for text in (short, long)]
    write_lines(workplace / "near-pairs.jsonl", pairs)
    rows = [{"prompt": text, "completion": " sat" * 60} for text in (short, long)]
    write_lines(workplace / "near-sft.jsonl", rows)
    return workplace


def test_each_stage_names_the_longest_text_the_sum_and_the_flag(near: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    told = command(near, *flags("sft", "near-sft.jsonl", run), status=2).stderr
    assert (
        "near-sft.jsonl:2 has" in told and "reads 128" in told and "--max-tokens 128 --too-long drop" in told
    )
    told = command(near, *flags("reward", "near-pairs.jsonl", run), status=2).stderr
    assert "near-pairs.jsonl:2 has" in told and "+ --max-response 64 =" in told and "--no-normalize" in told
    asked = ppo_flags(run, "--prompts", "near-prompts.jsonl", "--max-response", "64")
    told = command(near, *asked, status=2).stderr
    assert "--model: near-prompts.jsonl:2 has" in told and "use --max-response" in told
    asked = ["rlhf", "eval", "gpt2", "--prompts", "near-prompts.jsonl", "--max-response", "64"]
    assert "near-prompts.jsonl:2 has" in command(near, *asked, status=2).stderr
    assert not run.exists()


def test_a_reward_model_that_reads_less_than_the_policy_is_named_by_its_flag(
    near: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    from distrl.rlhf.models import ModelParts, scalar_from
    from distrl.rlhf.rewards import ScoreScale, save_reward
    from distrl.rlhf.tokenizers import read_tokenizer
    from tests.rlhf.conftest import family_config

    config = family_config("gpt2")
    config.n_positions = 16
    small = scalar_from(ModelParts.of(AutoModelForCausalLM.from_config(config), "causal"))
    save_reward(small, ScoreScale(), tmp_path / "small", read_tokenizer(near / "gpt2"))
    asked = ppo_flags(tmp_path / "run", "--reward", str(tmp_path / "small"), "--max-response", "14")
    told = command(near, *asked, status=2).stderr
    assert "--reward: prompts.jsonl:" in told and "the model reads 16" in told


def test_rows_keep_their_lines_when_some_are_left_out_or_held_out(tmp_path: Path, workplace: Path) -> None:
    from distrl.rlhf.data import read_prompts
    from distrl.rlhf.tokenizers import read_tokenizer

    tokenizer = read_tokenizer(workplace / "gpt2")

    path = tmp_path / "p.jsonl"
    rows = ["", *(json.dumps({"prompt": text}) for text in ("a", "b", "c")), "{", json.dumps({"prompt": "d"})]
    path.write_text("\n".join(rows))
    found = read_prompts(path, tokenizer, skip_bad=True)
    assert found.where == tuple(f"{path}:{line}" for line in (2, 3, 4, 6))
    kept, held = found.split(0.25, 0)
    both = {**dict(zip(kept.where, kept.rows, strict=True)), **dict(zip(held.where, held.rows, strict=True))}
    assert {where: row.text for where, row in both.items()} == {
        where: row.text for where, row in zip(found.where, found.rows, strict=True)
    }
