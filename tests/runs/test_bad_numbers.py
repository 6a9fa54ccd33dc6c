"""Envs and gradients that give what no learner can use, and names that lead nowhere: status, cause, checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers import case, checkpoint_bytes, checkpoint_numbers, flags, metrics, summary

pytestmark = pytest.mark.timeout(120)

TOY = case("image", iterations=6, env="toys:Toy-v0", workers=0, checkpoint_every=1)


def said(finished: Any) -> str:
    return " ".join(finished.output.split())


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ("nan reward", "reward is NaN or Inf at step"),
        ("inf observation", "observation is NaN or Inf at step"),
    ],
)
def test_a_number_that_is_not_finite_fails_by_default_and_is_dropped_and_counted_by_flag(
    distrl_here: Any, tmp_path: Path, fault: str, cause: str
) -> None:
    fields = {**TOY, "env_kwargs": {"fault": fault, "at": 20}}
    failed = distrl_here("train", *flags({**fields, "run_dir": tmp_path / "fail"}))
    assert failed.status == 1, failed.output
    assert cause in said(failed) and "(toys:Toy-v0)" in said(failed) and "--nonfinite drop" in said(failed)
    assert "Traceback" not in failed.output
    assert checkpoint_numbers(tmp_path / "fail") == [0, 1, 2]
    assert summary(tmp_path / "fail")["exit_reason"].startswith("failed: env")

    dropped = distrl_here("train", *flags({**fields, "run_dir": tmp_path / "drop", "nonfinite": "drop"}))
    assert dropped.status == 0, dropped.output
    assert metrics(tmp_path / "drop")[-1]["dropped_rows"] == 6  # each of the 6 envs once
    assert (
        sum("; dropped" in warning for warning in summary(tmp_path / "drop")["warnings"]) == 3
    )  # one a group


def test_an_observation_outside_its_space_names_env_expected_and_got(
    distrl_here: Any, tmp_path: Path
) -> None:
    fields = {**TOY, "env_kwargs": {"fault": "outside", "at": 12}, "run_dir": tmp_path / "run"}
    finished = distrl_here("train", *flags(fields))
    assert finished.status == 1, finished.output
    assert "env 0 (toys:Toy-v0)" in said(finished)
    assert "(3,)" in said(finished) and "(4,)" in said(finished)
    assert checkpoint_numbers(tmp_path / "run") == [0, 1]


def test_a_nan_gradient_is_skipped_and_counted(distrl_here: Any, tmp_path: Path) -> None:
    fields = {**TOY, "policy": "toys:crooked_policy", "policy_kwargs": {"nan_from": 5, "nan_until": 8}}
    finished = distrl_here("train", *flags({**fields, "run_dir": tmp_path / "run"}))
    assert finished.status == 0, finished.output
    # two minibatches an iteration: the fifth to seventh evaluation are in iterations 3 and 4
    assert [record["skipped_updates"] for record in metrics(tmp_path / "run")] == [0, 0, 2, 3, 3, 3]
    assert all(record["value_loss"] is not None for record in metrics(tmp_path / "run")[3:])


def test_nan_gradients_in_a_row_abort_the_run_before_they_reach_a_checkpoint(
    distrl_here: Any, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    fields = {
        **TOY,
        "policy": "toys:crooked_policy",
        "policy_kwargs": {"nan_from": 5},
        "max_skipped_updates": 3,
    }
    finished = distrl_here("train", *flags({**fields, "run_dir": run_dir}))
    assert finished.status == 1, finished.output
    assert (
        "minibatches in a row had a NaN or Inf gradient (--max-skipped-updates 3): lower --learning-rate"
        in said(finished)
    )
    assert checkpoint_numbers(run_dir)[-1] == 3 and len(metrics(run_dir)) == 3
    assert checkpoint_bytes(run_dir, 3) and "Traceback" not in finished.output


@pytest.mark.parametrize(
    ("env", "cause"),
    [
        ("CartPol-v1", "did you mean 'CartPole-v1'?"),
        ("CartPole-v7", "did you mean 'CartPole-v1'?"),
        ("no_such_module:Toy-v0", "module 'no_such_module' cannot be imported"),
        ("toys:Toy-v9", "did you mean 'Toy-v0'?"),
    ],
)
def test_an_unknown_env_is_bad_input_with_a_suggestion_and_starts_nothing(
    distrl_here: Any, tmp_path: Path, env: str, cause: str
) -> None:
    finished = distrl_here("train", *flags({**TOY, "env": env, "workers": 2, "run_dir": tmp_path / "run"}))
    assert finished.status == 2
    assert cause in said(finished)
    assert not (tmp_path / "run").exists()
