"""Whole runs on native envs: the same parameters as on Gymnasium's, after a kill too."""

from __future__ import annotations

import json
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
    one = summary(tmp_path / "g", env=env, algo=algo, env_backend="gymnasium", rollout="stepwise", **more)
    other = summary(tmp_path / "n", env=env, algo=algo, env_backend="native", rollout="stepwise", **more)
    assert one["parameters_sha256"] == other["parameters_sha256"]
    assert one["evaluation"] == other["evaluation"]
    assert (one["paths"]["env_backend"], other["paths"]["env_backend"]) == ("gymnasium", "native")
    assert other["reproducibility"] == "exact"


def test_native_asked_for_with_what_it_does_not_know_is_refused(tmp_path):
    with pytest.raises(BadInput, match="--env-backend native with --env-kwargs"):
        summary(tmp_path / "n", env="Pendulum-v1", env_kwargs={"g": 9.8}, env_backend="native")
    with pytest.raises(BadInput, match="is no native env: there are"):
        summary(tmp_path / "n", env="Blackjack-v1", env_backend="native")
