"""Flipped, cut, forged, linked and pickled: nothing altered is loaded and nothing is unpickled."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distrl.checkpoint import (
    CheckpointError,
    CorruptCheckpoint,
    latest_checkpoint,
    read_checkpoint,
    write_checkpoint,
)


def policy_trees(value: float = 1.0) -> dict[str, Any]:
    return {
        "policy": {"weight": np.full((4, 3), value, np.float32), "step": int(value)},
        "streams": {"key": [2**127 + 1, -(2**90)], "done": np.array([True, False])},
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    trees = {"policy": {"weight": np.arange(20, dtype=np.float32), "lr": 0.5}, "empty": {}}
    return write_checkpoint(tmp_path_factory.mktemp("whole"), 8, trees, {"note": "plain", "steps": 1024})


FILES = ["manifest.json", "policy.json", "policy.safetensors", "empty.json", "empty.safetensors"]


@settings(max_examples=120, deadline=None)
@given(name=st.sampled_from(FILES), data=st.data())
def test_a_flipped_bit_anywhere_is_found(
    whole: Path, name: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = Path(shutil.copytree(whole, tmp_path_factory.mktemp("flip") / whole.name))
    content = bytearray((folder / name).read_bytes())
    position = data.draw(st.integers(0, len(content) * 8 - 1), label="bit")
    content[position // 8] ^= 1 << position % 8
    (folder / name).write_bytes(content)
    with pytest.raises(CorruptCheckpoint) as caught:
        read_checkpoint(folder)
    assert caught.value.path == folder / name
    if name != "manifest.json":
        expected = hashlib.sha256((whole / name).read_bytes()).hexdigest()
        assert caught.value.expected_sha256 == expected
        assert caught.value.actual_sha256 == hashlib.sha256(content).hexdigest()
        assert expected in str(caught.value) and hashlib.sha256(content).hexdigest() in str(caught.value)
    assert "\n" not in str(caught.value)


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(FILES), data=st.data())
def test_a_truncated_or_lengthened_file_is_found(
    whole: Path, name: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = Path(shutil.copytree(whole, tmp_path_factory.mktemp("cut") / whole.name))
    size = (folder / name).stat().st_size
    new_size = data.draw(st.integers(0, size + 40).filter(lambda n: n != size) | st.just(0), label="bytes")
    os.truncate(folder / name, new_size)
    with pytest.raises(CorruptCheckpoint) as caught:
        read_checkpoint(folder)
    assert caught.value.path == folder / name


@pytest.mark.parametrize("name", FILES)
def test_a_missing_or_empty_file_is_found(name: str, whole: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / whole.name))
    (folder / name).write_bytes(b"")
    with pytest.raises(CorruptCheckpoint, match=name):
        read_checkpoint(folder)
    (folder / name).unlink()
    with pytest.raises(CorruptCheckpoint, match=f"{name}: cannot be read: No such file"):
        read_checkpoint(folder)


def test_a_manifest_with_the_same_values_but_other_bytes_is_found(whole: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / whole.name))
    content = (folder / "manifest.json").read_bytes()
    (folder / "manifest.json").write_bytes(content.replace(b"\n", b"\t"))
    with pytest.raises(CorruptCheckpoint, match=r"manifest\.json: was altered"):
        read_checkpoint(folder)


def forge(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Rewrites the manifest as an attacker would, with a hash of itself that is right."""
    path = folder / "manifest.json"
    document = json.loads(path.read_bytes())
    del document["manifest_sha256"]
    change(document)
    document["manifest_sha256"] = hashlib.sha256(json.dumps(document).encode()).hexdigest()
    path.write_bytes((json.dumps(document, indent=1) + "\n").encode())


def entry_of(content: bytes) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = str(trace)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.trace,)


@pytest.mark.parametrize(
    "name", ["policy.pkl", "policy.pt", "POLICY.PTH", "weights.bin", "a.ckpt", "notes.txt"]
)
@pytest.mark.parametrize("listed", [True, False])
def test_a_pickle_is_refused_and_never_run(name: str, listed: bool, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "checkpoints", 1, policy_trees(), {})
    content = pickle.dumps(Payload(tmp_path / "trace"))
    (folder / name).write_bytes(content)
    if listed:
        forge(folder, lambda document: document["files"].update({name: entry_of(content)}))
    with pytest.raises(CorruptCheckpoint, match=name):
        read_checkpoint(folder)
    with pytest.raises(CheckpointError, match="refusing to start from scratch"):
        latest_checkpoint(tmp_path / "checkpoints")
    assert not (tmp_path / "trace").exists()
    pickle.loads(content)  # the payload is a live one
    assert (tmp_path / "trace").exists()


@pytest.mark.parametrize("name", ["policy.safetensors", "policy.json"])
def test_a_pickle_under_a_right_name_with_a_right_hash_is_refused(name: str, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "checkpoints", 1, policy_trees(), {})
    content = pickle.dumps(Payload(tmp_path / "trace"))
    (folder / name).write_bytes(content)
    forge(folder, lambda document: document["files"].update({name: entry_of(content)}))
    with pytest.raises(CorruptCheckpoint, match=name):
        read_checkpoint(folder)
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    "name", ["../secret.json", "/etc/hostname", "sub/a.json", "..", "a.npy", ".hidden.json"]
)
def test_a_manifest_that_names_a_file_elsewhere_is_refused(name: str, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "checkpoints", 1, policy_trees(), {})
    (tmp_path / "checkpoints" / "secret.json").write_bytes(b"{}")
    forge(folder, lambda document: document["files"].update({name: entry_of(b"{}")}))
    with pytest.raises(CorruptCheckpoint, match="only plain"):
        read_checkpoint(folder)


def test_symlinks_are_refused_wherever_they_are(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "checkpoints", 1, policy_trees(), {})
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(CorruptCheckpoint, match="not a symlink"):
        read_checkpoint(tmp_path / "link")
    for name in ("policy.safetensors", "manifest.json"):
        (folder / name).rename(tmp_path / "aside")
        (folder / name).symlink_to(tmp_path / "aside")
        with pytest.raises(CorruptCheckpoint, match="symlink"):
            read_checkpoint(folder)
        (folder / name).unlink()
        (tmp_path / "aside").rename(folder / name)
    (folder / "extra").symlink_to("/etc")
    with pytest.raises(CorruptCheckpoint, match="extra: is a symlink"):
        read_checkpoint(folder)
    (folder / "extra").unlink()
    os.mkfifo(folder / "pipe")  # opening it would wait for ever
    with pytest.raises(CorruptCheckpoint, match="pipe: is a symlink or a special file"):
        read_checkpoint(folder)


def test_a_newer_schema_is_not_called_corrupt_and_is_not_passed_over(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 1, policy_trees(), {})
    newer = write_checkpoint(tmp_path, 2, policy_trees(), {})
    forge(newer, lambda document: document.update(schema=99))
    with pytest.raises(CheckpointError, match=r"schema 99 is newer.*upgrade") as caught:
        latest_checkpoint(tmp_path)
    assert not isinstance(caught.value, CorruptCheckpoint)
