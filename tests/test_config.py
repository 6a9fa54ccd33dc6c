"""The flat configuration: precedence and provenance, every rule, all problems at once, resume, trust."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from distrl import config as config_module
from distrl import recipes as recipes_module
from distrl.config import TrainConfig
from distrl.errors import BadInput
from distrl.fields import SECTIONS, flat_fields
from distrl.recipes import LADDER, Recipe
from distrl.resolve import (
    CHANGEABLE,
    check_trust,
    from_flat,
    merge_for_resume,
    modules_named,
    read_config,
    resolve,
    resolve_resume,
    to_flat,
    write_config,
)


def problems(**flags: object) -> list[str]:
    """What is wrong with these flags; nothing where they resolve."""
    try:
        resolve(flags)
    except BadInput as error:
        return error.problems
    return []


def only_problem(**flags: object) -> str:
    found = problems(**flags)
    assert len(found) == 1, found
    return found[0]


# --- precedence and provenance


def test_a_flag_wins_over_toml_and_toml_over_the_preset_and_the_preset_over_the_default(
    tmp_path: Path,
) -> None:
    toml = tmp_path / "run.toml"
    toml.write_text('learning-rate = 2e-4\nnum_envs = 16\nalgo = "a2c"\nseed = 9\n')
    resolved = resolve({"learning_rate": "1e-4"}, toml)
    config = resolved.config
    assert (config.recipe.learning_rate, resolved.sources["learning_rate"]) == (1e-4, "flag")
    assert (config.recipe.num_envs, resolved.sources["num_envs"]) == (16, "toml")
    assert (config.algo, resolved.sources["algo"]) == ("a2c", "toml")
    assert (config.seed, resolved.sources["seed"]) == (9, "toml")
    assert (config.recipe.credit, resolved.sources["credit"]) == ("gae", "preset")
    assert (config.recipe.clip, resolved.sources["clip"]) == (None, "default")
    assert (config.workers, resolved.sources["workers"]) == (2, "default")


def test_without_anything_it_is_ppo_on_cartpole() -> None:
    resolved = resolve({})
    assert resolved.config == TrainConfig()
    assert resolved.config.env == "CartPole-v1"
    assert resolved.config.recipe == LADDER["ppo"]


@pytest.mark.parametrize("algo", LADDER)
def test_each_algorithm_alone_is_its_recipe_exactly(algo: str) -> None:
    assert resolve({"algo": algo}).config.recipe == LADDER[algo]


def test_every_field_has_a_source(tmp_path: Path) -> None:
    sources = resolve({"env_kwargs": {"a": {"b": 1}}}).sources
    assert set(flat_fields()) <= set(sources)
    assert sources["env_kwargs"] == sources["env_kwargs.a"] == "flag"


def test_tables_of_flags_and_toml_are_merged_key_by_key(tmp_path: Path) -> None:
    toml = tmp_path / "run.toml"
    toml.write_text("[env-kwargs]\ngoal-velocity = 0.1\nrange = {low = 1, high = 2}\n")
    resolved = resolve({"env_kwargs": {"range": {"high": 3}}}, toml)
    assert resolved.config.env_kwargs == {"goal_velocity": 0.1, "range": {"low": 1, "high": 3}}
    assert resolved.sources["env_kwargs.goal_velocity"] == "toml"
    assert resolved.sources["env_kwargs.range"] == "flag"


def test_text_becomes_the_type_of_its_field() -> None:
    config = resolve(
        {
            "total_steps": "1e6",
            "hidden_sizes": "32, 16",
            "clip": "none",
            "epochs": "1",
            "wandb": "true",
            "gamma": "1",
        }
    ).config
    assert config.total_steps == 1_000_000
    assert config.hidden_sizes == (32, 16)
    assert config.recipe.clip is None
    assert config.wandb is True
    assert isinstance(config.recipe.gamma, float)


def test_a_headings_first_fields_are_those_of_the_comments_in_the_source() -> None:
    found: dict[str, str] = {}
    for module in (config_module, recipes_module):
        source = Path(str(module.__file__)).read_text()
        found |= dict(re.findall(r"^    # (.+)\n    (\w+):", source, re.M))
    assert found == SECTIONS


# --- values and names that are wrong (rows 32, 33)

WRONG_VALUES = [
    ("learning_rate", "-1", "greater than 0", "'-1'"),
    ("learning_rate", 0.0, "greater than 0", "0.0"),
    ("learning_rate", float("nan"), "finite", "nan"),
    ("gamma", "1.5", "less than or equal to 1", "'1.5'"),
    ("total_steps", "0", "greater than or equal to 1", "'0'"),
    ("total_steps", "1.5", "integer", "'1.5'"),
    ("workers", -1, "greater than or equal to 0", "-1"),
    ("num_envs", True, "must be a number", "true"),
    ("seed", "x", "integer", "'x'"),
    ("hidden_sizes", "64,0", "greater than or equal to 1", "'64,0'"),
    ("tensorboard", "maybe", "boolean", "'maybe'"),
    ("step_timeout_sec", "inf", "finite", "'inf'"),
    ("groups", "1e999999999", "integer", "'1e999999999'"),
    ("env", "a b", "namespace/Name-v0", "'a b'"),
    ("wrapper", "mine", "module:function", "'mine'"),
    ("env_kwargs", 3, "dictionary", "3"),
    ("env_kwargs", {"rng": object()}, "JSON", "object"),
]


@pytest.mark.parametrize(("name", "given", "rule", "shown"), WRONG_VALUES)
def test_a_wrong_value_names_its_flag_the_rule_and_what_was_given(
    name: str, given: object, rule: str, shown: str
) -> None:
    message = only_problem(**{name: given})
    assert message.startswith("--" + name.replace("_", "-"))
    assert rule in message
    assert shown in message
    assert ";" in message, "what to do comes after what is wrong"


@pytest.mark.parametrize(
    ("name", "given", "nearest"),
    [
        ("algo", "poo", "ppo"),
        ("vectorization", "snyc", "sync"),
        ("device", "gpu", None),
        ("learning_rate_schedule", "liner", "linear"),
    ],
)
def test_a_wrong_word_gets_the_choices_and_the_nearest_one(
    name: str, given: str, nearest: str | None
) -> None:
    message = only_problem(**{name: given})
    assert all(choice in message for choice in flat_fields()[name].choices)
    assert (f"did you mean {nearest}?" in message) == (nearest is not None)


def test_an_unknown_name_gets_the_nearest_right_one() -> None:
    assert "did you mean --learning-rate?" in only_problem(learning_rat=1e-3)
    assert "--help" in only_problem(zzz=1)


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    toml = tmp_path / "run.toml"
    toml.write_text('total_steps = 0\nworkesr = 1\nenv = "CartPole-v1"\n')
    flags = {"learning_rate": -1, "numm_envs": 3, "num_envs": 3, "num_steps": 5, "groups": 9}
    with pytest.raises(BadInput) as caught:
        resolve(flags, toml, problems=["--x: from the command line"])
    found = "\n".join(caught.value.problems)
    for expected in (
        "--x: from the command line",
        f"--total-steps (in {toml})",
        f"--workesr (in {toml})",
        "--learning-rate: must be greater than 0",
        "--numm-envs: no such option",
        "3 x --num-steps 5 = 15 rows",
        "--groups 9 must be at most --num-envs 3",
    ):
        assert expected in found
    assert len(caught.value.problems) == 7


def test_nothing_is_said_of_a_clash_with_a_value_that_is_itself_wrong() -> None:
    assert only_problem(num_envs=-3, groups=2).startswith("--num-envs")
    assert only_problem(algo="pqo", epochs=3).startswith("--algo")


@pytest.mark.parametrize("text", ["= 3", "\x00", 'a = "'])
def test_toml_that_is_none_names_the_file(tmp_path: Path, text: str) -> None:
    toml = tmp_path / "run.toml"
    toml.write_text(text)
    with pytest.raises(BadInput, match=r"run\.toml is not TOML"):
        resolve({}, toml)
    with pytest.raises(BadInput, match="cannot be read"):
        resolve({}, tmp_path / "missing.toml")


# --- clashes (row 34)

CLASHES = [
    (
        {"num_envs": 3, "num_steps": 5},
        ["3 x --num-steps 5 = 15 rows", "15 / 4 = 3 remainder 3", "1 or 3 or 5"],
    ),
    ({"network": "lstm", "num_envs": 6}, ["whole columns", "6 / 4 = 1 remainder 2", "2 or 3 or 6"]),
    ({"groups": 9}, ["--groups 9", "--num-envs 8", "1 would be empty"]),
    ({"clip": "none"}, ["--epochs 4", "needs --clip", "--epochs 1"]),
    ({"algo": "a2c", "clip_value": 0.2}, ["--clip-value 0.2 needs --clip"]),
    ({"vectorization": "vector_entry_point"}, ["--autoreset disabled", "--autoreset next_step"]),
    (
        {"vectorization": "vector_entry_point", "autoreset": "next_step", "wrapper": "a:b"},
        ["--wrapper a:b wraps single envs"],
    ),
    ({"policy_kwargs": {"width": 3}}, ["--policy-kwargs (width) needs --policy"]),
    ({"workers": 0, "address": "auto"}, ["--address auto", "--workers 0"]),
    ({"eval_every": 5, "eval_episodes": 0}, ["--eval-every 5", "--eval-episodes"]),
]


@pytest.mark.parametrize(("flags", "shown"), CLASHES)
def test_a_clash_shows_the_arithmetic_and_a_way_out(flags: dict[str, object], shown: list[str]) -> None:
    message = only_problem(**flags)
    for part in shown:
        assert part in message


@pytest.mark.parametrize(("flags", "shown"), CLASHES)
def test_a_config_made_by_hand_is_held_to_the_same_rules(flags: dict[str, object], shown: list[str]) -> None:
    recipe_names = {field.name for field in dataclasses.fields(Recipe)}
    own = {name: value for name, value in flags.items() if name not in recipe_names}
    changed = {
        name: None if value == "none" else value for name, value in flags.items() if name in recipe_names
    }
    recipe = dataclasses.replace(LADDER[str(flags.get("algo", "ppo"))], **changed)  # type: ignore[arg-type]
    with pytest.raises(ValidationError) as caught:
        TrainConfig(**own, recipe=recipe)  # type: ignore[arg-type]
    for part in shown:
        assert part in str(caught.value)


def test_a_recipe_made_by_hand_is_held_to_its_bounds() -> None:
    with pytest.raises(ValidationError, match="learning_rate: must be greater than 0"):
        TrainConfig(recipe=Recipe(learning_rate=-1))


def test_what_divides_is_no_clash() -> None:
    assert not problems(num_envs=3, num_steps=4)
    assert not problems(network="lstm", num_envs=12)
    assert not problems(algo="reinforce", num_envs=3, num_steps=7)
    assert not problems(groups=8)


def test_more_workers_than_groups_is_a_warning_not_an_error() -> None:
    (warning,) = resolve({"workers": 3}).warnings
    assert "--workers 3" in warning and "1 of them will idle" in warning
    assert resolve({"workers": 2}).warnings == ()


# --- config.json

UNUSUAL = {
    "env": "my_envs:space/Thing-v3",
    "env_kwargs": {"range": [0.7, float("inf")], "deep": {"x": None, "text": "inf"}},
    "hidden_sizes": "8",
    "clip": 0.3,
    "groups": 3,
    "atari": "none",
    "wandb": True,
}


def test_a_configuration_comes_back_from_json_as_it_was(tmp_path: Path) -> None:
    for flags in ({}, UNUSUAL):
        resolved = resolve(flags)
        assert from_flat(json.loads(json.dumps(to_flat(resolved.config), allow_nan=False))) == resolved.config
        path = tmp_path / "config.json"
        write_config(path, resolved)
        assert read_config(path).config == resolved.config
        assert read_config(path).sources == resolved.sources
        stored = json.loads(path.read_text())
        assert stored["schema"] == 1
        assert set(flat_fields()) < set(stored)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda text: text[: len(text) // 2], "is not JSON"),
        (lambda text: "[]", "must have schema 1"),
        (lambda text: text.replace('"schema": 1', '"schema": 2'), "must have schema 1, got 2"),
        (lambda text: text.replace('"gamma"', '"gama"'), "did you mean --gamma"),
        (lambda text: text.replace('"gamma": 0.99', '"gamma": 9'), "--gamma: must be less"),
    ],
)
def test_a_damaged_config_json_is_refused_and_names_the_file(
    tmp_path: Path, damage: object, said: str
) -> None:
    path = tmp_path / "config.json"
    write_config(path, resolve({}))
    path.write_text(damage(path.read_text()))  # type: ignore[operator]
    with pytest.raises(BadInput) as caught:
        read_config(path)
    assert said in str(caught.value) and str(path) in str(caught.value)


# --- resume (row 22)


def test_what_may_change_on_resume_changes_and_is_listed() -> None:
    saved = resolve({"algo": "a2c", "env_kwargs": {"a": 1}}).config
    config, changes = merge_for_resume(
        saved,
        {"total-steps": "2e6", "learning_rate": 1e-4, "workers": 0, "algo": "a2c", "env_kwargs": {"a": 1}},
    )
    assert (config.total_steps, config.recipe.learning_rate, config.workers) == (2_000_000, 1e-4, 0)
    assert changes == ["total_steps: 500000 -> 2000000", "learning_rate: 0.001 -> 0.0001", "workers: 2 -> 0"]
    same = {"total_steps", "workers", "recipe"}
    assert config.model_dump(exclude=same) == saved.model_dump(exclude=same)
    assert dataclasses.replace(config.recipe, learning_rate=saved.recipe.learning_rate) == saved.recipe


CHANGED = {
    "env": "Acrobot-v1", "env_kwargs": {"a": 2}, "wrapper": "a:b", "algo": "a2c", "seed": 2, "groups": 1,
    "vectorization": "async", "autoreset": "next_step", "atari": False, "frame_stack": 2,
    "max_episode_steps": 9, "normalize_observation": True, "normalize_reward": True, "network": "mlp",
    "hidden_sizes": "8", "activation": "relu", "lstm_size": 8, "policy": "a:b", "init_from": "x",
    "learner_threads": 7, "run_dir": "x", "nonfinite": "drop", "num_envs": 16, "num_steps": 64,
    "gamma": 0.9, "lam": 0.9, "clip": 0.1, "epochs": 2, "minibatches": 2, "clip_value": 0.2,
    "target_kl": 0.1, "value_coef": 1, "entropy_coef": 0.1, "adam_eps": 1e-8, "max_grad_norm": 1,
    "normalize_advantage": False, "credit": "return", "baseline": False, "collects": "episodes",
    "clip_schedule": "linear",
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGED)
def test_what_the_curve_hangs_on_is_refused_on_resume_and_both_values_shown(name: str) -> None:
    saved = resolve({}).config
    with pytest.raises(BadInput) as caught:
        merge_for_resume(saved, {name: CHANGED[name]})
    (message,) = caught.value.problems
    assert message.startswith("--" + name.replace("_", "-"))
    assert "the run has" in message and "given" in message and "start a new run" in message


def test_every_field_either_may_change_on_resume_or_is_tested_not_to() -> None:
    assert set(flat_fields()) == set(CHANGEABLE) | set(CHANGED) | {"policy_kwargs"}


def test_resume_reads_config_json_and_marks_what_the_flags_changed(tmp_path: Path) -> None:
    write_config(tmp_path / "config.json", resolve({"num_envs": 4}))
    resolved = resolve_resume(tmp_path, {"workers": "1"})
    assert resolved.config.recipe.num_envs == 4
    assert resolved.sources["workers"] == "flag"
    assert resolved.sources["num_envs"] == "flag"
    assert resolved.sources["seed"] == "default"
    assert resolved.changes == ("workers: 2 -> 1",)
    with pytest.raises(BadInput, match="is .* a run directory"):
        resolve_resume(tmp_path / "missing", {})


def test_resume_tells_all_problems_at_once(tmp_path: Path) -> None:
    write_config(tmp_path / "config.json", resolve({}))
    with pytest.raises(BadInput) as caught:
        resolve_resume(
            tmp_path, {"env": "Acrobot-v1", "total_steps": "0", "wrokers": "1"}, problems=["--x: first"]
        )
    assert len(caught.value.problems) == 4


# --- trust


def test_modules_are_named_by_env_wrapper_and_policy() -> None:
    config = resolve({"env": "mine:space/Env-v0", "wrapper": "wraps.deep:fn", "policy": "nets:make"}).config
    assert modules_named(config) == {"env": "mine", "wrapper": "wraps.deep", "policy": "nets"}
    assert modules_named(resolve({"env": "ALE/Breakout-v5"}).config) == {}
    ours = resolve({"env": "distrl.show.gridworld:Grid-v0", "wrapper": "distrlike:fn"}).config
    assert modules_named(ours) == {"wrapper": "distrlike"}


def foreign(tmp_path: Path, **flags: object) -> Path:
    """A config.json that belongs to another user."""
    if os.getuid() != 0:
        pytest.skip("only root can give a file to another user")
    path = tmp_path / "config.json"
    write_config(path, resolve(flags))
    os.chown(path, 65534, -1)
    return path


def test_anothers_config_cannot_name_code_to_import(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = foreign(tmp_path, wrapper="evil:fn")
    with pytest.raises(BadInput) as caught:
        resolve_resume(tmp_path, {})
    assert all(part in str(caught.value) for part in (str(path), "65534", "evil (wrapper)", "--trust-run"))
    assert capsys.readouterr().err == ""

    assert resolve_resume(tmp_path, {}, trust_run=True).config.wrapper == "evil:fn"
    assert str(path) in capsys.readouterr().err

    assert (
        resolve_resume(tmp_path, {"wrapper": "evil:fn"}).config.wrapper == "evil:fn"
    )  # typed by this person


def test_anothers_config_that_names_no_code_is_fine(tmp_path: Path) -> None:
    foreign(tmp_path)
    assert resolve_resume(tmp_path, {}).config == TrainConfig()


def test_ones_own_config_is_trusted_and_its_name_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.json"
    resolved = resolve({"policy": "nets:make"})
    write_config(path, resolved)
    check_trust(path, resolved.config, trust_run=False)
    assert str(path) in capsys.readouterr().err
