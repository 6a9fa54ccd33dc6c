"""What a model's folder may bring: no code that is run; ends of text wherever they are said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distrl.errors import BadInput
from distrl.rlhf.models import read_causal, read_config, read_scalar
from distrl.rlhf.tokenizers import read_tokenizer

CODE = "from pathlib import Path\nPath(__file__).with_name('was_run').touch()\n"


def changed(path: Path, **more: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | more))


@pytest.fixture
def with_code(gpt2_folder: Path, tmp_path: Path) -> Path:
    """A folder of a family that only the code beside it knows."""
    folder = tmp_path / "own"
    shutil.copytree(gpt2_folder, folder)
    (folder / "mine.py").write_text(CODE)
    changed(
        folder / "config.json",
        model_type="mine",
        auto_map={
            "AutoConfig": "mine.Config",
            "AutoModelForCausalLM": "mine.Model",
            "AutoModelForSequenceClassification": "mine.Model",
        },
    )
    changed(
        folder / "tokenizer_config.json",
        tokenizer_class="MineTokenizer",
        auto_map={"AutoTokenizer": ["mine.Tokenizer", None]},
    )
    return folder


@pytest.mark.parametrize("read", [read_causal, read_scalar, read_tokenizer])
def test_code_that_a_folder_brings_is_refused_by_name_and_nobody_is_asked(
    with_code: Path, read: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda told: pytest.fail("asked on standard input"))
    with pytest.raises(BadInput, match="code of its own, which is not run"):
        read(with_code)
    assert not (with_code / "was_run").exists()


def test_a_known_family_is_read_without_the_code_beside_it(with_code: Path) -> None:
    changed(with_code / "config.json", model_type="gpt2")
    assert read_causal(with_code).config.model_type == "gpt2"
    assert not (with_code / "was_run").exists()


def test_a_configuration_with_code_of_its_own_is_refused(with_code: Path, tokenizer: Any) -> None:
    with pytest.raises(BadInput, match="mine"):
        read_config(with_code / "config.json", tokenizer)
