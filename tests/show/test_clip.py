"""`distrl show clip`: the numbers, against the formula written out by hand, and its two files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from distrl.errors import BadInput
from distrl.resolve import resolve, write_config
from distrl.show import clip as picture
from distrl.show.style import read_numbers

RATIOS = [0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5]


@pytest.mark.parametrize("advantage", [1.0, -1.0, 2.5, -0.3])
@pytest.mark.parametrize("clip", [0.1, 0.2, 0.3])
def test_the_gradient_is_ratio_times_advantage_where_unclipped_and_zero_where_clipped(
    advantage: float, clip: float
) -> None:
    found = picture.evaluate(RATIOS, advantage, clip)
    for row, ratio in enumerate(RATIOS):
        moved_on = ratio > 1 + clip if advantage > 0 else ratio < 1 - clip
        assert found.used_clipped[row] == moved_on
        assert found.gradient[row] == pytest.approx(0.0 if moved_on else ratio * advantage, abs=1e-12)
        assert (found.gradient[row] == 0.0) == moved_on


@pytest.mark.parametrize("advantage", [1.0, -2.0])
def test_the_objective_is_the_smaller_and_its_slope_is_the_gradient(advantage: float) -> None:
    found = picture.evaluate(RATIOS, advantage, 0.2)
    by_hand = np.minimum(np.array(RATIOS) * advantage, np.clip(RATIOS, 0.8, 1.2) * advantage)
    np.testing.assert_allclose(found.objective, by_hand, rtol=1e-12)
    step = 1e-6
    up = picture.evaluate(np.array(RATIOS) * np.exp(step), advantage, 0.2).objective
    down = picture.evaluate(np.array(RATIOS) * np.exp(-step), advantage, 0.2).objective
    np.testing.assert_allclose(found.gradient, (up - down) / (2 * step), atol=1e-6)


def test_the_picture_and_its_numbers_are_written_for_a_runs_own_clip(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_config(tmp_path / "config.json", resolve({"algo": "ppo", "clip": 0.3}))
    out = tmp_path / "clip.png"
    picture.show(tmp_path, out, seed=1)
    assert out.read_bytes().startswith(b"\x89PNG")
    numbers = read_numbers(out)
    assert numbers["clip"] == 0.3
    rows = [row for table in numbers["table"] for row in table]
    assert {row["advantage"] for row in rows} == {1.0, -1.0}
    for side in (lambda ratio: ratio < 0.7, lambda ratio: ratio > 1.3):
        assert {row["used_clipped"] for row in rows if side(row["ratio"])} == {True, False}
    printed = capsys.readouterr().out
    assert printed.count("clipped") >= 4 and "0.7 and 1.3" in printed


def test_a_run_without_a_clip_is_bad_input(tmp_path: Path) -> None:
    write_config(tmp_path / "config.json", resolve({"algo": "a2c"}))
    with pytest.raises(BadInput, match="without a clip"):
        picture.show(tmp_path, tmp_path / "clip.png", seed=1)
