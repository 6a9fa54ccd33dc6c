"""config.json's paths: absolute, whatever was typed; modules are found where the run found them."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from distrl.config import TRAIN
from distrl.places import FOLDER, absolute, import_from
from distrl.resolve import read_config, resolve, write_config


def test_train_keeps_absolute_paths_and_the_folder_of_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path / "config.json", resolve({"run_dir": "runs/one", "init_from": "../other"}))
    kept = json.loads((tmp_path / "config.json").read_text())
    assert kept["run_dir"] == str(tmp_path / "runs" / "one")
    assert kept["init_from"] == str(tmp_path.parent / "other") and kept[FOLDER] == str(tmp_path)
    found = read_config(tmp_path / "config.json")
    assert found.folder == str(tmp_path)
    monkeypatch.chdir("/")
    write_config(tmp_path / "config.json", found)
    assert json.loads((tmp_path / "config.json").read_text())[FOLDER] == str(tmp_path)


def test_a_file_of_code_is_absolute_and_a_module_stays_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute(TRAIN, "wrapper", "mine.py:wrap") == f"{tmp_path / 'mine.py'}:wrap"
    assert absolute(TRAIN, "wrapper", "package.mine:wrap") == "package.mine:wrap"
    assert absolute(TRAIN, "env", "CartPole-v1") == "CartPole-v1"
    assert absolute(TRAIN, "wandb_project", "distrl") == "distrl"


def test_modules_are_found_in_the_folder_of_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("PYTHONPATH", "")
    (tmp_path / "config.json").write_text(json.dumps({FOLDER: str(tmp_path)}))
    for _ in range(2):
        import_from(tmp_path / "config.json")
    assert sys.path[0] == str(tmp_path) and sys.path.count(str(tmp_path)) == 1
    assert os.environ["PYTHONPATH"] == str(tmp_path)
    (tmp_path / "config.json").write_text("{")
    import_from(tmp_path / "config.json")
    import_from(tmp_path / "run.toml")
