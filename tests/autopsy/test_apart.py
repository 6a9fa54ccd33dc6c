"""A fused rollout's one loop, split by what its parts take when they are timed apart."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distrl.autopsy.apart import parts_apart, split
from distrl.autopsy.bound import find_bound
from distrl.autopsy.categories import ENV, FUSED, INFERENCE, ROWS, SAMPLING
from distrl.autopsy.model import fit, predict
from distrl.autopsy.probe import Line, Rollout
from distrl.build import work_spec
from distrl.cli.main import run
from distrl.resolve import resolve
from tests.autopsy.synthetic import LEARN, config, session

FUSED_WORK = {"rollout: fused": 300.0, "rollout: rows": 5.0}


def spec_of(**flags: Any) -> Any:
    return work_spec(resolve({"workers": 0, "num_envs": 8, "groups": 1, **flags}).config)


@pytest.mark.slow  # compiles the loop with each part alone
def test_a_profile_names_the_parts_of_a_fused_rollout(tmp_path: Path) -> None:
    out, folder = io.StringIO(), tmp_path / "run"
    flags = ["--workers", "0", "--num-envs", "64", "--epochs", "1", "--seconds", "0.4", "--no-tensorboard"]
    with contextlib.redirect_stdout(out):
        assert run(["profile", *flags, "--run-dir", str(folder), "--json"]) == 0
    found = json.loads(out.getvalue())
    shares = found["processes"]["driver"]
    assert sum(shares.values()) == pytest.approx(1.0)
    assert shares[ENV] > 0 and shares[INFERENCE] > 0 and shares[SAMPLING] > 0
    assert FUSED not in shares
    assert sum(one["share"] for one in found["critical_path"]) == pytest.approx(1.0)
    assert FUSED not in {one["category"] for one in found["critical_path"]}
    assert sum(found["measured_apart"].values()) == pytest.approx(1.0)
    page = (folder / "profile.html").read_text()
    assert "env step *" in page and "measured apart" in page


def test_a_wider_policy_takes_more_of_the_loop_than_a_narrow_one() -> None:
    narrow, wide = (parts_apart(spec_of(hidden_sizes=(size, size)), 8) for size in (8, 512))
    assert wide[INFERENCE] > narrow[INFERENCE]  # 4,000 times the arithmetic
    assert sum(narrow.values()) == pytest.approx(1.0)
    assert parts_apart(spec_of(rollout="stepwise"), 8) == {}


def test_parts_are_given_the_whole() -> None:
    apart = {ENV: 0.5, INFERENCE: 0.3, SAMPLING: 0.2}
    assert split({FUSED: 10.0, INFERENCE: 1.0, ROWS: 2.0}, apart) == {
        INFERENCE: 4.0,
        ROWS: 2.0,
        ENV: 5.0,
        SAMPLING: 2.0,
    }
    assert split({FUSED: 10.0}, {}) == {FUSED: 10.0}


@pytest.mark.parametrize(
    ("env", "bound", "said"),
    [(0.6, "env-bound", "env step, 1.4 ms"), (0.1, "inference-bound", "inference, 2.1 ms")],
)
def test_the_bound_is_named_by_the_larger_part(env: float, bound: str, said: str) -> None:
    one = session([FUSED_WORK] * 2, LEARN)
    costs = fit(one, Rollout({FUSED: Line(0.0, 1e-3)}, Line(0.0, 0.0), 0.0, 0.0), Line(1e-4, 1e-6), {1: 1.0})
    costs = replace(costs, cores=2, apart={ENV: env, INFERENCE: 0.7 - env, SAMPLING: 0.3})
    found = find_bound(one, costs)
    assert found.kind == bound
    assert said in found.sentence


def test_threads_share_the_groups_of_a_fused_rollout() -> None:
    one = session([FUSED_WORK] * 2, LEARN, groups=4, num_envs=16)
    costs = replace(
        fit(
            one,
            Rollout({FUSED: Line(0.0, 1e-3)}, Line(0.0, 0.0), 0.0, 0.0),
            Line(1e-4, 1e-6),
            {1: 1.0, 2: 1.0},
        ),
        cores=4,
    )
    flags = {"workers": 0, "groups": 4, "num_envs": 16}
    alone, both, more = (
        predict(config(**flags, learner_threads=count), costs).parts["collect"] for count in (1, 2, 3)
    )
    assert both == pytest.approx(alone / 2)
    assert more == pytest.approx(alone / 2), "three threads still play four groups in two turns"
    stepwise = replace(costs, rollout=replace(costs.rollout, step={ENV: Line(0.0, 1e-3)}))
    for_one, for_two = (
        predict(config(**flags, learner_threads=count), stepwise).parts["collect"] for count in (1, 2)
    )
    assert for_one == pytest.approx(for_two)
