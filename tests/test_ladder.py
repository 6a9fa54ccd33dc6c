"""`distrl ladder --run`: the numbers of its report by hand-made runs, and a real small ladder, stopped and gone on with."""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from distrl.errors import BadInput
from distrl.ladder import run_ladder
from distrl.ladder import runs as runs_module
from distrl.ladder.report import render
from distrl.ladder.results import RungResult, RunResult, bootstrap, first_solved, grid, read_run, read_rungs
from distrl.ladder.runs import Job, Settings
from distrl.recipes import LADDER

FACTS = {"command": "distrl ladder", "made": "now", "git_revision": None, "machine": {}, "versions": {}}


def write_run(folder: Path, algo: str, seed: int, records: list[tuple[int, int, float | None]]) -> Path:
    """A finished run of which each record is (env_steps, episodes ended, mean return)."""
    folder.mkdir(parents=True)
    lines = [
        json.dumps({"iteration": k, "env_steps": steps, "episodes": ended, "episode_return_mean": mean})
        + "\n"
        for k, (steps, ended, mean) in enumerate(records, start=1)
    ]
    (folder / "metrics.jsonl").write_text("".join(lines))
    (folder / "config.json").write_text(json.dumps({"algo": algo, "seed": seed}))
    summary = {
        "exit_reason": "finished", "env_steps": records[-1][0], "wall_sec": 2.0, "parameters_sha256": "0" * 64,
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def run_result(algo: str, seed: int, final: float, solved_at: int | None) -> RunResult:
    curve = np.linspace(0, final, len(grid(1000)))
    return RunResult(algo, seed, curve, final, solved_at, 1000, 120, 1.0, "0" * 64)


def rung_result(algo: str, runs: list[RunResult]) -> RungResult:
    curves = np.stack([run.curve_G for run in runs])
    mean = curves.mean(axis=0)
    return RungResult(algo, "one idea", runs, mean, mean, mean, 1.0, (0.5, 1.5))


def test_solved_is_the_first_step_with_a_hundred_episodes_at_the_threshold() -> None:
    steps, ended = np.array([10, 20, 30, 40]), np.array([50, 99, 100, 140])
    assert first_solved(steps, np.array([500.0, 500, 480, 500]), ended, 475.0) == 30
    assert first_solved(steps, np.array([500.0, 500, 474, 475]), ended, 475.0) == 40
    assert first_solved(steps, np.array([500.0, 500, 474, 474]), ended, 475.0) is None
    assert first_solved(steps, np.array([500.0, 500, 480, 500]), ended, None) is None


def test_a_curve_holds_the_value_that_stood_at_each_step(tmp_path: Path) -> None:
    records = [(100, 0, None), (250, 2, 10.0), (600, 98, 20.0), (1000, 1, 30.0)]
    run = read_run(write_run(tmp_path / "run", "ppo", 3, records), grid(1000), threshold=20.0)
    assert run is not None
    at = dict(zip(grid(1000), run.curve_G, strict=True))
    assert [at[step] for step in (0, 250, 595, 600, 995, 1000)] == [10, 10, 10, 20, 20, 30]
    assert (run.final_return, run.solved_at, run.episodes, run.seed) == (30.0, 600, 101, 3)
    nothing = write_run(tmp_path / "nothing", "ppo", 4, [(100, 0, None)])
    assert read_run(nothing, grid(1000), threshold=None) is None


def test_the_band_is_that_of_all_resamples_of_the_seeds() -> None:
    value_SG = np.array([[0.0, 5.0], [3.0, 5.0], [9.0, 5.0]])
    low, high = bootstrap(value_SG, np.random.default_rng(0))
    every = [np.mean([value_SG[s, 0] for s in chosen]) for chosen in itertools.product(range(3), repeat=3)]
    exact = np.percentile(np.repeat(every, 100), [2.5, 97.5])  # repeated: no interpolation between so few
    assert (low[0], high[0]) == pytest.approx(tuple(exact))
    assert low[0] < value_SG[:, 0].mean() < high[0]
    assert low[1] == high[1] == 5.0


def test_rungs_come_in_the_ladders_order_with_the_mean_over_seeds(tmp_path: Path) -> None:
    paths = [
        write_run(tmp_path / f"{algo}-{seed}", algo, seed, [(500, 100, 10.0 * seed), (1000, 1, 20.0 * seed)])
        for algo in ("ppo", "reinforce")
        for seed in (2, 1)
    ]
    reinforce, ppo = read_rungs(paths, 1000, threshold=35.0)
    assert (reinforce.algo, ppo.algo) == ("reinforce", "ppo")
    assert [run.seed for run in ppo.runs] == [1, 2]
    assert (ppo.mean_G[0], ppo.mean_G[-1], ppo.final_mean) == (15.0, 30.0, 30.0)
    assert ppo.num_solved == 1 and [run.solved_at for run in ppo.runs] == [None, 1000]
    assert (ppo.low_G <= ppo.mean_G).all() and (ppo.mean_G <= ppo.high_G).all()


@pytest.mark.parametrize(
    ("solved", "median"), [([10, 20, 30], 20), ([10, 20, None], 20), ([10, None, None], None), ([10, 20], 15)]
)
def test_the_median_counts_seeds_that_never_solved_it(solved: list[int | None], median: float | None) -> None:
    runs = [run_result("ppo", seed, 1.0, at) for seed, at in enumerate(solved)]
    assert rung_result("ppo", runs).median_solved_at == median


@pytest.mark.parametrize("threshold", [475.0, None])
def test_the_page_needs_nothing_else_and_escapes_what_it_shows(threshold: float | None) -> None:
    rungs = [
        rung_result(
            algo, [run_result(algo, 1, 480.0, 900 if threshold else None), run_result(algo, 2, 20.0, None)]
        )
        for algo in LADDER
    ]
    html = render(Settings("<b>My-v0", 1000, 0), rungs, threshold, FACTS)
    assert "<b>My" not in html and "&lt;b&gt;My-v0" in html
    assert html.count("1 of 2") == (len(LADDER) if threshold else 0)
    assert not any(word in html.replace("http-equiv", "") for word in ("http:", "https:", "src=", "@import"))
    assert not any(word in html for word in ("nan", "None", "inf,"))


def test_a_run_is_started_anew_or_gone_on_with(tmp_path: Path) -> None:
    settings = Settings("CartPole-v1", 1000, 0)
    job = Job("a2c", 7, tmp_path / "a2c-s7", tmp_path / "log")
    new = job.command(settings)
    assert {"--algo=a2c", "--seed=7", "--total-steps=1000", f"--run-dir={job.run_dir}"} <= set(new)
    job.run_dir.mkdir()
    (job.run_dir / "config.json").write_text("{}")
    assert job.command(settings)[-2:] == ["--resume", str(job.run_dir)]
    assert not job.finished
    (job.run_dir / "summary.json").write_text('{"exit_reason": "interrupted by SIGTERM"}')
    assert not job.finished


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    "rungs", [("reinforce", "ppo"), pytest.param(tuple(LADDER), marks=pytest.mark.slow)], ids=["two", "all"]
)
def test_a_small_ladder_trains_its_rungs_and_a_second_call_trains_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rungs: tuple[str, ...]
) -> None:
    monkeypatch.setattr(runs_module, "LADDER", {name: LADDER[name] for name in rungs})
    out = tmp_path / "ladder"
    report = run_ladder(env="CartPole-v1", seeds=1, total_steps=600, out=out, jobs=2)
    numbers = json.loads((out / "ladder.json").read_text())
    assert [rung["algo"] for rung in numbers["rungs"]] == list(rungs)
    for rung in numbers["rungs"]:
        (run,) = rung["runs"]
        assert run["env_steps"] >= 600 and math.isfinite(rung["final_mean"])
        summary = json.loads((out / "runs" / f"{rung['algo']}-s1" / "summary.json").read_text())
        assert summary["parameters_sha256"] == run["parameters_sha256"]
    assert numbers["reward_threshold"] == 475.0 and numbers["versions"]["torch"]
    assert "CartPole-v1" in report.read_text()

    logs = {path: path.read_bytes() for path in (out / "logs").iterdir()}
    report.unlink()
    assert run_ladder(env="CartPole-v1", seeds=1, total_steps=600, out=out) == report
    assert report.exists() and logs == {path: path.read_bytes() for path in (out / "logs").iterdir()}
    with pytest.raises(BadInput, match="total_steps 600"):
        run_ladder(env="CartPole-v1", seeds=1, total_steps=700, out=out)


@pytest.mark.parametrize(("env", "said"), [("CartPol-v1", "CartPole-v1"), ("Pendulum-v9", "Pendulum-v1")])
def test_an_unknown_env_is_bad_input_before_anything_is_written(tmp_path: Path, env: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        run_ladder(env=env, seeds=1, total_steps=600, out=tmp_path / "ladder")
    assert not (tmp_path / "ladder").exists()


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(BadInput, match="something else"):
        run_ladder(env="CartPole-v1", seeds=1, total_steps=600, out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_ladder_leaves_checkpoints_and_no_process(tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "ladder"
    command = [sys.executable, "-m", "distrl", "ladder", "--run", "--seeds=1", "--jobs=2", f"--out={out}"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    metrics = [out / "runs" / name / "metrics.jsonl" for name in ("reinforce-s1", "reinforce-baseline-s1")]
    deadline = time.monotonic() + 120
    while not all(path.exists() and path.stat().st_size for path in metrics):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.2)
    process.send_signal(number)
    process.communicate(timeout=90)
    assert process.returncode == 130
    for path in metrics:
        summary = json.loads((path.parent / "summary.json").read_text())
        assert summary["exit_reason"] == "interrupted by SIGTERM"
        saved = max(int(folder.name) for folder in (path.parent / "checkpoints").iterdir())
        assert saved == summary["iterations"] > 0
    mine = [Path(f"/proc/{pid}/cmdline") for pid in os.listdir("/proc") if pid.isdecimal()]
    texts = [path.read_bytes().decode(errors="replace") for path in mine if path.exists()]
    assert not [text for text in texts if str(out) in text]
