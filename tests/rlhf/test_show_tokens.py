"""`distrl show tokens`: real responses of a run, whose numbers obey the equations of the page."""

import json
from pathlib import Path

import numpy as np
import pytest

from distrl.cli.main import run
from distrl.show.style import read_numbers
from distrl.show.tokens import _caption, look


def trained(model: Path, folder: Path, *more: str) -> Path:
    prompts = folder / "prompts.jsonl"
    prompts.write_text(
        "".join(json.dumps({"prompt": text}) + "\n" for text in ("the cat", "a dog ran", "one and"))
    )
    arguments = [
        "rlhf", "ppo", "--model", str(model), "--prompts", str(prompts), "--num-prompts", "6",
        "--max-response", "7", "--iterations", "2", "--learning-rate", "1e-3", "--beta", "0.2",
        "--run-dir", str(folder / "run"), "--no-tensorboard", *more,
    ]  # fmt: skip
    assert run(arguments) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def ppo_run(gpt2_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    function = ("--reward-function", "tests.rlhf.reward_functions:letters")
    return trained(gpt2_folder, tmp_path_factory.mktemp("tokens"), *function)


def test_rewards_of_a_response_sum_to_its_score_less_beta_times_its_kl(ppo_run: Path, tmp_path: Path) -> None:
    assert run(["show", "tokens", str(ppo_run), "--out", str(tmp_path / "tokens.png")]) == 0
    assert (tmp_path / "tokens.png").stat().st_size > 20_000
    numbers = read_numbers(tmp_path / "tokens.png")
    assert numbers["iteration"] == 2
    assert numbers["beta"] == 0.2
    scores = [one["score"] for one in numbers["episodes"]]
    assert scores == sorted(scores)
    assert any(abs(kl) > 1e-6 for one in numbers["episodes"] for kl in one["kl"]), "two updates have moved it"
    for one in numbers["episodes"]:
        assert (
            len({len(one[name]) for name in ("token", "log_prob", "kl", "reward", "value", "advantage")}) == 1
        )
        assert sum(one["reward"]) == pytest.approx(one["score"] - 0.2 * sum(one["kl"]), abs=1e-5)
        assert one["reward"][0] == pytest.approx(
            -0.2 * one["kl"][0] + (one["score"] if len(one["kl"]) == 1 else 0), abs=1e-6
        )


def test_advantages_are_those_of_the_update_normalised_over_the_batch(ppo_run: Path) -> None:
    episodes, about = look(ppo_run, 0, False)
    assert len(episodes) == 6 and about["whitened"]
    flat = np.concatenate([one.advantage for one in episodes])
    assert (flat.mean(), flat.std()) == (pytest.approx(0, abs=1e-5), pytest.approx(1, abs=1e-3))
    # gamma 1: before that, the last advantage is what the critic did not expect of the last reward
    unexpected = np.array([one.reward[-1] - one.value[-1] for one in episodes if one.value is not None])
    last = np.array([one.advantage[-1] for one in episodes])
    slope, offset = np.polyfit(unexpected, last, 1)
    np.testing.assert_allclose(last, slope * unexpected + offset, atol=1e-4)
    assert slope > 0


def test_responses_without_a_score_are_left_out_and_a_kl_in_the_loss_is_said_to_be_there(
    gpt2_folder: Path, tmp_path: Path
) -> None:
    function = ("--reward-function", "tests.rlhf.reward_functions:not_of_cats", "--max-unscored", "1")
    folder = trained(gpt2_folder, tmp_path, "--algo", "grpo", "--group-size", "2", *function)
    episodes, about = look(folder, 0, False)
    assert 0 < len(episodes) < 12
    assert all(np.isfinite(one.score) and "cat" not in one.prompt for one in episodes)
    for one in episodes:
        assert not any(one.reward[:-1]) and one.reward[-1] == one.score
    assert "a term of the loss" in _caption(about["kl_in"], about["whitened"])
    assert "minus beta times" in _caption("reward", True)


def test_an_earlier_checkpoint_can_be_looked_at(ppo_run: Path, tmp_path: Path) -> None:
    told = ["show", "tokens", str(ppo_run), "--out", str(tmp_path / "tokens.png")]
    assert run([*told, "--checkpoint", "0"]) == 0
    numbers = read_numbers(tmp_path / "tokens.png")
    assert numbers["iteration"] == 0
    assert all(abs(kl) < 1e-4 for one in numbers["episodes"] for kl in one["kl"]), "nothing has moved it yet"
    assert run([*told, "--checkpoint", "best"]) == 2


def test_another_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["show", "tokens", str(tmp_path), "--out", str(tmp_path / "tokens.png")]) == 2
    assert "config.json" in capsys.readouterr().err
