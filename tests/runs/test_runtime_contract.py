"""One contract for both runtimes: what `protocol.Runtime` promises holds in-process and on Ray alike."""

from __future__ import annotations

from typing import Any

import psutil
import pytest
from helpers import CASES

from distrl.build import work_spec
from distrl.errors import RunFailed
from distrl.resolve import resolve
from distrl.runtime.protocol import Runtime

pytestmark = pytest.mark.timeout(180)


def start(kind: str, fields: dict[str, Any], state: dict[str, Any] | None = None) -> Runtime:
    spec = work_spec(resolve(fields).config)
    if state is None:
        state = {"learner": spec.make_learner("cpu").state(), "groups": [None] * len(spec.group_sizes)}
    if kind == "local":
        from distrl.runtime.local import LocalRuntime

        return LocalRuntime(spec, state)
    from distrl.runtime.ray import RayRuntime

    return RayRuntime(spec, state, num_workers=2)


def iterate(runtime: Runtime, iterations: range) -> list[str]:
    """The digest after each iteration."""
    digests = []
    for iteration in iterations:
        runtime.submit(iteration, version=iteration)
        runtime.collected()
        digests.append(runtime.update(iteration / 10).digest)
    return digests


@pytest.mark.parametrize("kind", ["local", "ray"])
def test_a_runtime_keeps_the_contract(kind: str) -> None:
    fields = CASES["lstm"]
    first = start(kind, fields)
    try:
        before = first.snapshot()
        assert before.version == 0

        first.submit(0, version=0)
        reports = first.collected()
        assert [report.group for report in reports] == [0, 1, 2]
        assert {report.version for report in reports} == {0}
        assert [report.env_steps for report in reports] == [32, 32, 32]
        assert all(report.num_bytes > 0 and report.rss_bytes > 0 for report in reports)
        assert first.snapshot().digest == before.digest, "collecting changes no policy"
        assert first.collected() == reports, "the oldest, until it is learned from"
        assert first.state()["groups"] == [None] * 3, "not a boundary before the update"

        updated = first.update(0.0)
        assert updated.version == 1 and updated.digest != before.digest
        published = first.snapshot()
        assert (published.version, published.digest) == (1, updated.digest)

        rest = iterate(first, range(1, 4))
        kept = first.state()
        after = iterate(first, range(4, 6))
        assert first.take_warnings() == []
        spans = first.take_spans()
        if kind == "ray":
            assert set(spans) == {"learner", "worker 0", "worker 1"}
            assert all(totals.ns for totals in spans.values())
        assert first.take_spans() == {}, "a take leaves nothing"
        pids = {report.pid for report in reports}

        ended, version = first.state(), first.snapshot()
        first.close_envs()
        assert first.snapshot().digest == version.digest, "what was learned outlives the envs"
        assert first.state()["learner"]["version"] == ended["learner"]["version"] == 6
    finally:
        first.close()
    if kind == "ray":
        _gone, alive = psutil.wait_procs(
            [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=10
        )
        assert alive == []

    # the other kind goes on from the state of the first, and both end alike: nothing hides in a runtime
    second = start("local", fields, state=kept)
    try:
        assert iterate(second, range(4, 6)) == after
    finally:
        second.close()
    third = start("local", fields)
    try:
        assert iterate(third, range(4)) == [updated.digest, *rest]
    finally:
        third.close()


def overlapped(runtime: Runtime, fragments: range, lag: int) -> list[tuple[list[int], str]]:
    """Of each fragment: the versions that its groups were collected with, and the digest after it was learned from."""
    learned = []
    for fragment in range(fragments.start, fragments.start + lag):
        runtime.submit(fragment, version=max(fragment - lag, 0))
    for fragment in fragments:
        runtime.submit(fragment + lag, version=fragment)
        versions = [report.version for report in runtime.collected()]
        learned.append((versions, runtime.update(fragment / 10).digest))
    return learned


@pytest.mark.parametrize("kind", ["local", pytest.param("ray", marks=pytest.mark.slow)])
def test_a_runtime_overlaps_with_a_fixed_lag_and_its_state_is_enough_to_go_on(kind: str) -> None:
    fields = {**CASES["normalised"], "overlap": 2}
    first = start(kind, fields)
    try:
        whole = overlapped(first, range(5), lag=2)
        assert [versions for versions, _ in whole] == [[max(i - 2, 0)] * 3 for i in range(5)]
        assert len({digest for _, digest in whole}) == 5
    finally:
        first.close()
    second = start("local" if kind == "ray" else "ray", fields)
    try:
        assert overlapped(second, range(3), lag=2) == whole[:3]
        kept = second.state()  # with two fragments in flight
        assert set(kept["snapshots"]) == {"1", "2"}
    finally:
        second.close()
    third = start("local", fields, state=kept)
    try:
        assert overlapped(third, range(3, 5), lag=2) == whole[3:]
    finally:
        third.close()


@pytest.mark.parametrize(
    ("kind", "overlap"), [("local", 0), ("local", 1), pytest.param("ray", 0, marks=pytest.mark.slow)]
)
def test_a_runtime_tells_an_envs_failure_in_one_line_and_closes(kind: str, overlap: int) -> None:
    fields = {
        **CASES["image"],
        "env": "toys:Toy-v0",
        "env_kwargs": {"fault": "nan reward", "at": 12},
        "overlap": overlap,
    }
    runtime = start(kind, fields)
    try:
        runtime.submit(0, version=0)
        runtime.collected()
        runtime.update(0.0)
        boundary = runtime.state()
        with pytest.raises(RunFailed, match=r"env \d \(toys:Toy-v0\): reward is NaN or Inf at step 12"):
            runtime.submit(1, version=1)
            runtime.collected()
        assert runtime.state()["learner"]["version"] == boundary["learner"]["version"] == 1
    finally:
        runtime.close()
