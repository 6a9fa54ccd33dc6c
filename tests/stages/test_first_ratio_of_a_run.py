"""A run whose sampling is not its policy ends in iteration 1 and names the flags, wherever roles live."""

from __future__ import annotations

from pathlib import Path

import pytest

from distrl.rlhf.ways import Way
from distrl.stages import ppo
from distrl.stages.paths import Paths
from tests.stages.conftest import command, ppo_flags, records, summary
from tests.wild import kit


@pytest.fixture
def wrong(workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Flags of a Falcon that is sampled from by a path that does not fit it, as if that had not been proved."""
    kit.save(tmp_path / "falcon", kit.byte_level(), "falcon", std=0.2)
    monkeypatch.setattr(ppo, "proved", lambda *given: Paths(Way("stored", True), True, ()))
    return [
        *ppo_flags(tmp_path / "run", "--model", str(tmp_path / "falcon")),
        "--algo",
        "rloo",
        "--group-size",
        "2",
    ]


def test_a_first_ratio_beyond_its_bound_ends_the_run(
    wrong: list[str], workplace: Path, tmp_path: Path
) -> None:
    told = command(workplace, *wrong, status=1).stderr
    assert "the first ratio must be 1" in told and "--no-fast-paths" in told and "--exact-ratio" in told
    assert "Traceback" not in told and not (tmp_path / "run" / "metrics.jsonl").read_text()
    assert summary(tmp_path / "run")["exit_reason"].startswith("failed: the first ratio")


def test_log_probs_computed_again_go_on_and_say_what_they_hide(
    wrong: list[str], workplace: Path, tmp_path: Path
) -> None:
    command(workplace, *wrong, "--exact-ratio", "--iterations", "1")
    assert records(tmp_path / "run")[0]["first_ratio_deviation"] == 0
    assert any("nats a token in the first iteration" in one for one in summary(tmp_path / "run")["warnings"])


def test_a_run_keeps_the_paths_that_were_proved_and_says_on_resume_where_they_differ(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    command(workplace, *ppo_flags(run, "--iterations", "1"))
    paths = {"generation": "stored, one-query attention", "activations": "fused"}
    assert summary(run)["paths"] == paths
    command(workplace, "rlhf", "ppo", "--resume", str(run), "--iterations", "2")
    assert not any("paths" in one for one in summary(run)["warnings"])
    monkeypatch.setattr(ppo, "proved", lambda *given: Paths(Way("stored", False), True, ()))
    command(workplace, "rlhf", "ppo", "--resume", str(run), "--iterations", "3")
    assert any("one-query attention -> stored" in one for one in summary(run)["warnings"])
