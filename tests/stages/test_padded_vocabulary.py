"""An actor with more rows than its tokenizer has ids, beside a reference without those."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rlhf.conftest import VOCABULARY, make_model, train_tokenizer
from tests.stages.conftest import command, ppo_flags, records


def test_an_actor_with_padding_rows_trains_beside_a_reference_without(
    workplace: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "padded"
    make_model("gpt2", vocabulary=VOCABULARY + 200).save_pretrained(folder)
    train_tokenizer().save_pretrained(folder)
    flags = ("--model", str(folder), "--reference", "gpt2", "--iterations", "1", "--exact-ratio")
    command(
        workplace,
        *ppo_flags(tmp_path / "run", *flags, "--eval-prompts", "prompts.jsonl", "--eval-every", "1"),
    )
    line = records(tmp_path / "run")[0]
    assert line["first_ratio_deviation"] == 0.0
    assert line["kl"] == pytest.approx(line["kl"]) and line["eval/kl_mean"] is not None
