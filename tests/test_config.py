"""The flat configuration: precedence and provenance, every rule, all problems at once."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from distrl import config as config_module
from distrl import recipes as recipes_module
from distrl.config import SECTIONS, TrainConfig
from distrl.errors import BadInput
from distrl.fields import flat_fields
from distrl.recipes import LADDER, Recipe
from distrl.resolve import resolve


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
            "clip_value": "none",
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
    ({"clip": "none", "clip_value": "none"}, ["--epochs 4", "needs --clip", "--epochs 1"]),
    ({"algo": "a2c", "clip_value": 0.2}, ["--clip-value 0.2 needs --clip"]),
    ({"vectorization": "vector_entry_point"}, ["--autoreset disabled", "--autoreset next_step"]),
    (
        {"vectorization": "vector_entry_point", "autoreset": "next_step", "wrapper": "a:b"},
        ["--wrapper a:b wraps single envs"],
    ),
    (
        {"overlap": 2, "credit": "gae"},
        ["--overlap 2 learns from a policy that is 2 versions old", "--credit vtrace"],
    ),
    (
        {"overlap": 1, "algo": "reinforce"},
        ["--overlap 1 without --clip", "1 version old", "--credit return does not correct", "--overlap 0"],
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


@pytest.mark.parametrize(
    ("flags", "credit", "source"),
    [
        ({"overlap": 0}, "gae", "preset"),
        ({"overlap": 1}, "vtrace", "implied"),
        ({"overlap": 1, "credit": "gae"}, "gae", "flag"),  # the clipped ratio is to the policy that collected
        ({"overlap": 2}, "vtrace", "implied"),
        ({"overlap": 1, "algo": "a2c"}, "vtrace", "implied"),
        ({"overlap": 1, "credit": "vtrace"}, "vtrace", "flag"),
        ({"overlap": 1, "collects": "episodes"}, "vtrace", "implied"),
    ],
)
def test_what_an_older_policy_collects_is_corrected_unasked(
    flags: dict[str, object], credit: str, source: str
) -> None:
    resolved = resolve(flags)
    assert (resolved.config.recipe.credit, resolved.sources["credit"]) == (credit, source)


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


def test_what_needs_a_gpu_is_refused_without_one_before_anything_is_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch

    from distrl.build import learner_device
    from distrl.preflight import check_machine

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for flags in ({"learner": "captured"}, {"rollout_device": "cuda", "workers": 0}, {"device": "cuda"}):
        with pytest.raises(BadInput, match="needs 1 GPU, and 0 are available"):
            check_machine(resolve(flags).config)
    captured = {"learner": "captured"}
    with pytest.raises(
        BadInput, match="--learner captured: torch sees no CUDA device here; give --device cpu"
    ):
        learner_device(resolve(captured).config)
    on_cpu = resolve(captured | {"device": "cpu"}).config
    check_machine(on_cpu)
    assert learner_device(on_cpu) == "cpu"
    with pytest.raises(BadInput, match="--rollout-device cuda infers in the learner's process"):
        resolve({"rollout_device": "cuda", "workers": 2})
