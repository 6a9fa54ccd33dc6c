"""An error is a line; its traceback is shown by `--traceback` and kept in the run directory's faults/."""

from __future__ import annotations

from pathlib import Path

import pytest

from distrl.errors import BadInput, RunFailed, translated
from distrl.run_directory import failure_of
from tests.wild.situation import distrl

ENV = """
import gymnasium, numpy

class Env(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (2,), numpy.float32)
    action_space = gymnasium.spaces.Discrete(2)
    steps = 0

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        return numpy.zeros(2, numpy.float32), {}

    def step(self, action):
        Env.steps += 1
        if Env.steps > 300:
            raise LookupError("the simulator lost its licence")
        return numpy.zeros(2, numpy.float32), 0.0, False, False, {}

gymnasium.register("Breaks-v0", Env)
"""


def test_what_an_env_raises_is_a_line_and_its_traceback_is_in_faults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "an_env_that_breaks.py").write_text(ENV)
    monkeypatch.syspath_prepend(tmp_path)
    flags = ["--env", "an_env_that_breaks:Breaks-v0", "--workers", "0", "--num-envs", "1", "--run-dir", "run"]
    ended = distrl(tmp_path, "train", *flags)
    assert ended.status == 1
    assert "Traceback" not in ended.err and "raised LookupError: the simulator lost its licence" in ended.err
    kept = tmp_path / "run" / "faults" / "error-1.txt"
    assert f"traceback in {kept}" in ended.err
    assert 'raise LookupError("the simulator lost its licence")' in kept.read_text()
    assert f"continue with: distrl train --resume {tmp_path / 'run'}" in ended.err


def test_the_traceback_of_bad_input_is_shown_when_asked_for(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    arguments = ["rlhf", "sft", "--model", "model", "--data", "nothing.jsonl"]
    plain = distrl(tmp_path, *arguments)
    asked = distrl(tmp_path, *arguments, "--traceback")
    assert plain.status == asked.status == 2
    assert "Traceback" not in plain.err
    assert "Traceback" in asked.err and asked.err.endswith(plain.err)


def test_a_librarys_error_becomes_a_line_with_its_cause() -> None:
    with pytest.raises(BadInput) as refused, translated("model cannot be read", "save it again"):
        raise KeyError("\n\n  the rope type is unknown\nlong explanation")
    assert len(str(refused.value).splitlines()) == 1
    assert str(refused.value).startswith("model cannot be read: KeyError: ")
    assert isinstance(refused.value.__cause__, KeyError)


@pytest.mark.parametrize("own", [BadInput("--x: wrong"), RunFailed("the disk is full")])
def test_our_own_errors_pass_unchanged(own: Exception) -> None:
    with pytest.raises(type(own)) as raised, translated("anything"):
        raise own
    assert raised.value is own


def test_a_traceback_that_cannot_be_written_hides_no_error(tmp_path: Path) -> None:
    (tmp_path / "faults").write_text("a file where the folder would be")
    assert str(failure_of(tmp_path, ValueError("x"), "continue")) == "ValueError: x\ncontinue"


def test_a_link_in_place_of_the_file_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "notes.txt"
    target.write_text("mine")
    (tmp_path / "faults").mkdir()
    (tmp_path / "faults" / "error-1.txt").symlink_to(target)
    (tmp_path / "faults" / "error-2.txt").symlink_to(tmp_path / "nothing")
    failed = str(failure_of(tmp_path, ValueError("x"), "continue"))
    assert target.read_text() == "mine" and not (tmp_path / "nothing").exists()
    assert failed.startswith("ValueError: x")
