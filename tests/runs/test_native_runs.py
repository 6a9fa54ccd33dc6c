"""Whole runs on native envs: the same parameters as on Gymnasium's, after a kill too."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import distrl
from distrl.errors import BadInput

SMALL: dict[str, Any] = {
    "workers": 0, "num_envs": 4, "groups": 2, "num_steps": 32, "minibatches": 4, "epochs": 2,
    "hidden_sizes": [16], "total_steps": 1500, "eval_episodes": 2, "tensorboard": False,
}  # fmt: skip


def summary(folder: Path, **options: Any) -> dict[str, Any]:
    run = distrl.train(**{**SMALL, "run_dir": str(folder), **options})
    return json.loads((run.run_dir / "summary.json").read_text())


@pytest.mark.parametrize(
    ("env", "algo"),
    [("CartPole-v1", "ppo"), ("Acrobot-v1", "ppo"), ("Pendulum-v1", "a2c"), ("CartPole-v1", "reinforce")],
)
def test_both_backends_learn_the_same_parameters(env, algo, tmp_path):
    more = {} if algo == "ppo" else {"epochs": 1, "minibatches": 1}
    one = summary(tmp_path / "g", env=env, algo=algo, env_backend="gymnasium", **more)
    other = summary(tmp_path / "n", env=env, algo=algo, env_backend="native", rollout="stepwise", **more)
    assert one["parameters_sha256"] == other["parameters_sha256"]
    assert one["evaluation"] == other["evaluation"]
    assert (one["paths"]["env_backend"], other["paths"]["env_backend"]) == ("gymnasium", "native")
    assert other["reproducibility"] == "exact"


@pytest.mark.parametrize(
    ("env", "algo"),
    [
        ("CartPole-v1", "ppo"),
        ("CartPole-v1", "reinforce"),
        ("MountainCarContinuous-v0", "reinforce-baseline"),
        ("Acrobot-v1", "actor-critic"),
        ("Pendulum-v1", "a2c"),
    ],
)
def test_every_rung_runs_fused_with_the_stepwise_runs_parameters(env, algo, tmp_path):
    more: dict[str, Any] = {} if algo == "ppo" else {"epochs": 1, "minibatches": 1}
    more |= {"env": env, "algo": algo, "max_episode_steps": 40, "normalize_observation": True}
    fused = summary(tmp_path / "f", **more)
    stepwise = summary(tmp_path / "s", **more, rollout="stepwise")
    assert (fused["paths"]["rollout"], stepwise["paths"]["rollout"]) == ("fused", "stepwise")
    assert fused["parameters_sha256"] == stepwise["parameters_sha256"]
    assert fused["reproducibility"] == "exact"
    for name in ("episodes", "env_steps", "evaluation", "iterations"):
        assert fused[name] == stepwise[name], name
    assert "rollout: fused" in fused["spans"]["driver"]["spans"]


def test_a_fused_run_that_was_killed_ends_as_if_nothing_had_happened(tmp_path):
    """Killed with -9 by itself at an iteration's end, then resumed."""
    options = {**SMALL, "env": "CartPole-v1", "checkpoint_every": 3, "total_steps": 2000}
    whole = summary(tmp_path / "whole", **options)
    code = (
        "import os, signal, distrl, distrl.run as run\n"
        "keep = run.Run.keep\n"
        "def killed(self, *arguments):\n"
        "    keep(self, *arguments)\n"
        "    if self.iteration == 7: os.kill(os.getpid(), signal.SIGKILL)\n"
        "run.Run.keep = killed\n"
        f"distrl.train(**{ {**options, 'run_dir': str(tmp_path / 'killed')}!r})\n"
    )
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120)
    assert killed.returncode == -9, killed.stderr.decode()[-2000:]
    distrl.resume(tmp_path / "killed")
    resumed = json.loads((tmp_path / "killed" / "summary.json").read_text())
    assert resumed["parameters_sha256"] == whole["parameters_sha256"]
    assert (resumed["episodes"], resumed["resumes"]) == (whole["episodes"], 1)
    assert resumed["paths"]["rollout"] == "fused"


def test_workers_play_fused_with_the_parameters_of_one_process(tmp_path):
    alone = summary(tmp_path / "alone", env="CartPole-v1")
    together = summary(tmp_path / "together", env="CartPole-v1", workers=2)
    assert together["paths"] == alone["paths"]
    assert together["parameters_sha256"] == alone["parameters_sha256"]


def test_fused_asked_for_where_it_cannot_be_is_refused(tmp_path):
    for options, said in (
        ({"env_backend": "gymnasium"}, "--rollout fused with --env-backend gymnasium"),
        ({"nonfinite": "drop"}, "--rollout fused with --nonfinite drop"),
        ({"network": "lstm"}, "--rollout fused with --network lstm"),
        ({"env": "HalfCheetah-v5"}, "--rollout fused: the env's backend is gymnasium"),
        ({"inference": "torch"}, "--rollout fused: inference is by torch"),
    ):
        with pytest.raises(BadInput, match=said):
            summary(tmp_path / "n", **{"env": "CartPole-v1", "rollout": "fused", **options})


def test_native_asked_for_with_what_it_does_not_know_is_refused(tmp_path):
    with pytest.raises(BadInput, match="--env-backend native with --env-kwargs"):
        summary(tmp_path / "n", env="Pendulum-v1", env_kwargs={"g": 9.8}, env_backend="native")
    with pytest.raises(BadInput, match="is no native env: there are"):
        summary(tmp_path / "n", env="Blackjack-v1", env_backend="native")
