"""`distrl rlhf ppo` with tiny models: what a run leaves, and that a disturbed one leaves the same."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from distrl.checkpoint import latest_checkpoint
from distrl.errors import BadInput
from distrl.resolve import ResolvedAs, read_config_as
from distrl.stages.ppo import PPOStage
from distrl.stages.ppo_config import PPO
from distrl.stages.session import run_stage
from tests.stages.conftest import command, ppo_flags, records, same_run, start, summary, until

Undisturbed = Callable[..., Path]
# with the KL controller, adapters and responses ahead in the checkpoint
AHEAD = ("--overlap", "1", "--importance-cap", "2", "--kl-target", "3", "--lora-rank", "2")


def test_a_run_leaves_records_checkpoints_a_summary_and_a_model(undisturbed: Undisturbed) -> None:
    run = undisturbed()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [1, 2, 3]
    for name in (
        "env_steps", "wall_sec", "steps_per_sec", "score_mean", "kl", "beta", "objective", "policy_loss", "value_loss",
        "entropy", "approx_kl", "clip_fraction", "explained_variance", "value_mean", "policy_version",
    ):  # fmt: skip
        assert isinstance(lines[-1][name], int | float), name
    assert lines[0]["kl"] == pytest.approx(0.0, abs=1e-4), (
        "before the first update actor and reference are one"
    )
    assert lines[-1]["env_steps"] <= 3 * 8 * 6
    assert [line["behaviour_version"] for line in lines] == [0, 1, 2]
    told = summary(run)
    assert told["exit_reason"] == "finished"
    assert told["parameters_sha256"] == told["digests"]["actor"] != told["digests"]["critic"]
    assert told["reproducibility"] == "exact", "all of it was on the CPU"
    driver = told["spans"]["driver"]
    assert {"generate", "reference", "reward", "critic: values", "actor and critic: update"} <= set(
        json.dumps(driver).split('"')
    )
    found = latest_checkpoint(run / "checkpoints")
    assert found is not None and found[1].iteration == 3
    assert set(found[1].trees) == {"actor", "critic", "run"}


def test_the_model_left_is_a_folder_that_transformers_reads_with_its_tokenizer(
    undisturbed: Undisturbed,
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = undisturbed() / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.vocab_size >= len(tokenizer)
    assert tokenizer.chat_template


@pytest.mark.parametrize(
    "more", [(), pytest.param(AHEAD, marks=pytest.mark.slow)], ids=["as it comes", "overlapped"]
)
def test_a_run_killed_and_resumed_ends_as_an_undisturbed_one(
    more: tuple[str, ...], undisturbed: Undisturbed, workplace: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start(workplace, *ppo_flags(run, *more))
    until(lambda: (run / "checkpoints" / "00000001").is_dir(), process)
    process.kill()
    process.communicate()
    command(workplace, "rlhf", "ppo", "--resume", str(run))
    same_run(run, undisturbed(*more))
    assert summary(run)["resumes"] == 1


def test_sigterm_leaves_a_checkpoint_and_status_130(
    undisturbed: Undisturbed, workplace: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start(workplace, *ppo_flags(run, "--checkpoint-every", "100"))
    until(lambda: (run / "metrics.jsonl").exists() and bool((run / "metrics.jsonl").read_text()), process)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert f"distrl rlhf ppo --resume {run}" in said
    found = latest_checkpoint(run / "checkpoints")
    assert found is not None and found[1].iteration >= 1
    command(workplace, "rlhf", "ppo", "--resume", str(run), "--checkpoint-every", "1")
    same_run(run, undisturbed())


def test_a_resumed_run_refuses_other_data(undisturbed: Undisturbed, workplace: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    shutil.copytree(workplace, place)
    shutil.copytree(undisturbed(), place / "run")
    with (place / "prompts.jsonl").open("a") as file:
        file.write('{"prompt": "one more"}\n')
    done = command(place, "rlhf", "ppo", "--resume", "run", "--iterations", "4", status=2)
    assert "prompts" in done.stderr and "put them back" in done.stderr


def test_a_resumed_run_refuses_other_ends_of_text_and_another_tokenizer_and_tells_of_another_function(
    undisturbed: Undisturbed, workplace: Path, tmp_path: Path
) -> None:
    place = tmp_path / "place"
    shutil.copytree(workplace, place)
    shutil.copytree(undisturbed(), place / "run")
    more = ("rlhf", "ppo", "--resume", "run", "--iterations", "4")
    kept = (place / "gpt2" / "generation_config.json").read_text()
    (place / "gpt2" / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7]}))
    assert "end tokens [2] -> [2, 7]" in command(place, *more, status=2).stderr
    (place / "gpt2" / "generation_config.json").write_text(kept)
    tokenizer = (place / "gpt2" / "tokenizer.json").read_text()
    (place / "gpt2" / "tokenizer.json").write_text(tokenizer.replace("<|user|>", "<|person|>"))
    assert "tokenizer " in command(place, *more, status=2).stderr
    (place / "gpt2" / "tokenizer.json").write_text(tokenizer)
    with (place / "my_reward.py").open("a") as file:
        file.write("# another\n")
    assert "the file of my_reward:score has changed" in command(place, *more).stderr


def test_longer_is_resumed_and_done_is_told(
    undisturbed: Undisturbed, workplace: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(undisturbed(), run)
    assert "is finished" in command(workplace, "rlhf", "ppo", "--resume", str(run)).stderr
    done = command(workplace, "rlhf", "ppo", "--resume", str(run), "--iterations", "4")
    assert "schedules are rescaled" in done.stderr
    assert [line["iteration"] for line in records(run)] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "algo", ["grpo", *(pytest.param(one, marks=pytest.mark.slow) for one in ("rlhf-reinforce", "rloo"))]
)
def test_the_other_algorithms_run_on_the_same_loop_without_a_critic(
    algo: str, workplace: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command(workplace, *ppo_flags(run, "--algo", algo, "--iterations", "2", "--num-prompts", "4"))
    assert set(summary(run)["digests"]) == {"actor"}
    assert all(math.isfinite(line["policy_loss"]) and line["value_loss"] is None for line in records(run))


def test_a_value_head_and_held_out_prompts(workplace: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    more = ("--value-head", "--iterations", "1", "--eval-prompts", "prompts.jsonl", "--eval-every", "1")
    command(workplace, *ppo_flags(run, *more))
    assert records(run)[0]["eval/score_mean"] is not None


@pytest.mark.slow
def test_a_worker_killed_on_ray_is_replaced_and_the_run_ends_the_same(
    undisturbed: Undisturbed, workplace: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with tempfile.TemporaryDirectory(prefix="dr", dir="/tmp", ignore_cleanup_errors=True) as folder:
        process = start(workplace, *ppo_flags(run, "--placement", "separate"), RAY_TMPDIR=folder)
        until(lambda: (run / "metrics.jsonl").exists() and bool((run / "metrics.jsonl").read_text()), process)
        os.kill(_a_role_of(process.pid), signal.SIGKILL)
        _, said = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert summary(run)["restarts"] == 1, said
    assert "all roles start anew from iteration" in said
    same_run(run, undisturbed())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ten_iterations_end_alike_in_one_process_colocated_and_apart_with_one_and_two_workers(
    undisturbed: Undisturbed, workplace: Path, tmp_path: Path
) -> None:
    # a minibatch of 2 responses in micro-batches of 1, a batch of 8 in halves: two workers share each role's work
    more = ("--iterations", "10", "--checkpoint-every", "10", "--micro-batch", "1", "--generation-batch", "4")
    more = (*more, "--forward-batch", "4", "--placement-timeout-sec", "200")
    roles = ("actor", "critic", "reward", "reference")
    layouts: dict[str, tuple[str, ...]] = {
        "colocate": ("--placement", "colocate"),
        "separate-1": ("--placement", "separate"),
        "separate-2": (
            "--placement", "separate", *(word for role in roles for word in (f"--roles.{role}.workers", "2"))
        ),
    }  # fmt: skip
    wanted = undisturbed(*more)
    assert summary(wanted)["iterations"] == 10 and len(summary(wanted)["digests"]) == 2
    for name, flags in layouts.items():
        run = tmp_path / name
        with tempfile.TemporaryDirectory(prefix="dr", dir="/tmp", ignore_cleanup_errors=True) as folder:
            process = start(workplace, *ppo_flags(run, *more, *flags), RAY_TMPDIR=folder)
            _, said = process.communicate(timeout=240)
        assert process.returncode == 0, said
        workers = [one for one in summary(run)["spans"] if one != "driver"]
        assert len(workers) == {"colocate": 1, "separate-1": 4, "separate-2": 8}[name], workers
        same_run(run, wanted)


def _a_role_of(pid: int) -> int:
    """The process of one of this run's own Ray actors."""
    import psutil

    own = psutil.Process(pid).children(recursive=True)
    return next(one.pid for one in own if one.cmdline() and one.cmdline()[0].startswith("ray::RoleActor"))


# before any compute


@pytest.fixture
def asked(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., PPOStage]:
    """The stage of flags, made in the workplace."""
    from distrl.resolve import resolve_as

    monkeypatch.chdir(workplace)
    monkeypatch.syspath_prepend(str(workplace))
    fields = {
        "model": "gpt2",
        "prompts": "prompts.jsonl",
        "reward_function": "my_reward:score",
        "max_response": 8,
    }

    def make(**more: object) -> PPOStage:
        return PPOStage(resolve_as(PPO, fields | more).config)

    return make


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"model": "nowhere"}, "--model: nowhere: no such folder"),
        ({"prompts": "nowhere.jsonl"}, "--prompts: nowhere.jsonl cannot be read"),
        ({"prompts": "empty.jsonl"}, "--prompts: empty.jsonl is empty"),
        ({"prompts": "sft.jsonl", "max_prompt_tokens": 1}, "the limit is 1"),
        ({"reward_function": "my_reward:missing"}, "--reward-function"),
        ({"reward_function": None, "reward": "gpt2"}, "--reward: gpt2 lacks parameters of a scalar model"),
        ({"critic": "gpt2"}, "--critic: gpt2 lacks parameters"),
        ({"max_response": 200}, "tokens, and the model reads 128"),
        ({"reference": "foreign"}, "must have one tokenizer"),
        ({"placement": "separate", "roles": {"rewad": {"workers": 2}}}, "did you mean reward"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_starts(
    flags: dict[str, object], message: str, asked: Callable[..., PPOStage], workplace: Path
) -> None:
    (workplace / "empty.jsonl").write_text("")
    if flags.get("reference") == "foreign" and not (workplace / "foreign").exists():
        shutil.copytree(workplace / "gpt2", workplace / "foreign")
        path = workplace / "foreign" / "tokenizer.json"
        vocabulary = json.loads(path.read_text())
        ids = vocabulary["model"]["vocab"]
        first, second = "!", '"'
        ids[first], ids[second] = ids[second], ids[first]
        path.write_text(json.dumps(vocabulary))
    if flags.get("reward_function", "") is None:
        flags = {**flags, "reward_function": ()}
    with pytest.raises(BadInput) as error:
        asked(**flags)
    assert message in str(error.value)


def test_roles_that_have_no_place_are_refused_before_models_are_read_and_leave_nothing(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    more = ("--model", "nowhere", "--roles.critic.workers", "2", "--roles.critic.gpus", "512")
    refused = command(workplace, *ppo_flags(tmp_path / "run", *more), status=2).stderr
    assert "the placement does not fit this machine: 1024 GPUs needed, " in refused
    lines = [line.split() for line in refused.splitlines()]
    assert ["critic", "2", "2", "1024"] in lines and ["needed", "5", "5", "1024"] in lines
    assert "nowhere" not in refused, "no model was looked at"
    assert not ray.is_initialized() and list(tmp_path.iterdir()) == []


def test_a_saved_config_says_whose_it_is(undisturbed: Undisturbed) -> None:
    saved = read_config_as(PPO, undisturbed() / "config.json")
    assert saved.config.recipe.max_response == 6
    assert saved.sources["max_response"] == "flag"
    from distrl.resolve import read_config

    with pytest.raises(BadInput, match="is a run of `distrl rlhf ppo`, not of `distrl train`"):
        read_config(undisturbed() / "config.json")


def test_a_reward_that_says_too_little_ends_the_run_with_its_first_cause(
    workplace: Path, tmp_path: Path
) -> None:
    (workplace / "moody.py").write_text("def score(prompt, response):\n    raise ValueError('not today')\n")
    run = tmp_path / "run"
    more = ("--reward-function", "moody:score", "--max-unscored", "0.125")
    failed = command(workplace, *ppo_flags(run, *more), status=1)
    for told in (failed.stderr, summary(run)["exit_reason"]):
        assert (
            "ValueError: not today" in told
            and "more than --max-unscored 0.125;" in told
            and "8 of 8 responses have no score" in told
        )
    assert "not today" in (run / "report.html").read_text(), "the report says why"
    found = latest_checkpoint(run / "checkpoints")
    assert found is not None and found[1].iteration == 0, "what was learned from it is not kept"


CHOOSY = """
def score(prompt, response):
    if prompt.startswith("the"):
        raise ValueError(repr(response))
    return 1.0
"""


def test_a_few_responses_without_a_score_are_left_out_and_told_of_once_through_resumes(
    workplace: Path, tmp_path: Path
) -> None:
    (workplace / "choosy.py").write_text(CHOOSY)
    run = tmp_path / "run"
    command(workplace, *ppo_flags(run, "--reward-function", "choosy:score", "--max-unscored", "1"))
    told = [one for one in summary(run)["warnings"] if "no score" in one]
    assert len(told) == 1 and "the first: reward function choosy:score: ValueError: " in told[0]
    again = command(workplace, "rlhf", "ppo", "--resume", str(run), "--iterations", "5")
    assert all(line["unscored"] > 0 for line in records(run))
    assert [one for one in summary(run)["warnings"] if "no score" in one] == told
    assert again.stderr.count("have no score") == 1


@pytest.mark.parametrize(("devices", "told"), [({"cpu", "cuda"}, "device"), ({"cpu"}, "exact")])
def test_a_summary_says_exact_of_bits_that_no_gpu_had_a_part_in_in_any_session(
    devices: set[str], told: str, asked: Callable[..., PPOStage], workplace: Path, tmp_path: Path
) -> None:
    stage = asked(iterations=1, num_prompts=4, run_dir=str(tmp_path / "run"))
    assert stage.devices == {stage.device}
    stage.devices = devices
    run_stage(stage, ResolvedAs(stage.config, {}), quiet=True)
    assert summary(tmp_path / "run")["reproducibility"] == told
    command(workplace, "rlhf", "ppo", "--resume", str(tmp_path / "run"), "--iterations", "2")
    assert summary(tmp_path / "run")["resumes"] == 1
    assert summary(tmp_path / "run")["reproducibility"] == told, "a session on the CPU makes it no better"


def test_a_run_in_bfloat16_is_recorded_and_resumed_alike(
    workplace: Path, tmp_path: Path, undisturbed: Undisturbed
) -> None:
    run, more = (
        tmp_path / "run",
        ("--dtype", "bfloat16", "--exact-ratio", "--learning-rate-schedule", "constant"),
    )
    command(workplace, *ppo_flags(run, *more, "--iterations", "2"))
    assert all(line["first_ratio_deviation"] == 0 for line in records(run))
    assert all(0 < line["sampling_mismatch"] < 0.5 for line in records(run))
    command(workplace, "rlhf", "ppo", "--resume", str(run), "--iterations", "3")
    whole = undisturbed(*more)
    assert summary(run)["parameters_sha256"] == summary(whole)["parameters_sha256"]
    refused = command(workplace, "rlhf", "ppo", "--resume", str(run), "--dtype", "float32", status=2)
    assert "--dtype: the run has bfloat16" in refused.stderr


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")
def test_a_run_whose_generation_is_compiled_is_resumed_alike_and_says_so(
    workplace: Path, tmp_path: Path, undisturbed: Undisturbed
) -> None:
    run, more = tmp_path / "run", ("--generation", "compiled", "--learning-rate-schedule", "constant")
    command(workplace, *ppo_flags(run, *more, "--iterations", "2"))
    command(workplace, "rlhf", "ppo", "--resume", str(run), "--iterations", "3")
    assert summary(run)["parameters_sha256"] == summary(undisturbed(*more))["parameters_sha256"]
    refused = command(workplace, "rlhf", "ppo", "--resume", str(run), "--generation", "plain", status=2)
    assert "--generation: the run has compiled" in refused.stderr
