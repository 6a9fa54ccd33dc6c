"""Arguments of envs go through JSON and come back as they were."""

from __future__ import annotations

import datetime
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distrl.plain_values import decode, encode, plain
from distrl.resolve import resolve

TABLE: dict[str, Any] = {
    "tuple": (1, (2.5, "x"), [3]), "date": datetime.date(2024, 1, 31), "time": datetime.time(1, 2, 3),
    "at": datetime.datetime(2024, 1, 31, 12, tzinfo=datetime.UTC), "none": "none", "nothing": None, "my-key": math.inf,
    "looks": {"tuple": [1]}, "looks too": {"float": "inf"}, "and": {"table": {"date": "2024-01-01"}},
}  # fmt: skip


def test_what_json_lacks_comes_back_as_it_was() -> None:
    assert decode(json.loads(json.dumps(encode(plain(TABLE, "env_kwargs"), True)))) == TABLE
    assert decode({"float": "inf"}) == math.inf, "as older runs have it"


def test_a_configuration_keeps_arguments_from_python() -> None:
    assert resolve({"env_kwargs": TABLE}).config.env_kwargs == TABLE


def test_a_key_in_quotes_keeps_its_dashes_in_toml_and_one_without_is_a_name(tmp_path: Path) -> None:
    toml = tmp_path / "run.toml"
    toml.write_text('[env-kwargs]\n"my-key" = 1\ngoal-velocity = 2\nday = 2024-01-31\nmode = "none"\n')
    expected = {"my-key": 1, "goal_velocity": 2, "day": datetime.date(2024, 1, 31), "mode": "none"}
    assert resolve({}, toml).config.env_kwargs == expected


def test_what_no_file_can_hold_is_refused_by_its_name() -> None:
    with pytest.raises(ValueError, match=r"env_kwargs\.rng must be what JSON can hold"):
        plain({"rng": object()}, "env_kwargs")


def test_numpys_numbers_are_pythons() -> None:
    given = {
        "a": np.float32(1.5),
        "b": np.bool_(True),
        "c": [np.int64(3)],
        "d": np.str_("x"),
        "e": np.array(2.0),
    }
    read = plain(given, "env_kwargs")
    assert read == {"a": 1.5, "b": True, "c": [3], "d": "x", "e": 2.0}
    assert [type(one) for one in read.values()] == [float, bool, list, str, float]


@pytest.mark.parametrize(
    ("given", "said"),
    [(np.arange(2), "give a list"), (Path("/x"), "give its text"), ({1: 2}, "got the key 1; write '1'")],
)
def test_a_refusal_says_what_to_give_instead(given: object, said: str) -> None:
    with pytest.raises(ValueError, match=r"env_kwargs\.one must") as raised:
        plain({"one": given}, "env_kwargs")
    assert said in str(raised.value)
