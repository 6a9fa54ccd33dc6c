"""benchmarks/gpu_check.py: what of it runs without a GPU, and that it can tell."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu_check.py"
without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without CUDA")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--quick", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)


def test_the_gpu_check_runs_without_ray_and_its_checks_hold(tmp_path: Path) -> None:
    done = run("--out", str(tmp_path / "check.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((tmp_path / "check.json").read_text())
    assert record["holds"] and len(record["checks"]) >= 6
    assert record["cuda"] == torch.cuda.is_available()
    assert all(row["seconds"]["median"] > 0 for row in record["update"] + record["gae"])


@without_cuda
def test_the_gpu_check_says_that_cuda_is_not_there_and_fails_where_it_is_required() -> None:
    done = run("--require-cuda")
    assert done.returncode == 1
    assert "CUDA is not here" in done.stdout
    assert "--require-cuda" in done.stderr


def test_the_gpu_check_fails_where_a_learner_does_not_repeat_itself() -> None:
    broken = f"""
import runpy, sys
sys.argv = ["gpu_check.py", "--quick"]
from distrl import learner
real, count = learner.Learner._credit, [0.0]
def drifting(self, *arguments):
    count[0] += 1e-3
    advantage, target = real(self, *arguments)
    return advantage, target + count[0]
learner.Learner._credit = drifting
runpy.run_path({str(SCRIPT)!r}, run_name="__main__")
"""
    done = subprocess.run(
        [sys.executable, "-c", broken], cwd=ROOT, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FAILS" in done.stdout
