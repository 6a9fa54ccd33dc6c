"""benchmarks/speed.py: what it keeps, and our own runner for real."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
RUNNER = ROOT / "benchmarks" / "peers" / "distrl_speed.py"
SPEED = ROOT / "benchmarks" / "speed.py"


def run(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(script), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=290)


def measure(*arguments: str) -> dict[str, Any]:
    done = run(RUNNER, *arguments, "--seconds", "0.2", "--warmup", "0.1")
    assert done.returncode == 0, done.stderr
    line: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return line


def test_our_runner_counts_the_steps_of_whole_iterations_and_says_which_paths_ran() -> None:
    line = measure("--num-envs", "4", "--num-steps", "16")
    assert line["peer"] == "distrl" and line["settings"]["workers"] == 0
    assert line["env_steps"] > 0 and line["env_steps"] % (4 * 16) == 0
    assert line["steps_per_sec"] == pytest.approx(line["env_steps"] / line["seconds"], rel=0.01)
    assert line["settings"]["paths"]["rollout"] == "fused"


def test_our_runner_passes_distrls_own_flags_on() -> None:
    line = measure(
        "--num-envs", "4", "--num-steps", "16", "--env-backend", "gymnasium", "--rollout", "stepwise", "--learner=torch"
    )  # fmt: skip
    paths = line["settings"]["paths"]
    assert (
        paths["env_backend"] == "gymnasium" and paths["rollout"] == "stepwise" and paths["learner"] == "torch"
    )
    assert line["settings"]["flags"][-1] == "--learner=torch"


def test_our_runner_names_a_flag_that_distrl_does_not_have() -> None:
    done = run(RUNNER, "--nonsense", "1")
    assert done.returncode != 0 and "--nonsense" in done.stderr


def test_our_runner_measures_rollouts_alone() -> None:
    line = measure("--num-envs", "8", "--num-steps", "16", "--rollout-only")
    assert line["measured"] == "rollouts" and line["env_steps"] % (8 * 16) == 0
    assert run(RUNNER, "--rollout-only", "--workers", "2").returncode == 2


def test_our_runner_races_to_a_return_from_the_first_step_on() -> None:
    line = measure("--num-envs", "8", "--num-steps", "32", "--until-return", "15")
    assert line["reached"] >= 15 and line["seconds"] > 0
    assert line["env_steps"] >= 100  # 100 episodes of a step each at the least
    lost = measure("--num-envs", "8", "--num-steps", "32", "--until-return", "501", "--give-up", "0.3")
    assert lost["reached"] is None and lost["seconds"] >= 0.3


def test_results_of_several_runs_are_merged_by_section(tmp_path: Path) -> None:
    out = tmp_path / "speed.json"
    sections = {
        "8": {"title": "made up", "rows": {}, "missing": {"SB3": "no environment"}, "targets": [], "machine": {"cpu": "x"}}
    }  # fmt: skip
    out.write_text(json.dumps({"schema": 2, "commands": [], "sections": sections}))
    done = run(SPEED, "--print", "--only", "8", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert "CartPole-v1, 8 envs" in done.stdout and "SB3" in done.stdout
    missing = run(SPEED, "--print", "--only", "8", "64", "--out", str(out))
    assert missing.returncode == 1  # 64 was never measured


def test_wrong_arguments_are_refused() -> None:
    for arguments in (("--repeats", "0"), ("--seconds", "0"), ("--budget", "0"), ("--only", "nonsense")):
        assert run(SPEED, *arguments).returncode == 2
