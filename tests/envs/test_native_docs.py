"""docs/native_env.md is right: its code runs as it stands, and what it says of it is so."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "native_env.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "river.py").write_text(blocks("python")[0])
    return tmp_path


def test_the_env_is_about_thirty_lines() -> None:
    code = [line for line in blocks("python")[0].splitlines() if line.strip()]
    assert len(code) <= 32


def test_the_pages_command_trains_a_little_fused(folder: Path) -> None:
    (command,) = blocks("console")
    arguments = shlex.split(command)[1:]
    arguments[arguments.index("--total-steps") + 1] = "20000"
    run = folder / "run"
    subprocess.run(
        [sys.executable, "-m", "distrl", *arguments, "--run-dir", str(run), "--eval-episodes", "5"],
        cwd=folder, check=True, capture_output=True, timeout=240,
    )  # fmt: skip
    summary = json.loads((run / "summary.json").read_text())
    assert summary["paths"]["env_backend"] == "native" and summary["paths"]["rollout"] == "fused"
    assert summary["reproducibility"] == "exact"
    assert summary["evaluation"]["length_mean"] == 20
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["episode_return_mean"] > records[0]["episode_return_mean"]
    again = [*arguments, "--env-backend", "gymnasium", "--workers", "0"]
    subprocess.run(
        [sys.executable, "-m", "distrl", *again, "--run-dir", str(folder / "other"), "--eval-episodes", "5"],
        cwd=folder, check=True, capture_output=True, timeout=240,
    )  # fmt: skip
    other = json.loads((folder / "other" / "summary.json").read_text())
    assert other["parameters_sha256"] == summary["parameters_sha256"]


def test_the_pages_vector_env_steps(folder: Path) -> None:
    subprocess.run([sys.executable, "-c", blocks("python")[1]], cwd=folder, check=True, timeout=120)


def test_a_change_of_the_file_is_seen(folder: Path) -> None:
    """What Numba kept of the file as it was is not used for the file as it is."""
    code = (
        "import numpy as np, river\n"
        "from distrl.envs.native import NativeVectorEnv\n"
        "env = NativeVectorEnv(river.RIVER)\n"
        "env.reset(seed=1)\n"
        "for _ in range(19): env.step(np.zeros((1, 1), np.float32))\n"
        "print(env.step(np.zeros((1, 1), np.float32))[2][0])\n"
    )

    def play() -> str:
        return subprocess.run(
            [sys.executable, "-c", code], cwd=folder, check=True, capture_output=True, text=True, timeout=120
        ).stdout.strip()

    assert [play(), play()] == ["True", "True"]
    path = folder / "river.py"
    path.write_text(path.read_text().replace("WIDTH = 10.0", "WIDTH = 20.0"))
    assert play() == "False"
