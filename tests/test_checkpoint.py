"""Checkpoints: written whole, found by number, replaced and pruned without a gap."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distrl.checkpoint import (
    CheckpointError,
    CheckpointWriter,
    checkpoint_folders,
    latest_checkpoint,
    prune,
    read_checkpoint,
    tree_sha256,
    write_checkpoint,
)


def policy_trees(value: float = 1.0) -> dict[str, Any]:
    return {
        "policy": {"weight": np.full((4, 3), value, np.float32), "step": int(value)},
        "streams": {"key": [2**127 + 1, -(2**90)], "done": np.array([True, False])},
    }


def test_a_checkpoint_comes_back_with_its_meta_and_lists_every_file(tmp_path: Path) -> None:
    meta = {"env_steps": 2**70, "best": float("nan"), "where": ("x", None)}
    folder = write_checkpoint(tmp_path / "deep" / "checkpoints", 12, policy_trees(), meta)
    assert folder.name == "00000012"
    checkpoint = read_checkpoint(folder)
    assert checkpoint.iteration == 12
    assert tree_sha256(checkpoint.meta) == tree_sha256(
        {"env_steps": 2**70, "best": float("nan"), "where": ["x", None]}
    )
    assert tree_sha256(checkpoint.trees) == tree_sha256(policy_trees())
    manifest = json.loads((folder / "manifest.json").read_bytes())
    assert manifest["schema"] == 1
    on_disk = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}
    assert manifest["files"] == {
        name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        for name, data in on_disk.items()
    }
    assert [path.name for path in folder.parent.iterdir()] == ["00000012"]


def test_meta_refuses_arrays_and_names_that_leave_the_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="meta holds no arrays"):
        write_checkpoint(tmp_path, 0, {}, {"x": np.zeros(2)})
    for name in ("../policy", "a/b", "", ".hidden", "manifest", "a\n"):
        with pytest.raises(ValueError, match="tree's name"):
            write_checkpoint(tmp_path, 0, {name: 1}, {})
    for name in ("../best", "00000001", ".."):
        with pytest.raises(ValueError, match="checkpoint's name"):
            write_checkpoint(tmp_path, 0, {}, {}, name=name)
    with pytest.raises(ValueError, match="iteration is 0 or more, got -1"):
        write_checkpoint(tmp_path, -1, {}, {})
    assert list(tmp_path.iterdir()) == []


def test_writing_the_same_again_changes_nothing_and_other_content_replaces_it(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, 3, policy_trees(1), {})
    before = folder.stat().st_ino
    assert write_checkpoint(tmp_path, 3, policy_trees(1), {}) == folder
    assert folder.stat().st_ino == before
    write_checkpoint(tmp_path, 3, policy_trees(2), {})
    assert read_checkpoint(folder).trees["policy"]["step"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["00000003"]


def test_a_corrupt_checkpoint_of_the_same_iteration_is_replaced(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, 3, policy_trees(), {})
    (folder / "policy.safetensors").write_bytes(b"")
    write_checkpoint(tmp_path, 3, policy_trees(), {})
    assert tree_sha256(read_checkpoint(folder).trees) == tree_sha256(policy_trees())


def test_a_named_checkpoint_replaces_itself_and_is_never_the_latest(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 30, policy_trees(30), {}, name="best")
    assert latest_checkpoint(tmp_path) is None
    write_checkpoint(tmp_path, 40, policy_trees(40), {}, name="best")
    assert read_checkpoint(tmp_path / "best").iteration == 40
    assert prune(tmp_path, keep_last=1) == []
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_everything_is_on_the_disk_before_the_name_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    real_fsync, real_rename = os.fsync, os.rename

    def fsync(descriptor: int) -> None:
        events.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        real_fsync(descriptor)

    def rename(source: Path, target: Path) -> None:
        events.append(f"rename to {target.name}")
        real_rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    write_checkpoint(tmp_path / "checkpoints", 4, {"policy": np.ones(3)}, {})
    assert events.pop(0) == tmp_path.name  # the folder of checkpoints is new
    assert set(events[:2]) == {"policy.json", "policy.safetensors"}
    assert events[2:] == [
        "manifest.json",
        f".tmp-00000004-{os.getpid()}",
        "rename to 00000004",
        "checkpoints",
    ]


def test_an_interrupt_inside_a_save_leaves_nothing_behind(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 1, policy_trees(), {})

    def interrupt(frame: Any, event: str, argument: Any) -> Any:
        if event == "call" and frame.f_code.co_name == "fsync_folder":
            raise KeyboardInterrupt
        return None

    tracer = sys.gettrace()
    sys.settrace(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            write_checkpoint(tmp_path, 2, policy_trees(), {})
    finally:
        sys.settrace(tracer)
    assert [path.name for path in tmp_path.iterdir()] == ["00000001"]


def test_the_latest_is_by_number_whatever_the_clock_says(tmp_path: Path) -> None:
    for age, iteration in enumerate([9, 100_000_000, 10, 99_999_999]):
        folder = write_checkpoint(tmp_path, iteration, policy_trees(), {})
        stamp = time.time() + (86_400 if iteration == 9 else -86_400 * age)
        os.utime(folder, (stamp, stamp))
    found = latest_checkpoint(tmp_path)
    assert found is not None
    folder, checkpoint, warnings = found
    assert (folder.name, checkpoint.iteration, warnings) == ("100000000", 100_000_000, [])


def test_a_renamed_checkpoint_does_not_pass_for_a_newer_one(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 2, policy_trees(), {})
    write_checkpoint(tmp_path, 1, policy_trees(), {}).rename(tmp_path / "00000009")
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found[1].iteration == 2
    assert "holds iteration 1" in found[2][0]


def test_corrupt_checkpoints_are_passed_over_loudly(tmp_path: Path) -> None:
    for iteration in (10, 20, 30, 40):
        write_checkpoint(tmp_path, iteration, policy_trees(iteration), {})
    os.truncate(tmp_path / "00000040" / "policy.safetensors", 20)
    (tmp_path / "00000030" / "manifest.json").write_bytes(b"")
    found = latest_checkpoint(tmp_path)
    assert found is not None
    folder, checkpoint, warnings = found
    assert folder == tmp_path / "00000020"
    assert tree_sha256(checkpoint.trees) == tree_sha256(policy_trees(20))
    assert len(warnings) == 2
    assert "00000040 is corrupt" in warnings[0] and "SHA-256 expected" in warnings[0]
    assert "00000030 is corrupt" in warnings[1] and "manifest.json" in warnings[1]


def test_only_corrupt_checkpoints_are_refused_and_each_is_named(tmp_path: Path) -> None:
    for iteration in (1, 2):
        folder = write_checkpoint(tmp_path, iteration, policy_trees(), {})
        (folder / "policy.json").write_bytes(b"{}")
    (tmp_path / "00000003").mkdir()
    (tmp_path / "00000004").symlink_to(tmp_path / "00000001")
    with pytest.raises(CheckpointError, match="refusing to start from scratch") as caught:
        latest_checkpoint(tmp_path)
    for name in ("00000001", "00000002", "00000003", "00000004"):
        assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_checkpoints_is_none(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "nowhere") is None
    (tmp_path / ".tmp-00000001-1").mkdir()
    (tmp_path / "notes").mkdir()
    assert latest_checkpoint(tmp_path) is None


def test_prune_keeps_the_last_every_mth_and_always_the_newest_whole_one(tmp_path: Path) -> None:
    for iteration in range(0, 80, 10):
        write_checkpoint(tmp_path, iteration, {}, {})
    deleted = prune(tmp_path, keep_last=2, keep_every=30)
    assert sorted(path.name for path in deleted) == ["00000010", "00000020", "00000040", "00000050"]
    assert sorted(checkpoint_folders(tmp_path)) == [0, 30, 60, 70]
    for name in ("00000070", "00000060"):
        (tmp_path / name / "manifest.json").write_bytes(b"{}")
    prune(tmp_path, keep_last=1)
    assert sorted(checkpoint_folders(tmp_path)) == [30, 70]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000030", "00000070"]
    with pytest.raises(ValueError, match="got 0 and 0"):
        prune(tmp_path, keep_last=0)


def test_leftovers_of_dead_writers_go_and_those_of_live_ones_stay(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for pid in (dead.pid, os.getppid(), os.getpid()):
        (tmp_path / f".tmp-00000001-{pid}").mkdir()
        (tmp_path / f".tmp-00000001-{pid}" / "policy.json").write_bytes(b"half")
    write_checkpoint(tmp_path, 1, policy_trees(), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == [f".tmp-00000001-{os.getppid()}", "00000001"]


def test_a_replacement_cut_short_is_undone(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 5, policy_trees(1), {}).rename(tmp_path / ".replaced-00000005-1")
    found = latest_checkpoint(tmp_path)
    assert found is not None and found[1].iteration == 5 and found[2] == []
    whole = write_checkpoint(tmp_path / "other", 5, policy_trees(3), {})
    whole.rename(tmp_path / "00000005")  # killed a moment later: both are there, and the new one counts
    found = latest_checkpoint(tmp_path)
    assert found is not None and found[1].trees["policy"]["step"] == 3
    (tmp_path / "00000005").rename(tmp_path / "other" / "00000005")
    write_checkpoint(tmp_path, 6, policy_trees(2), {})
    assert sorted(checkpoint_folders(tmp_path)) == [5, 6]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000005", "00000006", "other"]


def test_a_root_that_is_a_file_is_a_checkpoint_error(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(CheckpointError, match="was not saved in"):
        write_checkpoint(tmp_path / "checkpoints", 0, policy_trees(), {})


@pytest.mark.parametrize("setting", [{"keep_last": 0}, {"keep_every": -1}, {"max_failures": 0}])
def test_a_writer_refuses_settings_that_keep_nothing(setting: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep_last and max_failures are 1 or more"):
        CheckpointWriter(tmp_path, **setting)


def test_checkpoints_load_without_ray_gymnasium_or_torch(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, 1, policy_trees(), {})
    code = (
        "import sys; from pathlib import Path; import distrl.run_directory; from distrl.checkpoint import *\n"
        "assert read_checkpoint(Path(sys.argv[1])).iteration == 1\n"
        "print(sorted({'ray', 'gymnasium', 'torch', 'numba', 'pickle5'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "[]\n", done.stderr
