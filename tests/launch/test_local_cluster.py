"""`launch/local_cluster.sh`, really run: three nodes, trained on by both doors, and nothing left of them.

The tests share one cluster in the order of this file; the last one stops it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

import distrl

HERE = Path(__file__).parent
SCRIPT = HERE.parents[1] / "launch" / "local_cluster.sh"
BIN = Path(sys.executable).parent
FIELDS = {
    "env": "CartPole-v1", "num_envs": 4, "groups": 2, "num_steps": 32, "total_steps": 5 * 128, "eval_episodes": 0,
    "tensorboard": False, "wrapper": "node_log:logged",
}  # fmt: skip
FLAGS = [
    "--env", "CartPole-v1", "--num-envs", "4", "--groups", "2", "--num-steps", "32", "--total-steps", "640",
    "--eval-episodes", "0", "--no-tensorboard", "--wrapper", "node_log:logged",
]  # fmt: skip

pytestmark = pytest.mark.timeout(240)


def script(environment: dict[str, str], action: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SCRIPT, action],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        stdin=subprocess.DEVNULL,
    )


def processes_of(folder: Path) -> list[str]:
    """What lives of the cluster in that folder: by its mark, or by a path in the folder among its arguments."""
    found = []
    for process in psutil.process_iter():
        try:
            arguments = process.cmdline()
            marked = process.environ().get("DISTRL_LOCAL_CLUSTER") == str(folder)
            if (
                marked or any(f"{folder}/ray" in one for one in arguments)
            ) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(f"{process.pid} {' '.join(arguments)[:100]}")
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


@dataclass
class Cluster:
    """A cluster that the script started, what it printed, and the environment to use it in."""

    folder: Path
    environment: dict[str, str]
    output: str

    @property
    def address(self) -> str:
        return (self.folder / "address").read_text().strip()

    @property
    def dashboard(self) -> str:
        return (self.folder / "dashboard").read_text().strip()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    home = Path(tempfile.mkdtemp(prefix="dc", dir="/tmp"))  # short: it holds unix sockets
    folder = home / "cluster"
    (home / "nodes").mkdir()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")} | {
        "DISTRL_CLUSTER_DIR": str(folder),
        "DISTRL_CLUSTER_STORE_BYTES": str(100 * 2**20),
        "RAY_AUTH_TOKEN_PATH": str(home / "token"),
        "RAY_AUTH_MODE": "token",
        "PYTHONPATH": str(HERE),
        "NODE_LOG": str(home / "nodes"),
        "OMP_NUM_THREADS": "1",
    }
    try:
        started = script(environment, "start")
        assert started.returncode == 0, started.stderr
        yield Cluster(folder, environment, started.stdout)
    finally:
        stopped = script(environment, "stop")
        shutil.rmtree(home, ignore_errors=True)
        assert stopped.returncode == 0, stopped.stderr


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Digest of the same run in this process, without Ray."""
    run_dir = tmp_path_factory.mktemp("reference") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(HERE))
        distrl.train(**FIELDS, workers=0, run_dir=str(run_dir))
    return digest(run_dir)


def digest(run_dir: Path) -> str:
    return str(json.loads((run_dir / "summary.json").read_text())["parameters_sha256"])


@pytest.mark.ray
@pytest.mark.parametrize("door", ["distrl train --address", "ray job submit"])
def test_a_run_over_three_nodes_ends_with_the_parameters_of_one_process(
    cluster: Cluster, reference: str, tmp_path: Path, door: str
) -> None:
    nodes = Path(cluster.environment["NODE_LOG"])
    for one in nodes.iterdir():
        one.unlink()
    train = ["train", *FLAGS, "--workers", "2", "--run-dir", str(tmp_path / "run")]
    if door == "ray job submit":
        command = [str(BIN / "ray"), "job", "submit", "--address", cluster.dashboard, "--", "distrl", *train]
    else:
        command = [str(BIN / "distrl"), *train, "--address", cluster.address]
    done = subprocess.run(
        command, env=cluster.environment, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert digest(tmp_path / "run") == reference
    assert len(list(nodes.iterdir())) == 2, "the two rollout workers live on nodes of their own"


@pytest.mark.ray
def test_the_printed_commands_name_the_cluster_and_its_token_file(cluster: Cluster) -> None:
    assert f"--address {cluster.address} --workers 2" in cluster.output
    assert f"ray job submit --address {cluster.dashboard} -- distrl train" in cluster.output
    token = Path(cluster.environment["RAY_AUTH_TOKEN_PATH"])
    assert f"RAY_AUTH_TOKEN_PATH={token}" in cluster.output
    assert token.read_text() not in cluster.output
    assert token.stat().st_mode & 0o777 == 0o600


@pytest.mark.ray
def test_starting_again_finds_the_cluster_as_it_is(cluster: Cluster) -> None:
    before = {
        one.split()[0] for one in processes_of(cluster.folder) if "raylet" in one or "gcs_server" in one
    }
    again = script(cluster.environment, "start")
    assert again.returncode == 0, again.stderr
    assert "running already" in again.stdout
    after = {one.split()[0] for one in processes_of(cluster.folder) if "raylet" in one or "gcs_server" in one}
    assert before == after


@pytest.mark.ray
@pytest.mark.parametrize("content", [None, pytest.param("0" * 64, marks=pytest.mark.slow)])
def test_a_missing_or_wrong_token_is_refused_with_its_file_named(
    cluster: Cluster, tmp_path: Path, content: str | None
) -> None:
    token = tmp_path / "token"
    if content is not None:
        token.write_text(content)
    done = subprocess.run(
        [
            BIN / "distrl",
            "train",
            *FLAGS,
            "--workers",
            "2",
            "--run-dir",
            tmp_path / "run",
            "--address",
            cluster.address,
        ],
        env={**cluster.environment, "RAY_AUTH_TOKEN_PATH": str(token)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2, done.stderr
    assert f"the file {token}" in done.stderr
    assert "RAY_AUTH_TOKEN_PATH" in done.stderr


@pytest.mark.ray
def test_stopping_ends_the_whole_cluster_and_nothing_else(cluster: Cluster) -> None:
    assert len(processes_of(cluster.folder)) > 4
    bystander = subprocess.Popen(
        ["sleep", "600"], env={**cluster.environment, "DISTRL_LOCAL_CLUSTER": f"{cluster.folder}2"}
    )
    try:
        stopped = script(cluster.environment, "stop")
        assert stopped.returncode == 0, stopped.stderr
        assert processes_of(cluster.folder) == []
        assert not cluster.folder.exists()
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()
    again = script(cluster.environment, "stop")
    assert (again.returncode, again.stdout) == (0, f"no cluster runs in {cluster.folder}\n")


def test_a_folder_that_holds_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "ray").mkdir()
    (folder / "ray" / "notes.txt").write_text("keep me")
    environment = {**os.environ, "DISTRL_CLUSTER_DIR": str(folder)}
    for action in ("start", "stop"):
        done = script(environment, action)
        assert done.returncode == 1
        assert f"{folder} holds something else" in done.stderr
    assert (folder / "ray" / "notes.txt").read_text() == "keep me"


def test_without_a_cluster_status_is_1_and_says_how_to_start_one(tmp_path: Path) -> None:
    done = script({**os.environ, "DISTRL_CLUSTER_DIR": str(tmp_path / "none")}, "status")
    assert done.returncode == 1
    assert "no cluster runs in" in done.stderr
    assert done.stderr.strip().endswith("local_cluster.sh start")
