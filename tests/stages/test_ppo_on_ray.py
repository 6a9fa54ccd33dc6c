"""`distrl rlhf ppo` with roles on Ray: tables of roles, a cluster that is joined, and runs that are ended from outside."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from distrl.checkpoint import latest_checkpoint
from tests.runs.helpers import MARKER, processes_of, wait_until_gone
from tests.stages.conftest import command, ppo_flags, same_run, start, summary, until

Undisturbed = Callable[..., Path]
Start = Callable[..., subprocess.Popen[str]]

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

# Ray's own processes look for their dead parent only once they have started, which takes long on a busy machine
GONE_WITHIN_SEC = 40.0
# of a node, which look once a minute whether it is still there
AGENTS, AGENTS_GONE_WITHIN_SEC = ("ray::DashboardAgent", "ray::RuntimeEnvAgent"), 150.0
PATIENT = ("--placement-timeout-sec", "200")
TABLE = """
micro_batch = 1

[roles.actor]
workers = 2
cpus = 0.5

[roles.critic]
together_with = "actor"
offload = true

[roles.reward]
together-with = "reference"
offload = true
"""


@pytest.fixture
def marked(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Start, Callable[[], list[str]]]]:
    """Starts commands whose processes carry a mark, and says which of them are left when they should be gone."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    marker = uuid.uuid4().hex
    with tempfile.TemporaryDirectory(prefix="dr", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield (
            lambda *arguments, **more: start(
                workplace, *arguments, **{"RAY_TMPDIR": folder, MARKER: marker, **more}
            ),
            lambda: wait_until_gone(marker, GONE_WITHIN_SEC),
        )
        for process in processes_of(marker):
            process.kill()


def has_records(run: Path) -> bool:
    return (run / "metrics.jsonl").exists() and bool((run / "metrics.jsonl").read_text())


def begun_by(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Every process that lives below it: Ray's own, its workers with the roles, those that compute rewards."""
    return psutil.Process(process.pid).children(recursive=True)


def names(processes: list[psutil.Process]) -> str:
    told = []
    for one in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            told.append(" ".join(one.cmdline())[:60])
    return "\n".join(told)


def test_a_table_of_roles_in_toml_places_them_and_changes_no_bit(
    undisturbed: Undisturbed, tmp_path: Path, marked: tuple[Start, Callable[[], list[str]]]
) -> None:
    begin, left = marked
    (tmp_path / "roles.toml").write_text(TABLE)
    run = tmp_path / "run"
    process = begin(*ppo_flags(run, *PATIENT, "--config", str(tmp_path / "roles.toml")))
    _, said = process.communicate(timeout=240)
    assert process.returncode == 0, said
    hosts = {"generator+actor+critic 0", "generator+actor+critic 1", "reference+reward"}
    assert set(summary(run)["spans"]) == {*hosts, "driver"}
    same_run(run, undisturbed("--micro-batch", "1"))
    assert left() == []


def test_a_cluster_named_by_the_environment_is_asked_for_room_and_then_used(
    undisturbed: Undisturbed,
    tmp_path: Path,
    marked: tuple[Start, Callable[[], list[str]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import ray

    begin, left = marked
    with tempfile.TemporaryDirectory(prefix="dr", dir="/tmp", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        ray.init(address="local", num_cpus=2, include_dashboard=False)
        try:
            address = ray.get_runtime_context().gcs_address
            run = tmp_path / "run"
            process = begin(*ppo_flags(run, "--placement", "separate"), RAY_ADDRESS=address)
            _, said = process.communicate(timeout=120)
            assert process.returncode == 2, said
            assert "the placement does not fit the Ray cluster: 4 CPUs needed, 2 there" in said
            lines = [line.split() for line in said.splitlines()]
            assert ["needed", "4", "4", "0"] in lines and ["in", "the", "cluster", "2", "0"] in lines
            assert "--workers" not in said, "which this command lacks"
            assert list(tmp_path.iterdir()) == []
            assert ray.available_resources()["CPU"] == 2
            process = begin(*ppo_flags(run, *PATIENT, "--placement", "colocate"), RAY_ADDRESS=address)
            _, said = process.communicate(timeout=240)
            assert process.returncode == 0, said
            assert left() == []
        finally:
            ray.shutdown()
    same_run(run, undisturbed())


def test_a_driver_killed_leaves_no_role_behind_and_the_resumed_run_ends_as_an_undisturbed_one(
    undisturbed: Undisturbed, tmp_path: Path, marked: tuple[Start, Callable[[], list[str]]]
) -> None:
    begin, left = marked
    run = tmp_path / "run"
    process = begin(*ppo_flags(run, *PATIENT, "--iterations", "8", "--placement", "separate"))
    until(lambda: has_records(run), process, 200.0)
    begun = begun_by(process)
    agents = [one for one in begun if names([one]).startswith(AGENTS)]
    told = names([one for one in begun if one not in agents])
    assert told.count("ray::") >= 4 and "distrl.rlhf.reward_process" in told, told
    process.kill()
    process.wait()
    of_roles = [one for one in begun if one not in agents]
    assert names(psutil.wait_procs(of_roles, GONE_WITHIN_SEC)[1]) == ""
    assert left() == [], "and none that came later"
    assert names(psutil.wait_procs(agents, AGENTS_GONE_WITHIN_SEC)[1]) == ""
    process.communicate()
    assert not (run / "summary.json").exists(), "it was killed amid its run"
    again = begin("rlhf", "ppo", "--resume", str(run))
    _, said = again.communicate(timeout=240)
    assert again.returncode == 0, said
    assert summary(run)["resumes"] == 1
    same_run(run, undisturbed("--iterations", "8"))
    assert left() == []


def test_sigterm_with_roles_on_ray_leaves_a_checkpoint_and_status_130_and_no_role_behind(
    undisturbed: Undisturbed, workplace: Path, tmp_path: Path, marked: tuple[Start, Callable[[], list[str]]]
) -> None:
    begin, left = marked
    run = tmp_path / "run"
    more = ("--iterations", "8", "--checkpoint-every", "100")
    process = begin(*ppo_flags(run, *PATIENT, *more, "--placement", "separate"))
    until(lambda: has_records(run), process, 200.0)
    begun = begun_by(process)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert f"continue with: distrl rlhf ppo --resume {run}" in said
    assert names(psutil.wait_procs(begun, GONE_WITHIN_SEC)[1]) == "", "nor of Ray's own"
    assert left() == []
    found = latest_checkpoint(run / "checkpoints")
    assert found is not None and 1 <= found[1].iteration < 8
    command(workplace, "rlhf", "ppo", "--resume", str(run), "--placement", "in-process")
    same_run(run, undisturbed(*more))
