"""The real wandb, offline, read back from the file it wrote; and a server that is not there."""

import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from distrl.telemetry.sinks import open_sinks
from distrl.telemetry.sinks.jsonl import read_jsonl

_BLOCK_BYTES = 32_768


def wandb_records(path: Path) -> Iterator[Any]:
    """The protobuf records of a .wandb file: a LevelDB log after a 7-byte header."""
    from wandb.proto.wandb_internal_pb2 import Record

    data = path.read_bytes()
    assert data[:4] == b":W&B"
    at, parts = 7, b""
    while at + 7 <= len(data):
        room = _BLOCK_BYTES - at % _BLOCK_BYTES
        if room < 7:  # a header does not fit: the rest of the block is padding
            at += room
            continue
        _, num_bytes, kind = struct.unpack("<IHB", data[at : at + 7])
        parts += data[at + 7 : at + 7 + num_bytes]
        at += 7 + num_bytes
        if kind in (1, 4):  # full, last
            yield Record.FromString(parts)
            parts = b""


def history(path: Path) -> list[dict[str, Any]]:
    rows = []
    for record in wandb_records(path):
        if record.WhichOneof("record_type") == "history":
            items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            rows.append({key: json.loads(value) for key, value in items.items()})
    return rows


def run_ids(path: Path) -> set[str]:
    return {record.run.run_id for record in wandb_records(path) if record.WhichOneof("record_type") == "run"}


def record_of(iteration: int) -> dict[str, Any]:
    return {
        "iteration": iteration,
        "env_steps": 512 * iteration,
        "episode_return_mean": None if iteration == 1 else 20.0 + iteration,
        "time/learner/learn: gae": 0.125 * iteration,
    }


def end_of_process() -> None:
    """What wandb does at exit: it waits for its service, which writes the file. It then reads its environment anew."""
    import wandb

    wandb.teardown()


@pytest.fixture
def wandb_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Keeps wandb's caches and settings in the test's folder, and its other environment out."""
    for name in ("WANDB_MODE", "WANDB_PROJECT", "WANDB_RUN_ID", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    run_dir = tmp_path / "cartpole-ppo"
    run_dir.mkdir()
    yield run_dir
    end_of_process()


@pytest.mark.timeout(120)
def test_an_offline_run_reads_back_and_goes_on_under_the_same_id_after_a_resume(
    wandb_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    with open_sinks(wandb_home, wandb=True, config={"env": "CartPole-v1", "seed": 1}) as sinks:
        for iteration in (1, 2, 3):
            sinks.write(record_of(iteration))
    stored = json.loads((wandb_home / "wandb.json").read_text())
    assert stored["schema"] == 1 and stored["project"] == "distrl"
    with open_sinks(
        wandb_home, wandb=True, resume_iteration=3, config={"env": "CartPole-v1", "seed": 1}
    ) as sinks:
        for iteration in (4, 5):
            sinks.write(record_of(iteration))

    end_of_process()
    files = sorted((wandb_home / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2
    assert [run_ids(path) for path in files] == [{stored["id"]}] * 2
    rows = [row for path in files for row in history(path)]
    assert [(row["_step"], row["iteration"], row["env_steps"]) for row in rows] == [
        (iteration, iteration, 512 * iteration) for iteration in (1, 2, 3, 4, 5)
    ]
    assert "episode_return_mean" not in rows[0]
    assert [row["episode_return_mean"] for row in rows[1:]] == [22.0, 23.0, 24.0, 25.0]
    assert [row["time/learner/learn: gae"] for row in rows] == [0.125 * i for i in (1, 2, 3, 4, 5)]
    (run_record,) = [r.run for r in wandb_records(files[0]) if r.WhichOneof("record_type") == "run"]
    config = {update.key: json.loads(update.value_json) for update in run_record.config.update}
    assert config["env"] == "CartPole-v1" and config["seed"] == 1


@pytest.mark.timeout(120)
@pytest.mark.parametrize("api_key", ["f" * 40, "not-a-key", None])
def test_a_server_that_is_not_there_or_a_bad_key_warns_and_training_goes_on_offline(
    wandb_home: Path, monkeypatch: pytest.MonkeyPatch, api_key: str | None
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setattr("distrl.telemetry.sinks.wandb._TIMEOUT_SEC", 2.0)
    if api_key is not None:
        monkeypatch.setenv("WANDB_API_KEY", api_key)
    with pytest.warns(RuntimeWarning, match="records offline") as caught:
        sinks = open_sinks(wandb_home, wandb=True, tensorboard=False)
    assert not any(api_key is not None and api_key in str(warning.message) for warning in caught)
    sinks.write(record_of(1))
    sinks.write(record_of(2))
    sinks.close()
    assert len(read_jsonl(wandb_home / "metrics.jsonl")) == 2
    end_of_process()
    (path,) = (wandb_home / "wandb").glob("offline-run-*/*.wandb")
    assert [row["iteration"] for row in history(path)] == [1, 2]


class AcceptsRuns(BaseHTTPRequestHandler):
    """Says yes to the few requests that start a run."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        data: dict[str, Any] = {}
        if "upsertBucket" in body.get("query", ""):
            project = {"id": "p", "name": "distrl", "entity": {"id": "e", "name": "someone"}}
            bucket = {"id": "b", "name": body["variables"]["name"], "displayName": "a", "config": "{}"}
            bucket |= {"description": "", "sweepName": None, "historyLineCount": 0, "project": project}
            data = {"upsertBucket": {"bucket": bucket, "inserted": True}}
        elif "model" in body.get("query", ""):
            data = {"model": None}
        answer = json.dumps({"data": data}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.timeout(120)
def test_a_network_that_goes_away_in_the_middle_neither_blocks_training_nor_its_end(
    wandb_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), AcceptsRuns)
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("WANDB_API_KEY", "f" * 40)
    monkeypatch.setattr("distrl.telemetry.sinks.wandb._TIMEOUT_SEC", 4.0)
    try:
        sinks = open_sinks(wandb_home, wandb=True, tensorboard=False)
        sinks.write(record_of(1))
    finally:
        server.shutdown()
        server.server_close()
        serving.join()
    before_sec = time.monotonic()
    for iteration in range(2, 50):
        sinks.write(record_of(iteration))
    sinks.close()
    end_of_process()
    assert time.monotonic() - before_sec < 60  # its own patience without a limit is days
    assert len(read_jsonl(wandb_home / "metrics.jsonl")) == 49
    (path,) = (wandb_home / "wandb").glob("run-*/*.wandb")
    assert [row["iteration"] for row in history(path)] == list(range(1, 50))
