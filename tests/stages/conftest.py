"""A tiny model's folder with data beside it, and the `distrl` command there in processes of its own."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

import distrl
from tests.rlhf.conftest import SENTENCES, make_model, train_tokenizer

ROOT = Path(str(distrl.__file__)).parent.parent
VARYING = ("wall_sec", "steps_per_sec", "time/", "system/")
REWARD = "def score(prompt, response):\n    return response.count('e') - 0.1 * len(response)\n"
Rows = list[dict[str, str]]


def write_lines(path: Path, rows: Rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with gpt2/, prompts.jsonl, sft.jsonl, pairs.jsonl and my_reward.py; runs are made in it."""
    place = tmp_path_factory.mktemp("rlhf")
    make_model("gpt2").save_pretrained(place / "gpt2")
    train_tokenizer().save_pretrained(place / "gpt2")
    texts = [(one[:7], one[7:]) for one in SENTENCES]
    write_lines(place / "prompts.jsonl", [{"prompt": prompt} for prompt, _ in texts[:5]])
    write_lines(place / "sft.jsonl", [{"prompt": p, "completion": c} for p, c in texts * 2])
    pairs = [
        {"prompt": prompt, "chosen": rest, "rejected": texts[(i + 3) % len(texts)][1]}
        for i, (prompt, rest) in enumerate(texts)
    ]
    write_lines(place / "pairs.jsonl", pairs * 2)
    (place / "my_reward.py").write_text(REWARD)
    return place


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "200", **more}


def start(place: Path, *arguments: str, **more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error::RuntimeWarning", "-m", "distrl", *arguments],
        cwd=place,
        env=environment(**more),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def command(place: Path, *arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Runs `distrl <arguments>` there, in this process, which saves seconds; it must end with this status."""
    from distrl.cli.main import run

    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(place), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        found = run(arguments)
    assert found == status, err.getvalue()
    return subprocess.CompletedProcess(arguments, found, out.getvalue(), err.getvalue())


def ppo_flags(run_dir: Path, *more: str) -> list[str]:
    return [
        "rlhf", "ppo", "--model", "gpt2", "--reward-function", "my_reward:score", "--prompts", "prompts.jsonl",
        "--num-prompts", "8", "--iterations", "3", "--max-response", "6", "--checkpoint-every", "1", "--no-tensorboard",
        "--learning-rate", "1e-3", "--run-dir", str(run_dir), *more,
    ]  # fmt: skip


def records(run_dir: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what differs from run to run."""
    lines = (json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if not k.startswith(VARYING)} for line in lines]


def summary(run_dir: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run_dir / "summary.json").read_text())
    return found


def until(reached: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "it did not come so far"
        time.sleep(0.02)


def same_run(one: Path, other: Path) -> None:
    assert records(one) == records(other)
    for name in ("parameters_sha256", "digests", "iterations", "env_steps"):
        assert summary(one)[name] == summary(other)[name]
    saved = [load_file(run / "model" / "model.safetensors") for run in (one, other)]
    assert all((saved[0][name] == saved[1][name]).all() for name in saved[0])


def same_parameters(one: Path, other: Path) -> None:
    assert summary(one)["parameters_sha256"] == summary(other)["parameters_sha256"]


@pytest.fixture(scope="session")
def undisturbed(workplace: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The run of some further flags, trained once a session: its run directory."""
    known: dict[tuple[str, ...], Path] = {}

    def train(*more: str) -> Path:
        if more not in known:
            run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
            command(workplace, *ppo_flags(run_dir, *more))
            known[more] = run_dir
        return known[more]

    return train
