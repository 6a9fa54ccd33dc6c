"""Rows given from Python train what a file of them trains, and the run is resumed without them."""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import distrl
from distrl.stages.rows import rows_as_files
from tests.stages.conftest import command, records, same_parameters

TRAINED = {"tensorboard": False, "epochs": 2, "batch_size": 8, "learning_rate": 1e-3, "checkpoint_every": 1}
FLAGS = ("--no-tensorboard", "--epochs", "2", "--batch-size", "8", "--learning-rate", "1e-3")


@pytest.fixture(autouse=True)
def in_the_workplace(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    monkeypatch.setattr(sys, "path", [*sys.path])


def rows_of(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_an_iterator_trains_what_its_file_trains_and_the_run_is_resumed_from_its_directory(
    workplace: Path, tmp_path: Path
) -> None:
    outcome = distrl.rlhf_sft("gpt2", iter(rows_of("sft.jsonl")), run_dir=tmp_path / "rows", **TRAINED)
    flags = ("--model", "gpt2", "--data", "sft.jsonl", "--run-dir", str(tmp_path / "file"), *FLAGS)
    command(workplace, "rlhf", "sft", *flags)
    same_parameters(tmp_path / "rows", tmp_path / "file")
    kept = tmp_path / "rows" / "data.jsonl"
    assert rows_of(str(kept)) == rows_of("sft.jsonl")
    assert json.loads((outcome.run_dir / "config.json").read_text())["data"] == str(kept)
    assert any(str(kept) in warning for warning in outcome.summary["warnings"])
    before = records(tmp_path / "rows")
    for newest in sorted((tmp_path / "rows" / "checkpoints").iterdir())[-2:]:
        for file in sorted(newest.rglob("*"), reverse=True):
            file.unlink()
        newest.rmdir()
    (tmp_path / "rows" / "summary.json").unlink()
    distrl.resume(tmp_path / "rows")
    assert records(tmp_path / "rows") == before
    kept.write_text(kept.read_text() + kept.read_text())
    (tmp_path / "rows" / "summary.json").unlink()
    with pytest.raises(distrl.BadInput, match="started with other data"):
        distrl.resume(tmp_path / "rows")


def test_prompts_of_ppo_and_of_an_evaluation_may_be_rows_with_columns_of_other_names(tmp_path: Path) -> None:
    asked = [{"question": row["prompt"], "level": n} for n, row in enumerate(rows_of("prompts.jsonl"))]
    outcome = distrl.rlhf_ppo(
        "gpt2", asked, eval_prompts=asked[:2], field={"prompt": "question"}, reward_function="my_reward:score",
        num_prompts=4, iterations=1, max_response=4, tensorboard=False, run_dir=tmp_path / "run",
    )  # fmt: skip
    assert rows_of(str(outcome.run_dir / "prompts.jsonl")) == asked
    assert rows_of(str(outcome.run_dir / "eval_prompts.jsonl")) == asked[:2]
    told = distrl.rlhf_evaluate(outcome.run_dir, prompts=asked[:3], max_response=4)
    assert told["prompts"] == 3, "the run's own --field holds here too"
    assert distrl.rlhf_evaluate(outcome.run_dir, max_response=4)["prompts"] == 2


class Frame:
    """What pandas' DataFrame has."""

    columns = ("prompt", "completion")

    def to_dict(self, orient: str) -> list[dict[str, Any]]:
        assert orient == "records"
        return [{"prompt": "a", "completion": float("nan")}, {"prompt": "b", "completion": "c"}]


class Polars(Frame):
    """What polars' DataFrame has."""

    def to_dict(self) -> Any:  # type: ignore[override]
        raise NotImplementedError("of columns")

    def iter_rows(self, named: bool) -> Iterator[dict[str, Any]]:
        assert named
        yield {"prompt": "a"}


class Table:
    """What pyarrow's Table has."""

    def to_pylist(self) -> list[dict[str, Any]]:
        return [{"prompt": "a"}]


class Indexed:
    """What torch's Dataset has."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, n: int) -> dict[str, Any]:
        if n >= 2:
            raise IndexError
        return {"prompt": str(n)}


def broken() -> Iterator[dict[str, Any]]:
    yield {"prompt": "a"}
    raise KeyError("gone")


GIVEN: list[tuple[Any, list[dict[str, Any]]]] = [
    ([{"prompt": "a"}], [{"prompt": "a"}]),
    (({"prompt": str(n)} for n in range(2)), [{"prompt": "0"}, {"prompt": "1"}]),
    (Frame(), [{"prompt": "a", "completion": None}, {"prompt": "b", "completion": "c"}]),
    (Polars(), [{"prompt": "a"}]),
    (Table(), [{"prompt": "a"}]),
    (Indexed(), [{"prompt": "0"}, {"prompt": "1"}]),
    (
        [
            {
                "prompt": "a",
                "n": np.int64(3),
                "v": np.ones(2),
                "day": datetime.date(2026, 1, 2),
                "t": (1, None),
            }
        ],
        [{"prompt": "a", "n": 3, "v": [1.0, 1.0], "day": "2026-01-02", "t": [1, None]}],
    ),
]


@pytest.mark.parametrize(("given", "rows"), GIVEN)
def test_rows_of_every_kind_are_written_as_json(given: Any, rows: list[dict[str, Any]]) -> None:
    with rows_as_files({"prompts": given, "model": "m"}) as (values, files):
        assert values["model"] == "m" and values["prompts"] == str(files["prompts"])
        assert rows_of(values["prompts"]) == rows
    assert not files["prompts"].exists()


REFUSED: list[tuple[Any, str]] = [
    ([], "no rows were given"),
    (["a"], r"row 1 must be a dict, such as \{'prompt': ...\}, got str"),
    (3, "must be a path or rows .dicts., got int"),
    ({"train": [], "test": []}, "a dict of train, test; give one split"),
    ([{"prompt": "a", "picture": b"x"}], "row 1 must be what JSON can hold: a value of type bytes"),
    (broken(), "could not be read: KeyError: 'gone'"),
]


@pytest.mark.parametrize(("given", "told"), REFUSED)
def test_what_is_no_rows_is_refused_in_one_line(given: Any, told: str) -> None:
    with pytest.raises(distrl.BadInput, match=f"--data: .*{told}") as refused:
        distrl.rlhf_sft("gpt2", given)
    assert len(refused.value.problems) == 1


def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: The first.
        b: The second.
    """
    return a + b


def test_tools_are_dicts_or_functions() -> None:
    with rows_as_files({"tools": [{"type": "function", "function": {"name": "look"}}, add]}) as (
        values,
        files,
    ):
        look, added = json.loads(Path(values["tools"]).read_text())
        assert files["tools"].name == "tools.json"
    assert look == {"type": "function", "function": {"name": "look"}}
    assert added["function"]["name"] == "add"
    assert added["function"]["parameters"]["required"] == ["a", "b"]
    with rows_as_files({"tools": "tools.json"}) as (values, files):
        assert values == {"tools": "tools.json"} and not files


@pytest.mark.parametrize(
    ("tools", "told"),
    [
        ({"name": "add"}, "got dict; put one tool in a list"),
        (add, "got function; put one tool in a list"),
        ([3], "tool 1 must be a dict"),
        ([{"name": "add"}, lambda a: a], "made of tool 2: .*; give the schema itself, as a dict"),
        ([{"default": object()}], "what JSON can hold"),
    ],
)
def test_what_is_no_list_of_tools_is_refused_in_one_line(tools: Any, told: str) -> None:
    with (
        pytest.raises(distrl.BadInput, match=f"^--tools: .*{told}") as refused,
        rows_as_files({"tools": tools}),
    ):
        pass
    assert len(str(refused.value).splitlines()) == 1


def test_a_row_that_cannot_be_used_is_named_by_its_number() -> None:
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": 3}]
    with pytest.raises(distrl.BadInput, match="--data: row 2: 'completion' must be text") as refused:
        distrl.rlhf_sft("gpt2", rows)
    assert "/tmp" not in str(refused.value)


def test_paths_are_left_as_they_are() -> None:
    given = {"data": Path("x.jsonl"), "held-out": "y.jsonl"}
    with rows_as_files(given) as (values, files):
        assert values == given and not files
