"""`distrl show tokens`: real responses of a run, whose numbers obey the equations of the page."""

import json
from pathlib import Path

import pytest

from distrl.cli.main import run
from distrl.show.style import read_numbers


@pytest.fixture(scope="module")
def ppo_run(gpt2_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokens")
    prompts = folder / "prompts.jsonl"
    prompts.write_text(
        "".join(json.dumps({"prompt": text}) + "\n" for text in ("the cat", "a dog ran", "one and"))
    )
    arguments = [
        "rlhf", "ppo", "--model", str(gpt2_folder), "--prompts", str(prompts), "--num-prompts", "6",
        "--reward-function", "tests.rlhf.reward_functions:letters", "--max-response", "7", "--iterations", "2",
        "--learning-rate", "1e-3", "--beta", "0.2", "--run-dir", str(folder / "run"), "--no-tensorboard",
    ]  # fmt: skip
    assert run(arguments) == 0
    return folder / "run"


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
        # gamma 1: the last advantage is what the critic did not expect of the last reward
        assert one["advantage"][-1] == pytest.approx(one["reward"][-1] - one["value"][-1], abs=1e-5)


def test_another_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["show", "tokens", str(tmp_path), "--out", str(tmp_path / "tokens.png")]) == 2
    assert "config.json" in capsys.readouterr().err
