"""`import distrl` does what the commands do, to the bit, with errors as exceptions."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import distrl

SMALL = {
    "num_envs": 2,
    "num_steps": 32,
    "minibatches": 2,
    "workers": 0,
    "eval_episodes": 0,
    "tensorboard": False,
}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two iterations, made from Python."""
    folder = tmp_path_factory.mktemp("api") / "run"
    outcome = distrl.train("CartPole-v1", run_dir=folder, total_steps=128, **SMALL)
    assert outcome.exit_status == 0 and outcome.run_dir == folder
    return folder


def digest(folder: Path) -> str:
    return str(json.loads((folder / "summary.json").read_text())["parameters_sha256"])


@pytest.mark.timeout(120)
def test_python_and_the_command_train_the_same_parameters(run_dir: Path, tmp_path: Path) -> None:
    flags = ["--total-steps", "128", "--run-dir", str(tmp_path / "run"), "--no-tensorboard"]
    for name, value in SMALL.items():
        if name != "tensorboard":
            flags += ["--" + name.replace("_", "-"), str(value)]
    done = subprocess.run(
        [sys.executable, "-m", "distrl", "train", *flags], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "", "progress goes to standard error"
    assert digest(tmp_path / "run") == digest(run_dir)


@pytest.mark.timeout(120)
def test_evaluate_gives_what_eval_json_prints(run_dir: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "distrl", "eval", str(run_dir), "--episodes", "3", "--seed", "5", "--json"],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert printed == distrl.evaluate(run_dir, episodes=3, seed=5)
    assert set(printed) == {
        "return_mean", "return_std", "length_mean", "episodes", "unfinished_share", "seed", "checkpoint",
    }  # fmt: skip


@pytest.mark.timeout(120)
def test_resume_goes_on_and_refuses_what_may_not_change(run_dir: Path, tmp_path: Path) -> None:
    distrl.train(run_dir=tmp_path / "run", total_steps=64, **SMALL)
    with pytest.raises(distrl.BadInput, match="the run has 0.99, given 0.5"):
        distrl.resume(tmp_path / "run", gamma=0.5)
    outcome = distrl.resume(tmp_path / "run", total_steps=192)
    assert outcome.summary["env_steps"] == 192
    assert json.loads((tmp_path / "run" / "config.json").read_text())["total_steps"] == 192


def test_load_gives_a_policy_with_the_runs_parameters(run_dir: Path) -> None:
    latest, first = distrl.load(run_dir), distrl.load(run_dir, checkpoint=0)
    assert sum(one.numel() for one in latest.parameters()) > 1000
    pairs = zip(latest.parameters(), first.parameters(), strict=True)
    assert any(not (one == other).all() for one, other in pairs), "two iterations moved them"


def test_a_recipe_gives_all_of_an_algorithms_fields_below_single_ones(tmp_path: Path) -> None:
    with pytest.raises(distrl.BadInput) as caught:
        distrl.train(
            recipe=distrl.Recipe(collects="steps", num_envs=3, minibatches=2), num_steps=5, workers=0
        )
    assert caught.value.problems[0].startswith(
        "--minibatches 2 must divide the batch: --num-envs 3 x --num-steps 5"
    )


def test_all_problems_come_as_one_exception() -> None:
    with pytest.raises(distrl.BadInput) as caught:
        distrl.train("CartPole-v1", learning_rat=1, total_steps=0, vectorization="snyc")
    assert len(caught.value.problems) == 3


def test_an_unknown_name_of_the_package_says_which_there_are() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'trian'; it has .*train"):
        distrl.trian  # noqa: B018


def test_a_run_is_not_made_over_another_nor_through_a_symlink(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    (tmp_path / "mine").symlink_to(run_dir)
    before = digest(run_dir)
    for folder, why in (
        (run_dir, f"continue it with --resume {run_dir}"),
        (tmp_path / "mine", "must not be a symlink"),
        (tmp_path / "dangling", "must not be a symlink"),
        (tmp_path / "new" / "..", "must end in the name of a folder"),
    ):
        with pytest.raises(distrl.BadInput, match=why):
            distrl.train(run_dir=folder, total_steps=64, **SMALL)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["dangling", "mine"]
    assert digest(run_dir) == before
