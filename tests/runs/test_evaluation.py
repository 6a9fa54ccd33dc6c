"""Evaluation through whole runs: its own randomness, the best checkpoint, stochastic play, the video."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import distrl
from distrl.checkpoint import read_checkpoint
from distrl.envs import EnvSpec
from distrl.evaluation import Limits, evaluate_policy, evaluation_group, load_run
from distrl.inference import make_inference
from tests.parts import small_policy

SMALL = {
    "workers": 0,
    "num_envs": 4,
    "num_steps": 32,
    "minibatches": 2,
    "total_steps": 6 * 128,
    "tensorboard": False,
}


def records(run_dir: Path) -> list[dict[str, Any]]:
    """The records without what the contract names as not deterministic."""
    noise = ("wall_sec", "steps_per_sec", "time/", "system/")
    return [
        {name: value for name, value in json.loads(line).items() if not name.startswith(noise)}
        for line in (run_dir / "metrics.jsonl").read_text().splitlines()
    ]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run that evaluates every second iteration."""
    run_dir = tmp_path_factory.mktemp("evaluated") / "run"
    distrl.train(**SMALL, run_dir=str(run_dir), eval_every=2, eval_episodes=3)
    return run_dir


def test_evaluating_on_the_way_changes_nothing_that_is_learned(evaluated: Path, tmp_path: Path) -> None:
    distrl.train(**SMALL, run_dir=str(tmp_path / "run"), eval_episodes=0)
    seen = records(evaluated)
    assert [line["iteration"] for line in seen if "eval/return_mean" in line] == [2, 4, 6]
    without = [{name: value for name, value in line.items() if not name.startswith("eval/")} for line in seen]
    assert without == records(tmp_path / "run")


def test_the_best_checkpoint_is_that_of_the_highest_evaluation(evaluated: Path) -> None:
    returns = {
        line["iteration"]: line["eval/return_mean"]
        for line in records(evaluated)
        if "eval/return_mean" in line
    }
    best = read_checkpoint(evaluated / "best")
    assert returns[best.iteration] == max(returns.values()) == best.meta["evaluation"]["return_mean"]
    again = distrl.evaluate(evaluated, episodes=3, seed=best.meta["evaluation"]["seed"], checkpoint="best")
    assert again["return_mean"] == returns[best.iteration]


def test_a_video_shows_the_first_episode_and_changes_no_figure(evaluated: Path, tmp_path: Path) -> None:
    import imageio.v3 as imageio

    plain = distrl.evaluate(evaluated, episodes=3, seed=5)
    filmed = distrl.evaluate(evaluated, episodes=3, seed=5, video=tmp_path / "play.gif")
    assert filmed == plain
    alone = distrl.evaluate(evaluated, episodes=1, seed=5)
    assert (
        imageio.imread(tmp_path / "play.gif", index=None).shape[0] > 1
    )  # a GIF joins pictures that do not differ
    distrl.evaluate(evaluated, episodes=1, seed=5, video=tmp_path / "play.mp4")
    assert imageio.imread(tmp_path / "play.mp4").shape[0] == alone["length_mean"]


def test_stochastic_play_differs_from_greedy_and_repeats_itself(evaluated: Path) -> None:
    greedy = distrl.evaluate(evaluated, episodes=5, seed=1)
    sampled = [distrl.evaluate(evaluated, episodes=5, seed=1, greedy=False) for _ in range(2)]
    assert sampled[0] == sampled[1] != greedy


@pytest.mark.parametrize("name", ["play.avi", "play"])
def test_a_video_of_another_kind_is_bad_input_before_anything_is_played(
    evaluated: Path, tmp_path: Path, name: str
) -> None:
    with pytest.raises(distrl.BadInput, match=r"must end in \.mp4 or \.gif"):
        distrl.evaluate(evaluated, video=tmp_path / name)


@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1", "MountainCar-v0"])
def test_both_inferences_evaluate_alike(env_id: str, greedy: bool) -> None:
    spec = EnvSpec(env_id, max_episode_steps=60)
    policy = small_policy("mlp", spec, normalize_observation=True)
    one, other = (
        evaluate_policy(policy, spec, 12, 3, greedy, inference=make_inference(policy, kind))
        for kind in ("torch", "compiled")
    )
    assert one.lengths.tolist() == other.lengths.tolist()
    np.testing.assert_allclose(one.returns, other.returns, rtol=1e-4)


@pytest.mark.parametrize("kind", ["torch", "compiled"])
def test_an_evaluation_infers_as_the_run_does(kind: str, tmp_path: Path) -> None:
    run = distrl.train(
        **{**SMALL, "total_steps": 128}, run_dir=str(tmp_path / "run"), inference=kind, eval_episodes=2
    )
    assert load_run(run.run_dir).inference == kind
    summary = json.loads((run.run_dir / "summary.json").read_text())
    told = summary["evaluation"]
    again = distrl.evaluate(run.run_dir, episodes=2, seed=told["seed"])
    assert {name: again[name] for name in told} == told


def test_a_run_that_was_captured_on_a_gpu_is_evaluated_without_one(tmp_path: Path) -> None:
    flags = {**SMALL, "total_steps": 128, "learner": "captured", "device": "cpu"}
    run_dir = distrl.train(**flags, run_dir=str(tmp_path / "run"), eval_episodes=0).run_dir
    here = distrl.evaluate(run_dir, episodes=2)
    config = run_dir / "config.json"
    saved = json.loads(config.read_text())
    saved["device"] = "cuda"
    config.write_text(json.dumps(saved))
    assert distrl.evaluate(run_dir, episodes=2) == here


@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_how_many_envs_an_evaluation_has_changes_no_episode(env_id: str, greedy: bool) -> None:
    spec = EnvSpec(env_id, max_episode_steps=40)
    policy = small_policy("mlp", spec)
    inference = make_inference(policy, "compiled")
    wide = evaluate_policy(policy, spec, 13, 3, greedy, inference=inference)
    for num_envs in (1, 3, 4, 8, 100):
        found = evaluate_policy(policy, spec, 13, 3, greedy, inference=inference, num_envs=num_envs)
        assert found.lengths.tolist() == wide.lengths.tolist()
        np.testing.assert_array_equal(found.returns, wide.returns)
        assert evaluation_group(spec, 13, 3, num_envs).num_envs <= num_envs


def test_an_episode_ends_at_the_bound_with_its_return_so_far_and_a_whole_one_is_untouched() -> None:
    spec = EnvSpec("CartPole-v1")
    policy = small_policy("mlp", spec)
    whole = evaluate_policy(policy, spec, 12, 3)
    bound = int(np.median(whole.lengths))
    cut = evaluate_policy(policy, spec, 12, 3, limits=Limits(max_steps=bound))
    assert cut.lengths.tolist() == np.minimum(whole.lengths, bound).tolist()
    assert cut.returns.tolist() == cut.lengths.tolist(), "CartPole's reward is 1 a step"
    assert cut.unfinished.tolist() == (whole.lengths > bound).tolist() and not cut.timed_out
    assert cut.summary()["unfinished_share"] == pytest.approx((whole.lengths > bound).mean())
    assert not whole.unfinished.any() and whole.caveat(Limits()) is None
    assert f"{int(cut.unfinished.sum())} of 12" in str(cut.caveat(Limits(max_steps=bound)))


def test_an_evaluation_out_of_time_says_so_and_its_checkpoint_is_not_kept_as_best(tmp_path: Path) -> None:
    run = distrl.train(
        **{**SMALL, "total_steps": 256}, run_dir=str(tmp_path / "run"), eval_every=1, eval_timeout_sec=1e-9
    )
    assert not (run.run_dir / "best").exists()
    assert any("--eval-timeout-sec" in line for line in run.summary["warnings"])
    again = distrl.evaluate(run.run_dir, episodes=3, timeout_sec=60, max_steps=500)
    assert again["episodes"] == 3 and again["unfinished_share"] == 0


def test_a_run_from_before_evaluations_had_limits_is_evaluated_as_it_was(
    evaluated: Path, tmp_path: Path
) -> None:
    old = tmp_path / "run"
    shutil.copytree(evaluated, old)
    saved = json.loads((old / "config.json").read_text())
    for name in ("eval_max_steps", "eval_timeout_sec"):
        del saved[name]
    (old / "config.json").write_text(json.dumps(saved))
    found, same = (distrl.evaluate(folder, episodes=4) for folder in (old, evaluated))
    assert found["return_mean"] == same["return_mean"]
