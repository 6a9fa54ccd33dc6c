"""Reward functions given as Python objects have names that a configuration can hold."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import pytest

from distrl.errors import BadInput
from distrl.rlhf import given_functions
from distrl.rlhf.given_functions import given, named, resumed
from distrl.rlhf.reward_calls import Callee
from tests.rlhf.reward_functions import letters


class Judge:
    def __call__(self, prompt: str, response: str) -> float:
        return 1.0


@pytest.fixture(autouse=True)
def _known() -> Iterator[None]:
    """What a test registers is not another's."""
    before = dict(given_functions._GIVEN)
    yield
    given_functions._GIVEN.clear()
    given_functions._GIVEN.update(before)


def test_an_importable_function_goes_by_its_module_and_others_by_their_own_name() -> None:
    judge, first, second = Judge(), lambda prompt, response: 1.0, lambda prompt, response: 2.0
    names = named([letters, judge, first, second, functools.partial(letters), "m:f"])
    assert names == (
        "tests.rlhf.reward_functions:letters", "python:Judge", "python:lambda", "python:lambda_2", "python:partial", "m:f",
    )  # fmt: skip
    assert given("python:lambda_2") is second and given("python:Judge") is judge and given("m:f") is None
    assert named("m:f") == "m:f" and named(None) is None


class Failing:
    """Attributes fail, of one name or all that it does not have; a call would not."""

    def __init__(self, name: str | None = None) -> None:
        self.name = name

    def __getattr__(self, name: str) -> Any:
        if self.name in (None, name):
            raise RuntimeError(f"{name} is not ready")
        raise AttributeError(name)

    def __call__(self, prompt: str, response: str) -> float:
        return 1.0


class AllFail(Failing):
    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(f"{name} is not ready")


@pytest.mark.parametrize("kind", [Failing, AllFail])
def test_an_object_whose_attributes_raise_is_refused_in_one_line(kind: Any) -> None:
    judge = kind()
    for functions in (judge, [letters, judge]):
        with pytest.raises(BadInput, match="RuntimeError: __\\w+__ is not ready; give a function") as told:
            named(functions)
        assert len(told.value.problems) == 1
    with pytest.raises(BadInput, match="could not be inspected: RuntimeError"):
        Callee(judge)


def test_an_object_whose_signature_raises_is_refused_in_one_line() -> None:
    assert named(Failing("__signature__")) == ("python:Failing",)
    with pytest.raises(BadInput, match="RuntimeError: __signature__ is not ready; give a function"):
        Callee(Failing("__signature__"))


def test_another_process_is_told_to_give_it_again_and_then_goes_on() -> None:
    score = lambda prompt, response: 1.0  # noqa: E731
    before = named(score)
    given_functions._GIVEN.clear()
    with pytest.raises(BadInput, match=r"distrl.resume\(RUN_DIR, reward_function"):
        given("python:lambda")
    assert resumed(score, before) is None and given("python:lambda") is score
    assert resumed(letters, before) == ("tests.rlhf.reward_functions:letters",), "another function is refused"
