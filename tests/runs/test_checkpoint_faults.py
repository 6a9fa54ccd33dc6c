"""Checkpoints of whole runs: a full disk, a corrupt one, only corrupt ones; and use without Ray."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import (
    HERE,
    ROOT,
    assert_same_run,
    case,
    checkpoint_bytes,
    checkpoint_numbers,
    digest,
    flags,
    metrics,
    summary,
)

import distrl

pytestmark = pytest.mark.timeout(120)

# about 420 KB a checkpoint with the optimiser's moments, 140 KB before the first update
WIDE = case("mlp", hidden_sizes="128,128", checkpoint_every=2)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts, or resizes, a disk of the given size."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = False

    def mount(size: str) -> Path:
        nonlocal mounted
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"{'remount,' if mounted else ''}size={size}", "tmpfs", str(disk)],
            check=True,
        )
        mounted = True
        return disk

    yield mount
    if mounted:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_disk_too_full_for_a_checkpoint_warns_keeps_the_old_and_fails_at_the_third(
    small_disk: Callable[[str], Path], distrl_here: Any, reference: Any
) -> None:
    run_dir = small_disk("800k") / "run"
    finished = distrl_here("train", *flags({**WIDE, "workers": 0, "run_dir": run_dir}))
    assert finished.status == 1, finished.output
    said = " ".join(finished.output.split())
    assert "checkpoint of iteration 4 was not saved" in said and "No space left on device" in said
    assert "failure 1 of 3 in a row, training goes on" in said and "failure 2 of 3" in said
    assert "saving failed 3 times in a row" in said
    assert f"checkpoint of iteration 2 kept; continue with: distrl train --resume {run_dir}" in said
    assert checkpoint_numbers(run_dir) == [0, 2]
    assert not list((run_dir / "checkpoints").glob(".tmp-*"))
    saved = checkpoint_bytes(run_dir, 2)
    assert len(metrics(run_dir)) == 8

    small_disk("20m")
    resumed = distrl_here("train", "--resume", str(run_dir))
    assert resumed.status == 0, resumed.output
    assert "from iteration 2" in " ".join(resumed.output.split())
    assert_same_run(run_dir, reference(WIDE))
    assert saved not in (checkpoint_bytes(run_dir, one) for one in checkpoint_numbers(run_dir))


def test_a_last_checkpoint_that_cannot_be_saved_is_a_failure_though_the_cap_is_not_reached(
    small_disk: Callable[[str], Path], distrl_here: Any
) -> None:
    run_dir = small_disk("800k") / "run"
    finished = distrl_here("train", *flags({**WIDE, "total_steps": 4 * 96, "workers": 0, "run_dir": run_dir}))
    assert finished.status == 1, finished.output
    assert "the checkpoint of the last iteration, 4, was not saved" in " ".join(finished.output.split())
    assert checkpoint_numbers(run_dir) == [0, 2]
    assert not (run_dir / "summary.json").exists() or summary(run_dir)["exit_reason"].startswith("failed")


def test_a_disk_too_full_for_the_metrics_fails_with_the_disk_named(
    small_disk: Callable[[str], Path], distrl_here: Any
) -> None:
    disk = small_disk("20m")
    run_dir = disk / "run"
    distrl.train(**{**WIDE, "total_steps": 4 * 96, "workers": 0, "run_dir": str(run_dir)})
    saved = checkpoint_bytes(run_dir, 4)
    with (disk / "ballast").open("wb", buffering=0) as ballast, pytest.raises(OSError, match="No space left"):
        while True:
            ballast.write(b"0" * 4096)
    finished = distrl_here("train", "--resume", str(run_dir), "--total-steps", str(20 * 96))
    assert finished.status == 1, finished.output
    assert "No space left on device" in finished.output and str(run_dir) in finished.output
    assert "Traceback" not in finished.output
    assert checkpoint_bytes(run_dir, 4) == saved


def corrupt(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "flip":
        content[len(content) // 2] ^= 1
    path.write_bytes({"flip": content, "truncate": content[:-7], "empty": b""}[how])


@pytest.mark.parametrize("how", ["flip", "truncate", "empty"])
def test_a_corrupt_newest_checkpoint_falls_back_loudly_and_the_run_ends_the_same(
    distrl_here: Any, reference: Any, tmp_path: Path, how: str
) -> None:
    fields = case("mlp", checkpoint_every=4)
    run_dir = tmp_path / "run"
    constant = {**fields, "learning_rate_schedule": "constant"}
    distrl.train(**{**constant, "total_steps": 10 * 96, "workers": 0, "run_dir": str(run_dir)})
    assert checkpoint_numbers(run_dir) == [4, 8, 10]
    corrupt(run_dir / "checkpoints" / "00000010" / "learner.safetensors", how)
    finished = distrl_here("train", "--resume", str(run_dir), "--total-steps", str(20 * 96))
    assert finished.status == 0, finished.output
    said = " ".join(finished.output.split())
    assert "checkpoint 00000010 is corrupt, falling back to the one before" in said
    assert "SHA-256 expected" in said
    assert "from iteration 8" in said
    assert any("00000010 is corrupt" in warning for warning in summary(run_dir)["warnings"])
    assert_same_run(run_dir, reference(constant))


def test_only_corrupt_checkpoints_are_refused_and_nothing_is_touched(
    distrl_here: Any, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    distrl.train(**case("mlp", 4, workers=0, run_dir=str(run_dir), checkpoint_every=2))
    for folder in (run_dir / "checkpoints").iterdir():
        corrupt(folder / "learner.safetensors", "flip")
    before = {
        path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file() and path.name != ".lock"
    }
    finished = distrl_here("train", "--resume", str(run_dir), "--total-steps", "9600")
    assert finished.status == 1, finished.output
    assert "no whole checkpoint among 3, refusing to start from scratch" in finished.output
    after = {
        path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file() and path.name != ".lock"
    }
    assert after == before


def test_a_checkpoint_is_evaluated_where_ray_cannot_be_imported(reference: Any) -> None:
    run_dir = reference(case("normalised"))
    code = (
        "import sys, json; sys.modules['ray'] = None; import distrl\n"
        f"print(json.dumps(distrl.evaluate({str(run_dir)!r}, episodes=2, seed=3)))"
    )
    env = {**os.environ, "PYTHONPATH": f"{HERE}{os.pathsep}{ROOT}"}
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=90, check=True
    )
    result = json.loads(said.stdout)
    assert result["episodes"] == 2 and result["length_mean"] == 60
    assert result == distrl.evaluate(run_dir, episodes=2, seed=3)
    assert result["checkpoint"].endswith("00000020") and len(digest(run_dir)) == 64
