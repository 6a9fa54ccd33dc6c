"""`distrl show tokens` without a run: a small language model is trained to count, and shown."""

from pathlib import Path

import pytest

from distrl.cli.main import run
from distrl.show import counting
from distrl.show.style import read_numbers


def test_without_a_run_a_small_one_is_trained_and_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counting, "DEMONSTRATIONS", 256)
    monkeypatch.setattr(counting, "ITERATIONS", 2)
    assert run(["show", "tokens", "--out", str(tmp_path / "tokens.png")]) == 0
    assert (tmp_path / "tokens.png").stat().st_size > 20_000
    numbers = read_numbers(tmp_path / "tokens.png")
    assert numbers["iteration"] == 2
    for one in numbers["episodes"]:
        assert one["score"] == counting.score(one["prompt"], one["response"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokens.json", "tokens.png"]


def test_the_score_counts_words_that_count_on_less_those_that_do_not() -> None:
    assert counting.score("one two", "three four five .") == 3
    assert counting.score("eleven twelve", "one two nine") == 1
    assert counting.score("one two", ".") == 0


@pytest.mark.slow
def test_the_small_model_learns_to_count(tmp_path: Path) -> None:
    assert run(["show", "tokens", "--out", str(tmp_path / "tokens.png")]) == 0
    shown = read_numbers(tmp_path / "tokens.png")["episodes"]
    assert max(one["score"] for one in shown) >= counting.LONGEST - 2
