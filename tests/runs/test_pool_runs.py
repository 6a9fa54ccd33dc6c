"""Whole runs on a library's pool: the same parameters for any number of workers, after kill -9 too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import helpers
import pytest

import distrl
from distrl.errors import BadInput

NEEDS_ENVPOOL = "EnvPool is an extra of its own: pip install 'distrl[envpool]'"
COMMON: dict[str, Any] = {
    "workers": 0, "num_envs": 4, "groups": 2, "minibatches": 2, "epochs": 1, "eval_episodes": 0, "tensorboard": False,
}  # fmt: skip
GAME = {
    **COMMON, "env": "ALE/Breakout-v5", "num_steps": 8, "total_steps": 8 * 32, "max_episode_steps": 25,
    "env_kwargs": {"num_threads": 1, "repeat_action_probability": 0.0},
}  # fmt: skip
POLE = {**COMMON, "env": "CartPole-v1", "num_steps": 32, "total_steps": 8 * 128, "hidden_sizes": [16]}
CASES: dict[str, dict[str, Any]] = {
    "ale": {**GAME, "env_backend": "ale"},
    "ale-sticky-next-step": {
        **GAME, "env_backend": "ale", "env_kwargs": {"num_threads": 1}, "autoreset": "next_step",
    },
    "envpool": {**GAME, "env_backend": "envpool"},
    "envpool-pole": {**POLE, "env_backend": "envpool"},
    "envpool-pole-next-step": {**POLE, "env_backend": "envpool", "autoreset": "next_step"},
    "envpool-pole-episodes": {**POLE, "env_backend": "envpool", "algo": "reinforce", "minibatches": 1, "total_steps": 500},
}  # fmt: skip

SLOW = {"ale-sticky-next-step": pytest.mark.slow, "envpool": pytest.mark.slow}


def options(name: str) -> dict[str, Any]:
    if name.startswith("envpool"):
        pytest.importorskip("envpool", reason=NEEDS_ENVPOOL)
    return CASES[name]


def summary(folder: Path, **fields: Any) -> dict[str, Any]:
    distrl.train(**{**fields, "run_dir": str(folder)})
    return helpers.summary(folder)


@pytest.mark.parametrize("name", [pytest.param(one, marks=SLOW.get(one, ())) for one in CASES])
def test_a_run_on_a_pool_that_was_killed_ends_as_if_nothing_had_happened(name: str, tmp_path: Path) -> None:
    """Killed with -9 by itself at an iteration's end, then resumed."""
    fields = {**options(name), "checkpoint_every": 3}
    whole = summary(tmp_path / "whole", **fields)
    code = (
        "import os, signal, distrl, distrl.run as run\n"
        "keep = run.Run.keep\n"
        "def killed(self, *a, **k):\n"
        "    result = keep(self, *a, **k)\n"
        "    if self.iteration == 5: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return result\n"
        "run.Run.keep = killed\n"
        f"distrl.train(**{ {**fields, 'run_dir': str(tmp_path / 'killed')}!r})\n"
    )
    died = subprocess.run([sys.executable, "-c", code], timeout=120, capture_output=True, check=False)
    assert died.returncode == -9, died.stderr.decode()
    distrl.resume(tmp_path / "killed")
    resumed = helpers.summary(tmp_path / "killed")
    assert resumed["parameters_sha256"] == whole["parameters_sha256"]
    assert helpers.metrics(tmp_path / "killed") == helpers.metrics(tmp_path / "whole")
    assert whole["reproducibility"] == resumed["reproducibility"] == "exact"
    assert whole["paths"]["env_backend"] == fields["env_backend"]


@pytest.mark.ray
@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("name", "workers"),
    [
        pytest.param("ale", 1, marks=pytest.mark.slow),
        pytest.param("ale", 2, marks=pytest.mark.slow),
        pytest.param("envpool-pole-next-step", 1, marks=pytest.mark.slow),
        ("envpool-pole-next-step", 2),
    ],
)
def test_a_pool_s_curve_is_the_same_for_any_number_of_workers(
    name: str, workers: int, tmp_path: Path
) -> None:
    for number in (0, workers):
        summary(tmp_path / str(number), **{**options(name), "workers": number})
    assert helpers.digest(tmp_path / str(workers)) == helpers.digest(tmp_path / "0")
    assert helpers.metrics(tmp_path / str(workers)) == helpers.metrics(tmp_path / "0")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"env_backend": "ale", "env": "CartPole-v1"}, "--env-backend ale must be with an ALE game"),
        (
            {"env_backend": "ale", "wrapper": "a:b"},
            "--env-backend ale with --wrapper a:b: it has no single envs",
        ),
        (
            {"env_backend": "envpool", "autoreset": "same_step"},
            "--env-backend envpool with --autoreset same_step",
        ),
        ({"env_backend": "al"}, "did you mean 'ale'|env-backend"),
    ],
)
def test_a_pool_that_cannot_be_is_refused_before_a_run_directory_is_made(fields, said, tmp_path) -> None:
    with pytest.raises(BadInput, match=said):
        summary(tmp_path / "run", **{**GAME, "env_kwargs": {}, **fields})
    assert not (tmp_path / "run").exists()
