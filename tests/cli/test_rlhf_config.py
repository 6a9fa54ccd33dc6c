"""The configuration of RLHF's stages: flags, presets, clashes and what may change, as `distrl train` has them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from distrl.cli.parsing import parse
from distrl.errors import BadInput
from distrl.fields import Schema
from distrl.resolve import from_flat_as, merge_for_resume_as, resolve_as, to_flat_as
from distrl.rlhf.recipes import RECIPES
from distrl.stages.ppo_config import PPO
from distrl.stages.supervised_config import REWARD, SFT

STAGES = [SFT, REWARD, PPO]
NEEDED = {"model": "m", "prompts": "p.jsonl", "reward": "r"}
STAGE_NEEDED = {"distrl rlhf ppo": NEEDED, "distrl rlhf sft": {"model": "m", "data": "d"}, "distrl rlhf reward": {"model": "m", "data": "d"}}  # fmt: skip
HEAVY = ("torch", "ray", "transformers", "peft", "numpy", "numba", "wandb", "matplotlib", "gymnasium", "rich")


def problems(schema: Schema[Any], **flags: Any) -> list[str]:
    with pytest.raises(BadInput) as error:
        resolve_as(schema, flags)
    return error.value.problems


@pytest.mark.parametrize("schema", STAGES, ids=lambda one: one.command)
def test_every_field_is_a_flag_with_a_help_under_a_heading(schema: Schema[Any]) -> None:
    assert {one.section for one in schema.fields.values()} == set(schema.sections)
    assert all(one.help for one in schema.fields.values())
    assert set(schema.changeable) <= set(schema.fields)


@pytest.mark.parametrize("schema", STAGES, ids=lambda one: one.command)
def test_a_configuration_comes_back_from_what_is_saved_of_it(schema: Schema[Any]) -> None:
    config = resolve_as(schema, STAGE_NEEDED[schema.command] | {"learning_rate": "0.25"}).config
    assert from_flat_as(schema, to_flat_as(schema, config)) == config


@pytest.mark.parametrize("algo", RECIPES)
def test_an_algorithm_is_its_preset_and_a_flag_wins_over_it(algo: str) -> None:
    assert resolve_as(PPO, NEEDED | {"algo": algo}).config.recipe == RECIPES[algo]
    found = resolve_as(PPO, NEEDED | {"algo": algo, "beta": 0.5})
    assert found.config.recipe.beta == 0.5
    assert found.sources["beta"] == "flag"


@pytest.mark.parametrize("name", ["top-p", "top-k", "min-p", "repetition-penalty"])
def test_sampling_from_another_policy_than_the_one_that_is_trained_is_no_option(name: str) -> None:
    assert f"--{name}: no such option" in problems(PPO, **NEEDED, **{name: 0.9})[0]


@pytest.mark.parametrize("name", ["num-envs", "num-steps", "collects", "baseline"])
def test_what_means_nothing_for_responses_is_no_flag(name: str) -> None:
    assert f"--{name}: no such option" in problems(PPO, **NEEDED, **{name: 1})[0]


def test_all_problems_are_told_at_once_with_the_nearest_name() -> None:
    parsed = parse(["--modle", "x", "--beta", "-1", "--reward", "r", "--iterations", "0"], {}, PPO)
    with pytest.raises(BadInput) as error:
        resolve_as(PPO, parsed.flags, problems=parsed.problems)
    found = error.value.problems
    assert any("--modle: no such option; did you mean --model?" in one for one in found)
    for flag in ("--beta: ", "--iterations: ", "--model: must be given", "--prompts: must be given"):
        assert any(one.startswith(flag) for one in found), flag
    assert len(found) == 5


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"reward": ()}, "--reward: must be given, or --reward-function"),
        ({"reward_function": "mine"}, "must be module:function, got 'mine'"),
        ({"reward": "a,b", "reward_weights": "1"}, "1 for 2 rewards (2 models + 0 functions)"),
        ({"value_head": True, "critic": "c"}, "are two critics"),
        ({"generation": "compiled", "fast_paths": False}, "--generation compiled with --no-fast-paths"),
        ({"value_head": True, "critic_rate": 10}, "--critic-rate 10 with --value-head"),
        ({"value_head": True, "placement": "separate"}, "cannot live apart from it"),
        ({"algo": "grpo", "critic": "c"}, "has no critic"),
        ({"algo": "rloo", "cut_off": "bootstrap"}, "--cut-off bootstrap needs a critic"),
        ({"num_prompts": 2, "minibatches": 4}, "--num-prompts 2 x --group-size 1 = 2 responses: 2 would be empty"),
        ({"algo": "rloo", "group_size": 1}, "--group-size 1 with --algo rloo"),
        ({"algo": "grpo", "group_size": 1}, "--group-size 1 with --algo grpo"),
        ({"algo": "rlhf-reinforce", "num_prompts": 1}, "--credit batch compares a response with the others"),
        ({"algo": "rloo", "epochs": 2}, "--epochs 2 uses each batch 2 times, which needs --clip"),
        ({"kl_estimator": "k3"}, "--kl-estimator k3 with --kl-in reward"),
        ({"algo": "rloo", "overlap": 1}, "--overlap 1 without --clip"),
        ({"overlap": 2}, "--overlap: "),
        ({"kl_target": 6, "kl_horizon": 10}, "a fifth of an iteration's 64 responses, 12.8"),
        (
            {"roles": {"reward": {"workers": 2}}, "placement": "in-process"},
            "--roles.reward places one role's workers, and --placement in-process has all roles together",
        ),
        ({"roles": {"rewad": {"workers": 2}}}, "--roles.rewad: must be of"),
        ({"roles": {"actor": {"workers": 3}}}, "got 3; use 2 or 4"),
        ({"placement": "separate", "target_kl": 0.1}, "place the critic together_with actor"),
        ({"value_head": True, "roles": {"critic": {"workers": 1}}}, "must be together_with actor"),
        ({"address": "auto"}, "--placement in-process runs without Ray"),
    ],
)  # fmt: skip
def test_ppo_refuses_what_cannot_hold_together(flags: dict[str, Any], message: str) -> None:
    found = problems(PPO, **NEEDED | flags)
    assert len(found) == 1 and message in found[0], found


def test_all_clashes_are_told_at_once() -> None:
    found = problems(PPO, **NEEDED, value_head=True, critic_rate=0.5, critic="c", num_prompts=2)
    assert len(found) == 3
    for message in ("--critic-rate 0.5 with --value-head", "are two critics", "2 would be empty"):
        assert any(message in one for one in found), message


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"algo": "grpo", "kl_estimator": "k1"}, "pulls nowhere"),
        ({"overlap": 1}, "--overlap 1 without --importance-cap"),
        ({"eval_every": 3}, "--eval-every does nothing"),
        ({"dtype": "bfloat16"}, "ratios start about 1% from 1"),
    ],
)
def test_ppo_warns_of_what_is_hardly_meant(flags: dict[str, Any], message: str) -> None:
    assert [one for one in resolve_as(PPO, NEEDED | flags).warnings if message in one]
    assert not resolve_as(PPO, NEEDED).warnings


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"model": None}, "--model: must be given"),
        ({"data": None}, "--data: must be given"),
        ({"held_out": "h", "held_out_share": 0.1}, "are two held-out sets"),
        ({"micro_batch": 64}, "--micro-batch 64 of --batch-size 32"),
        ({"evaluate_every": 5}, "looks at held-out rows, and there are none"),
    ],
)
@pytest.mark.parametrize("schema", [SFT, REWARD], ids=lambda one: one.command)
def test_the_supervised_stages_refuse_what_cannot_hold_together(
    schema: Schema[Any], flags: dict[str, Any], message: str
) -> None:
    found = problems(schema, **{"model": "m", "data": "d"} | flags)
    assert len(found) == 1 and message in found[0], found


def test_a_resumed_run_may_go_on_longer_but_not_elsewhere() -> None:
    saved = resolve_as(PPO, NEEDED).config
    config, changes = merge_for_resume_as(PPO, saved, {"iterations": 200, "placement": "separate"})
    assert (config.iterations, config.placement) == (200, "separate")
    assert changes == ["iterations: 100 -> 200", "placement: in-process -> separate"]
    with pytest.raises(BadInput, match="--dtype: the run has float32, given bfloat16"):
        merge_for_resume_as(PPO, saved, {"dtype": "bfloat16"})
    with pytest.raises(
        BadInput, match="--beta: the run has 0.05, given 0.1; models, data and the curve cannot change"
    ):
        merge_for_resume_as(PPO, saved, {"beta": 0.1})


def test_a_table_of_roles_alone_means_apart_and_a_resumed_run_may_have_another_placement() -> None:
    table = {"reward": {"workers": 2, "together-with": "reference"}, "reference": {"workers": 2}}
    found = resolve_as(PPO, NEEDED | {"roles": table})
    assert (found.config.placement, found.sources["placement"]) == ("separate", "implied")
    assert [(host.name, host.workers) for host in found.config.hosts()] == [
        ("generator+actor", 1), ("critic", 1), ("reference+reward", 2),
    ]  # fmt: skip
    back, changes = merge_for_resume_as(PPO, found.config, {"placement": "in-process"})
    assert (back.placement, back.roles, len(changes)) == ("in-process", {}, 2)
    again, changes = merge_for_resume_as(PPO, back, {"roles": table})
    assert (again.placement, again.roles) == ("separate", table)
    assert changes[1] == "placement: in-process -> separate"
    with pytest.raises(BadInput, match="--placement colocate has all roles together"):
        merge_for_resume_as(PPO, back, {"roles": table, "placement": "colocate"})


def test_a_critic_that_is_a_head_may_be_placed_by_a_table_that_leaves_it_with_the_actor() -> None:
    config = resolve_as(PPO, NEEDED | {"value_head": True, "roles": {"reward": {"workers": 2}}}).config
    assert config.hosts()[0].roles == ("generator", "actor", "critic")


def distrl(*arguments: str, before: str = "", cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    code = f"{before}\nfrom distrl.cli.main import main\nmain()"
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"},
    )


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo", "eval"])
def test_the_help_of_a_stage_imports_nothing_heavy(stage: str) -> None:
    before = (
        "import atexit, sys\n"
        f"atexit.register(lambda: print('HEAVY', sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr))"
    )
    done = distrl("rlhf", stage, "--help", before=before)
    assert done.returncode == 0, done.stderr
    assert "HEAVY []" in done.stderr
    assert "Usage: distrl rlhf " + stage in done.stdout


def test_a_dry_run_shows_values_with_their_sources_and_makes_nothing(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(
        'algo = "grpo"\nnum-prompts = 4\ndevice = "cpu"\n[roles.reference]\nworkers = 2\ncpus = 1.5\n'
        '[roles.reward]\ntogether_with = "reference"\noffload = true\n'
    )
    flags = ("--model", "m", "--prompts", "p", "--reward", "r", "--beta", "0.5")
    done = distrl("rlhf", "ppo", "--config", "run.toml", *flags, "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [re.split(r"\s*\|\s*", line.strip()) for line in done.stdout.splitlines()]
    for row in (
        ["algo", "grpo", "toml"],
        ["num_prompts", "4", "toml"],
        ["beta", "0.5", "flag"],
        ["kl_in", "loss", "preset"],
        ["iterations", "100", "default"],
        ["placement", "separate", "implied"],
        ["responses", "32 an iteration = 4 prompts x 8"],
        ["hosts", "3 workers need 4 CPUs, 0 GPUs"],
        ["generator+actor", "1 worker of 1 CPU, 0 GPUs"],
        ["reference+reward", "2 workers of 1.5 CPUs, 0 GPUs; offloaded: reward"],
    ):
        assert row in rows, row
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.toml"]
    refused = distrl("rlhf", "ppo", *flags, "--roles.reward.gpu", "1", "--dry-run", cwd=tmp_path)
    assert refused.returncode == 2 and "did you mean 'gpus'?" in refused.stderr


@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_a_dry_run_and_the_help_of_a_supervised_stage_have_every_default(stage: str, tmp_path: Path) -> None:
    flags = ("--model", "m", "--data", "d", "--batch-size", "7", "--dry-run")
    done = distrl("rlhf", stage, *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [re.split(r"\s*\|\s*", line.strip()) for line in done.stdout.splitlines()]
    assert ["batch_size", "7", "flag"] in rows and ["learning_rate", "1e-05", "default"] in rows
    shown = " ".join(distrl("rlhf", stage, "--help", cwd=tmp_path).stdout.split())
    assert "AdamW's highest learning rate (default: 1e-05)" in shown and "(default: )" not in shown


def test_bad_input_is_status_2_and_an_unknown_stage_is_guessed_at() -> None:
    done = distrl("rlhf", "ppo", "--betta", "1")
    assert done.returncode == 2
    assert (
        "--betta: no such option; did you mean --beta?" in done.stderr
        and "--model: must be given" in done.stderr
    )
    assert "'rewrd': no such command; did you mean reward?" in distrl("rlhf", "rewrd").stderr
