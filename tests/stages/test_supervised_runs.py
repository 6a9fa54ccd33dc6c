"""SFT, a reward model, PPO on it and a look at the result: one folder in, one folder out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stages.conftest import command, ppo_flags, records, start, summary, write_lines
from tests.stages.test_ppo_run import until

TRAIN = (
    "--learning-rate",
    "1e-3",
    "--batch-size",
    "4",
    "--epochs",
    "2",
    "--no-tensorboard",
    "--held-out-share",
    "0.2",
)


def flags(stage: str, data: str, run_dir: Path, *more: str) -> list[str]:
    return ["rlhf", stage, "--model", "gpt2", "--data", data, "--run-dir", str(run_dir), *TRAIN, *more]


@pytest.fixture(scope="module")
def sft(workplace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("sft") / "run"
    command(workplace, *flags("sft", "sft.jsonl", run))
    return run


@pytest.fixture(scope="module")
def reward(workplace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("reward") / "run"
    command(workplace, *flags("reward", "pairs.jsonl", run, "--max-response", "6"))
    return run


def test_sft_learns_and_says_of_the_held_out_rows_before_and_after(sft: Path) -> None:
    lines = records(sft)
    assert lines[-1]["held_out_loss"] < lines[0]["before/held_out_loss"]
    assert summary(sft)["exit_reason"] == "finished"
    assert (sft / "model" / "model.safetensors").is_file()


def test_sft_killed_and_resumed_ends_as_an_undisturbed_one(
    sft: Path, workplace: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start(workplace, *flags("sft", "sft.jsonl", run, "--checkpoint-every", "1"))
    until(lambda: (run / "checkpoints" / "00000002").is_dir(), process)
    process.kill()
    process.communicate()
    command(workplace, "rlhf", "sft", "--resume", str(run))
    assert records(run) == records(sft)
    assert summary(run)["parameters_sha256"] == summary(sft)["parameters_sha256"]


def test_a_reward_model_is_normalised_and_serves_ppo_and_eval(
    sft: Path, reward: Path, workplace: Path, tmp_path: Path
) -> None:
    assert summary(reward)["score_scale"]["deviation"] > 0
    run = tmp_path / "run"
    reward_flags = ("--reward", str(reward / "model"), "--reward-weights", "1,0.5", "--iterations", "1")
    command(workplace, *ppo_flags(run, *reward_flags))
    out = tmp_path / "samples.jsonl"
    done = command(
        workplace, "rlhf", "eval", str(run), "--json", "--sample", "--samples", "2", "--out", str(out)
    )
    told = json.loads(done.stdout)
    assert told["responses"] == 10 and told["score_error"] > 0 and told["kl_mean"] is not None
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(lines) == 10 and set(lines[0]) == {"prompt", "response", "score", "kl", "tokens", "ended"}
    assert sum(line["score"] for line in lines) / 10 == pytest.approx(told["score_mean"])


def test_eval_of_a_folder_wants_prompts_and_has_no_kl_without_a_reference(sft: Path, workplace: Path) -> None:
    folder = str(sft / "model")
    assert "--prompts: must be given" in command(workplace, "rlhf", "eval", folder, status=2).stderr
    done = command(
        workplace, "rlhf", "eval", folder, "--prompts", "prompts.jsonl", "--json", "--max-response", "4"
    )
    told = json.loads(done.stdout)
    assert "kl_mean" not in told and told["response_length_mean"] <= 4


def test_the_doctor_finds_a_model_well_and_an_unfit_reward(workplace: Path) -> None:
    asked = ("doctor", "--model", "gpt2", "--data", "prompts.jsonl")
    done = command(workplace, *asked, "--reward-function", "my_reward:score")
    found = {line.split("|")[1].strip(): line[:4] for line in done.stdout.splitlines()[1:]}
    for check in (
        "tokenizer",
        "pad",
        "vocabulary",
        "context",
        "ratio",
        "dropout",
        "padding",
        "temperature",
        "reward",
    ):
        assert found[check] == "pass", done.stdout
    done = command(workplace, *asked, "--reward", "gpt2", status=1)
    assert "gpt2 lacks parameters of a scalar model" in done.stdout


def test_the_doctor_says_how_far_from_1_ratios_start_in_bfloat16(workplace: Path) -> None:
    asked = ("doctor", "--model", "gpt2", "--data", "prompts.jsonl", "--dtype", "bfloat16")
    lines = command(workplace, *asked).stdout.splitlines()
    (told,) = [line for line in lines if "| ratio " in line]
    assert told.startswith("warn") and "written in bfloat16 and learned from in float32" in told
    off = float(told.split("|")[2].split()[0])
    assert 1e-5 < off < 1


def test_the_doctor_refuses_a_device_that_is_not_there_before_it_prints_a_table(workplace: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("the device is there")
    asked = ("doctor", "--model", "gpt2", "--data", "prompts.jsonl", "--device", "cuda")
    done = command(workplace, *asked, status=2)
    assert "--device cuda: torch sees no CUDA device here" in done.stderr
    assert done.stdout == ""


def test_the_doctor_says_that_no_prompt_fits_and_stops_there(workplace: Path) -> None:
    write_lines(workplace / "endless.jsonl", [{"prompt": "say it again " * 100}])
    done = command(workplace, "doctor", "--model", "gpt2", "--data", "endless.jsonl", status=1)
    assert "the model reads 128; shorten one of the two" in done.stdout
    assert "ratio" not in done.stdout


@pytest.fixture
def threads() -> Iterator[None]:
    """Put back after the test."""
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_eval_computes_with_the_runs_threads_and_timeout_or_those_asked_for(
    workplace: Path, tmp_path: Path, threads: None
) -> None:
    import torch

    (workplace / "slow.py").write_text(
        "import time\ndef score(prompt, response):\n    time.sleep(0.05)\n    return 1.0\n"
    )
    run = tmp_path / "run"
    more = ("--reward-function", "slow:score", "--threads", "2", "--iterations", "1", "--num-prompts", "4")
    command(workplace, *ppo_flags(run, *more))

    def look(*asked: str) -> tuple[float | None, int]:
        done = command(workplace, "rlhf", "eval", str(run), "--json", "--limit", "2", *asked)
        told = json.loads(done.stdout)
        assert told["device"] == ("cuda" if torch.cuda.is_available() and not asked else "cpu")
        assert told["threads"] == torch.get_num_threads()
        assert told["unscored"] == (0 if told["score_mean"] else 2)
        late = "reward function slow:score: no answer within 0.001 s"
        assert told.get("first_fault") == (late if told["unscored"] else None)
        return told["score_mean"], told["threads"]

    assert look() == (1.0, 2)
    assert look("--threads", "1", "--reward-timeout-sec", "0.001", "--device", "cpu") == (None, 1)


def test_the_doctor_computes_with_the_threads_and_the_timeout_asked_for(
    workplace: Path, threads: None
) -> None:
    import torch

    asked = ("doctor", "--model", "gpt2", "--data", "prompts.jsonl", "--reward-function", "slow:score")
    asked = (*asked, "--device", "cpu", "--threads", "2")
    (workplace / "slow.py").write_text(
        "import time\ndef score(prompt, response):\n    time.sleep(0.05)\n    return len(response)\n"
    )
    assert "fail" not in command(workplace, *asked).stdout
    assert torch.get_num_threads() == 2
    done = command(workplace, *asked, "--reward-timeout-sec", "0.001", status=1)
    assert "slow:score: 5 of 5 have no score; the first: reward function slow:score: no answer" in done.stdout
    for flag, value in (("--threads", "0"), ("--reward-timeout-sec", "soon"), ("--device", "tpu")):
        assert f"{flag}: " in command(workplace, *asked, flag, value, status=2).stderr
