"""`distrl profile` as a person runs it, in-process, on an env whose step waits: what waits hardly feels other work."""

import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

from distrl.autopsy import search
from distrl.autopsy.measure import Effort, measure
from distrl.autopsy.prescribe import changed
from distrl.autopsy.search import grid, tune
from distrl.autopsy.trace import chrome_trace
from distrl.cli.main import run
from distrl.cli.parsing import parse
from distrl.resolve import resolve
from tests.autopsy.synthetic import LEARN, WORK, Iterations, costs_of, session

SLOW = [
    "--env",
    "benchmarks.planted:Planted/Slow-v0",
    "--env-kwargs.wait-sec",
    "0.004",
    "--num-envs",
    "4",
    "--groups",
    "2",
    "--num-steps",
    "8",
    "--workers",
    "0",
    "--minibatches",
    "2",
    "--epochs",
    "1",
    "--hidden-sizes",
    "8",
    "--no-tensorboard",
]


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one profile, with what it printed as standard output."""
    folder = tmp_path_factory.mktemp("profile") / "run"
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        status = run(["profile", *SLOW, "--seconds", "0.5", "--run-dir", str(folder), "--json"])
    assert status == 0
    (folder / "printed.json").write_text(out.getvalue())
    return folder


def test_it_names_the_env_and_every_second(profiled: Path) -> None:
    found = json.loads((profiled / "printed.json").read_text())
    assert found["bound"] == "env-bound" and "env step" in found["sentence"]
    shares = found["processes"]["driver"]
    assert sum(shares.values()) == pytest.approx(1.0)
    assert shares["env step"] > 0.5
    assert shares.get("other", 0.0) < 0.05
    assert sum(one["share"] for one in found["critical_path"]) == pytest.approx(1.0)
    assert found["span_overhead"]["share"] < 0.01


def test_it_prescribes_workers_for_an_env_that_waits(profiled: Path) -> None:
    found = json.loads((profiled / "printed.json").read_text())
    ranked = [round(one["gain"], 2) for one in found["prescriptions"]]  # ties: the curve kept comes first
    assert ranked == sorted(ranked, reverse=True)
    workers = [one for one in found["prescriptions"] if "workers" in one["changes"]]
    assert workers and workers[0]["assumed"] == ["transfer"]
    known = json.loads((profiled / "profile.json").read_text())
    assert known == found


def test_the_page_is_whole_in_itself(profiled: Path) -> None:
    page = (profiled / "profile.html").read_text()
    assert "default-src 'none'" in page
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    assert "env-bound" in page and "--workers" in page and "critical path" in page
    assert page.count("<rect") > 10


def test_the_trace_is_that_of_the_format(profiled: Path) -> None:
    trace = json.loads((profiled / "trace.json").read_text())
    assert {event["ph"] for event in trace["traceEvents"]} == {"X", "M", "i"}


def test_the_session_is_kept_as_a_run_where_its_directory_is_named(profiled: Path) -> None:
    assert (profiled / "metrics.jsonl").exists() and (profiled / "summary.json").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--seconds", "0"], "--seconds: must be above 0"),
        (["--seconds", "soon"], "--seconds: must be above 0"),
        (["--try", "7"], "--try: must be 1, 2 or 3"),
        (["--trace", "/nowhere/at/all.json"], "--trace: must name a file in a folder that exists"),
        (["--epocs", "4"], "--epochs"),
        (["--env", "CartPoole-v1"], "CartPole"),
    ],
)
def test_bad_input_is_told_before_anything_runs(
    flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["profile", *flags]) == 2
    assert said in capsys.readouterr().err


def test_all_problems_are_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["profile", "--seconds", "-1", "--try", "9", "--num-envs", "none"]) == 2
    said = capsys.readouterr().err
    assert "--seconds" in said and "--try" in said and "--num-envs" in said


def flags_of(words: list[str]) -> dict[str, Any]:
    return parse(words, {}).flags


def test_a_session_measures_whole_iterations_after_its_warm_up() -> None:
    resolved = resolve(flags_of(SLOW))
    seen = measure(resolved.config, resolved, Effort(seconds=0.2, iterations=2, warmup_iterations=1))
    assert 1 <= seen.iterations == len(seen.timeline.boundaries)
    assert seen.env_steps == 4 * 8
    assert seen.timeline.wall_ns == pytest.approx(seen.iteration_sec * seen.iterations * 1e9)
    # 8 steps of 2 groups of 2 envs, one after the other, 4 ms each
    assert seen.seconds("driver")["rollout: env step"] >= 8 * 4 * 0.004
    assert chrome_trace(seen.timeline)["traceEvents"]


def test_tuning_measures_what_promises_most_and_sorts_by_what_was_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = session([WORK | {"rollout: env step": 300.0}], LEARN, groups=4, num_envs=16)
    costs = costs_of(one, idle=1.0)
    points = grid(one.config, costs)
    assert {point.config.workers for point in points} >= {0, 1, 2, 4}
    assert any(not point.changes for point in points), "the session is a point of its own grid"
    by_default = one.config.model_copy(update={"groups": None})
    for point in grid(by_default, costs):
        printed = changed(by_default, point.changes)
        assert printed is not None and printed.group_sizes == point.config.group_sizes, (
            "the flags say all of it"
        )
    asked = []

    def half_of_what_was_promised(config: Any, *_: Any) -> Any:
        asked.append(config)
        promised = next(point.predicted for point in points if point.config == config)
        made = Iterations([WORK], LEARN, env_steps=1000)
        made.boundaries = [0, round(1000 / (0.5 * promised) * 1e9)]
        made.count, made.events = 1, {"driver": [("log", 0, made.boundaries[1])]}
        made.of_groups = {}
        return made.measured(config)

    monkeypatch.setattr(search, "measure", half_of_what_was_promised)
    tried = tune(resolve({}), one, costs, Effort())
    assert asked[0] == max(points, key=lambda point: point.predicted).config
    assert len(asked) <= search.MOST_MEASURED
    rates = [one.measured for one in tried]
    assert rates == sorted(rates, reverse=True)
