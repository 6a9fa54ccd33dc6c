"""The reader of flags: every form it takes, and every slip reported, none of them the last."""

from __future__ import annotations

import pytest

from distrl.cli.parsing import parse, read_toml_value
from distrl.fields import flat_fields

OPTIONS = {"config": True, "dry_run": False}


def test_flags_are_read_in_every_form() -> None:
    parsed = parse(
        [
            "--env",
            "A-v0",
            "--learning-rate=-1",
            "--total_steps",
            "-5",
            "--wandb",
            "--no-tensorboard",
            "--dry-run",
            "--config",
            "x.toml",
            "--hidden-sizes",
            "64,64",
            "--policy=",
        ],
        OPTIONS,
    )
    assert parsed.problems == []
    assert parsed.options == {"dry_run": True, "config": "x.toml"}
    assert parsed.flags == {
        "env": "A-v0",
        "learning_rate": "-1",
        "total_steps": "-5",
        "wandb": True,
        "tensorboard": False,
        "hidden_sizes": "64,64",
        "policy": "",
    }


def test_a_tables_keys_are_flags_and_its_values_read_as_toml_reads_them() -> None:
    parsed = parse(
        [
            "--env-kwargs.goal-velocity",
            "0.1",
            "--env-kwargs.deep.a_b=true",
            "--env-kwargs.deep.l",
            "[1, 2.5]",
            "--env-kwargs.name",
            "plain text",
            "--env-kwargs",
            '{late = "x"}',
            "--policy-kwargs.z",
            "none",
        ],
        OPTIONS,
    )
    assert parsed.problems == []
    assert parsed.flags == {
        "env_kwargs": {
            "goal_velocity": 0.1,
            "deep": {"a_b": True, "l": [1, 2.5]},
            "name": "plain text",
            "late": "x",
        },
        "policy_kwargs": {"z": None},
    }


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1), ("1.0", 1.0), ("1e-3", 1e-3), ("true", True), ("True", True), ('"1"', "1"), ("none", None),
        ('"none"', "none"), ("hard", "hard"), ("", ""), ("1\nx = 2", "1\nx = 2"),
        ("{a = {b = 1}}", {"a": {"b": 1}}), ('{"a": null, "b-c": [1, true]}', {"a": None, "b-c": [1, True]}),
        ("(1, 2)", (1, 2)), ("{'a': (1, None)}", {"a": (1, None)}), ("(hello)", "(hello)"), ("(5)", "(5)"), ("{x", "{x"),
    ],
)  # fmt: skip
def test_a_tables_value_is_tomls_jsons_or_pythons_and_else_text(text: str, value: object) -> None:
    read = read_toml_value(text)
    assert read == value and type(read) is type(value)


def test_a_whole_table_may_be_json_whose_keys_are_meant_as_they_are_written() -> None:
    parsed = parse(["--env-kwargs", '{"a-b": 1, "c": {"d": null}}'], OPTIONS)
    assert parsed.flags == {"env_kwargs": {"a-b": 1, "c": {"d": None}}}


def test_the_last_of_a_repeated_flag_counts() -> None:
    assert parse(["--seed", "1", "--seed", "2"], OPTIONS).flags == {"seed": "2"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--learning-rat", "3"], "did you mean --learning-rate?"),
        (["--dry-runn"], "did you mean --dry-run?"),
        (["--no-worker"], "--no-worker: no such option"),
        (["--seed"], "--seed: needs a value"),
        (["--seed", "--wandb"], "--seed: needs a value"),
        (["--wandb=yes"], "--wandb: takes no value, got 'yes'"),
        (["CartPole-v1"], "'CartPole-v1': a value without its flag"),
        (["-e", "x"], "'-e'"),
        (["--seed.x", "1"], "--seed is no table"),
        (["--env-kwargs", "3"], "--env-kwargs: must be a table, got '3'"),
        (["--env-kwargs.a", "1", "--env-kwargs.a.b", "2"], "a already has a value of its own"),
        (["--dry-run.x"], "is no table"),
    ],
)
def test_a_slip_is_told_and_reading_goes_on(arguments: list[str], said: str) -> None:
    parsed = parse([*arguments, "--gamma", "0.5"], OPTIONS)
    assert any(said in problem for problem in parsed.problems), parsed.problems
    assert parsed.flags["gamma"] == "0.5"


def test_every_field_can_be_given_as_a_flag() -> None:
    for name, field in flat_fields().items():
        words = (
            [field.flag] if field.kind is bool else [field.flag + (".k" if field.kind is dict else ""), "1"]
        )
        parsed = parse(words, OPTIONS)
        assert parsed.problems == [] and set(parsed.flags) == {name}
