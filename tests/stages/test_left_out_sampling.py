"""What a model's folder asks of sampling is not followed, and said at once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from distrl.rlhf.sampling import left_out
from tests.stages.conftest import command, ppo_flags

ASKED = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20, "repetition_penalty": 1.05}


def test_a_run_says_what_it_leaves_out_of_the_models_sampling_and_a_dry_run_too(
    workplace: Path, tmp_path: Path
) -> None:
    shutil.copytree(workplace / "gpt2", workplace / "picky")
    path = workplace / "picky" / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | ASKED))
    said = (
        "asks for temperature 0.6, top_k 20, top_p 0.9, repetition_penalty 1.05; left out: the policy that is trained "
        "is the one that is sampled, the whole vocabulary at --temperature 1"
    )
    flags = ppo_flags(tmp_path / "run", "--model", "picky", "--iterations", "1")
    assert said in command(workplace, *flags, "--dry-run").stdout
    assert not (tmp_path / "run").exists()
    assert said in " ".join(command(workplace, *flags).stderr.split())  # it is wrapped
    assert "left out" not in command(workplace, *ppo_flags(tmp_path / "other"), "--dry-run").stdout


@pytest.mark.parametrize(
    ("asked", "temperature", "left"),
    [
        ({}, 1.0, ""),
        ({"temperature": 0.7, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0, "min_p": None}, 0.7, ""),
        ({"temperature": 0.7}, 1.0, "temperature 0.7"),
        ({"suppress_tokens": [5], "max_length": 20, "eos_token_id": 2}, 1.0, "suppress_tokens [5]"),
    ],
)
def test_only_what_would_change_the_distribution_is_named(
    asked: dict[str, object], temperature: float, left: str
) -> None:
    told = left_out(asked, temperature)
    assert (told is None) if not left else (told is not None and f"asks for {left}; left out" in told)
