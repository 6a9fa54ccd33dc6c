"""What a run of `distrl rlhf ppo` records: the contract's keys, episodes, versions under overlap, and beta's course."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from distrl.maths.kl import AdaptiveBeta
from distrl.rlhf.experience import episodes
from distrl.rlhf.recipes import RLHF_PPO
from tests.rlhf.small_models import texts
from tests.stages.conftest import command, ppo_flags, records, summary, write_lines

Undisturbed = Callable[..., Path]
CONTRACT = (
    "iteration", "env_steps", "wall_sec", "steps_per_sec", "episodes", "episode_return_mean", "episode_length_mean",
    "policy_version", "policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction", "explained_variance",
    "value_mean",
)  # fmt: skip


@pytest.mark.parametrize("more", [(), ("--algo", "grpo", "--group-size", "2")], ids=["ppo", "grpo"])
def test_every_record_has_the_keys_of_every_command(more: tuple[str, ...], undisturbed: Undisturbed) -> None:
    lines = [json.loads(line) for line in (undisturbed(*more) / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        assert [name for name in CONTRACT if name not in line] == []
        assert any(name.startswith("time/") for name in line) and any(
            name.startswith("system/") for name in line
        )
        without = {name for name in CONTRACT if line[name] is None}
        assert without == ({"value_loss", "explained_variance", "value_mean"} if more else set())


def test_an_episode_is_a_response_its_return_the_score_without_the_kl(undisturbed: Undisturbed) -> None:
    lines = records(undisturbed("--beta", "0.5"))
    assert [line["episodes"] for line in lines] == [8, 8, 8]
    for name, mean in (
        ("score_mean", "episode_return_mean"),
        ("response_length_mean", "episode_length_mean"),
    ):
        so_far = [np.mean([line[name] for line in lines[: i + 1]]) for i in range(3)]
        np.testing.assert_allclose([line[mean] for line in lines], so_far, rtol=1e-6)
    assert any(abs(line["objective"] - line["score_mean"]) > 1e-3 for line in lines), (
        "the KL is in what is learned"
    )


def test_means_are_of_the_last_hundred_episodes(workplace: Path, tmp_path: Path) -> None:
    run, more = tmp_path / "run", ("--num-prompts", "60", "--iterations", "2", "--epochs", "1")
    command(workplace, *ppo_flags(run, *more))
    first, second = records(run)
    assert first["episode_return_mean"] == pytest.approx(first["score_mean"], rel=1e-6)
    # of the first iteration's 60 the last 40 are left
    rest = (100 * second["episode_return_mean"] - 60 * second["score_mean"]) / 40
    assert abs(rest - first["score_mean"]) > 1e-6 and abs(rest - second["score_mean"]) > 1e-6
    mixed = (60 * first["score_mean"] + 60 * second["score_mean"]) / 120
    assert abs(second["episode_return_mean"] - mixed) > 1e-6


def test_returns_follow_the_rule_for_responses_that_the_limit_cuts() -> None:
    responses = texts(lengths=((2, 4), (2, 1), (2, 4), (2, 2)))  # two are cut, two ended
    score = np.array([1.0, 2.0, np.nan, 4.0], np.float32)
    as_scored = replace(RLHF_PPO, cut_off="score")
    penalised = replace(RLHF_PPO, cut_off="penalty", cut_off_penalty=-3.0)
    bootstrapped = replace(RLHF_PPO, cut_off="bootstrap")
    assert episodes(responses, score, as_scored) == ((1.0, 4), (2.0, 1), (4.0, 2))
    assert episodes(responses, score, penalised) == ((-3.0, 4), (2.0, 1), (4.0, 2))
    assert episodes(responses, score, bootstrapped) == ((0.0, 4), (2.0, 1), (4.0, 2))


def test_an_overlapped_run_records_which_version_wrote(undisturbed: Undisturbed) -> None:
    lines = records(undisturbed("--overlap", "1", "--importance-cap", "2", "--iterations", "4"))
    assert [line["policy_version"] for line in lines] == [1, 2, 3, 4]
    assert [line["behaviour_version"] for line in lines] == [0, 0, 1, 2]
    assert [line["policy_lag"] for line in lines] == [0, 1, 1, 1]


def test_beta_follows_the_controller_replayed_over_the_recorded_kl(workplace: Path, tmp_path: Path) -> None:
    """Through a resume too; a KL near 0 at first, far above the target later, so that beta falls and rises."""
    target, horizon, beta = 0.02, 100.0, 0.05
    run = tmp_path / "run"
    more = ("--num-prompts", "4", "--group-size", "3", "--learning-rate", "1e-2", "--iterations", "3")
    more += ("--learning-rate-schedule", "constant", "--beta", str(beta))
    more += ("--kl-target", str(target), "--kl-horizon", str(horizon))
    command(workplace, *ppo_flags(run, *more))
    command(workplace, "rlhf", "ppo", "--resume", str(run), "--iterations", "5")
    lines = records(run)
    controller = AdaptiveBeta(beta, target, horizon)
    wanted = []
    for line in lines:
        wanted.append(controller.beta)
        assert line["episodes"] == 12
        controller = controller.after(line["kl"], 12)
    assert [line["beta"] for line in lines] == wanted
    assert min(np.diff(wanted)) < 0 < max(np.diff(wanted)), wanted


# the best by evaluation


def evaluated(place: Path, run: Path, *more: str) -> Path:
    write_lines(place / "held_out.jsonl", [{"prompt": one} for one in ("a dog", "the sun", "one and")])
    flags = (
        "--eval-prompts",
        "held_out.jsonl",
        "--eval-every",
        "1",
        "--iterations",
        "4",
        "--learning-rate",
        "3e-2",
    )
    command(place, *ppo_flags(run, *flags, *more))
    return run


def test_the_checkpoint_with_the_best_evaluation_is_kept_beside_the_newest_and_can_be_asked(
    workplace: Path, tmp_path: Path
) -> None:
    from distrl.checkpoint import read_checkpoint

    run = evaluated(workplace, tmp_path / "run")
    scores = [line["eval/score_mean"] for line in records(run)]
    best = int(np.argmax(scores)) + 1
    kept = read_checkpoint(run / "best")
    assert kept.iteration == best
    assert kept.meta["evaluation"]["score_mean"] == max(scores) == summary(run)["best_return"]
    assert kept.trees["run"]["iteration"] == best and {"actor", "critic"} <= set(kept.trees)
    told = asked_of(workplace, run, "best")
    assert (told["checkpoint"], told["score_mean"]) == (best, max(scores))
    for iteration in (3, 4):  # as many as are kept
        again = asked_of(workplace, run, str(iteration))
        assert (again["checkpoint"], again["score_mean"]) == (iteration, scores[iteration - 1])
    assert asked_of(workplace, run, "latest")["score_mean"] == scores[-1]


def asked_of(place: Path, run: Path, checkpoint: str) -> dict[str, float]:
    done = command(place, "rlhf", "eval", str(run), "--json", "--checkpoint", checkpoint)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def test_a_run_resumed_keeps_the_best_that_it_had(workplace: Path, tmp_path: Path) -> None:
    from distrl.checkpoint import read_checkpoint

    run = evaluated(workplace, tmp_path / "run", "--learning-rate-schedule", "constant")
    before = read_checkpoint(run / "best").digest
    scores = [line["eval/score_mean"] for line in records(run)]
    command(workplace, "rlhf", "ppo", "--resume", str(run), "--iterations", "5")
    last = records(run)[-1]["eval/score_mean"]
    assert (read_checkpoint(run / "best").digest == before) == (last <= max(scores))
    assert summary(run)["best_return"] == max(*scores, last)


def test_a_checkpoint_that_is_not_there_is_told(undisturbed: Undisturbed, workplace: Path) -> None:
    run = str(undisturbed())
    for folder, which, told in (
        (run, "best", "--checkpoint best: "),
        (run, "77", "--checkpoint must be latest, best or an iteration kept in"),
        (run, "bset", "--checkpoint must be latest, best or an iteration kept in"),
        ("gpt2", "best", "--checkpoint best: gpt2 is not a run of `distrl rlhf ppo`"),
    ):
        assert told in command(workplace, "rlhf", "eval", folder, "--checkpoint", which, status=2).stderr
