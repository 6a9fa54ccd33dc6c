"""Every situation ends as it must; the slow ones in `make test-slow`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.wild.situation import AREAS, Situation, every, judge

ALL = every()


@pytest.mark.parametrize(
    "situation",
    [pytest.param(one, id=one.id, marks=[pytest.mark.slow] if one.slow else []) for one in ALL],
)
def test_the_situation_ends_as_it_must(situation: Situation, tmp_path: Path) -> None:
    verdict = judge(situation, tmp_path)
    assert verdict.kind == situation.expected, verdict.why


def test_situations_have_names_of_their_own_and_a_known_area() -> None:
    assert len({one.id for one in ALL}) == len(ALL)
    assert {one.area for one in ALL} <= set(AREAS)
