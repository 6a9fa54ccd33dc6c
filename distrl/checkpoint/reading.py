"""Reading checkpoints: everything is verified before anything is used, and nothing is unpickled."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distrl.checkpoint.errors import CheckpointError, CorruptCheckpoint
from distrl.checkpoint.files import FileRecord, file_record
from distrl.checkpoint.tree import StateTree, decode, encode, load_tree

MANIFEST = "manifest.json"
MANIFEST_SCHEMA = 1
TREE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
LISTED_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}\.(json|safetensors)")
ITERATION_NAME = re.compile(r"[0-9]{8,}")
# A folder is called this for the instant between the two renames that replace it.
REPLACED_NAME = re.compile(r"\.replaced-([0-9]{8,})-[0-9]+")
PICKLE_SUFFIXES = {".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt", ".joblib"}
PICKLE_MAGIC = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")  # the last: torch.save


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says: the iteration, the caller's facts, and every file's hash and size."""

    iteration: int
    meta: dict[str, Any]
    files: dict[str, FileRecord]

    def to_bytes(self) -> bytes:
        """The one way to write this manifest; its last entry is the hash of the others."""
        body = {
            "schema": MANIFEST_SCHEMA,
            "iteration": self.iteration,
            "meta": _encoded_meta(self.meta),
            "files": {name: record.to_json() for name, record in sorted(self.files.items())},
        }
        return _rendered(body | {"manifest_sha256": _json_sha256(body)})

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest, and so of the whole checkpoint (hexadecimal)."""
        return hashlib.sha256(self.to_bytes()).hexdigest()


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read and verified. `trees` is as it was given to `write_checkpoint`."""

    folder: Path
    iteration: int
    meta: dict[str, Any]
    trees: dict[str, StateTree]
    digest: str


def read_checkpoint(folder: Path) -> Checkpoint:
    """Verifies the checkpoint in `folder`, then loads it.

    Raises CorruptCheckpoint for a missing or altered file, a symlink, a name that leaves the folder, or a
    pickle; CheckpointError for one that a newer version wrote or that may not be read.
    """
    manifest = verify_checkpoint(folder)
    names = [name.removesuffix(".safetensors") for name in manifest.files if name.endswith(".safetensors")]
    trees = {name: load_tree(folder, name) for name in names}
    return Checkpoint(folder, manifest.iteration, manifest.meta, trees, manifest.digest)


def verify_checkpoint(folder: Path) -> Manifest:
    """Checks the manifest and the hash of every file it lists, without loading arrays. Raises as above."""
    try:
        if folder.is_symlink() or not folder.is_dir():
            raise CorruptCheckpoint(folder, "a checkpoint is a folder, not a symlink or a file")
        manifest = _read_manifest(folder / MANIFEST)
        _refuse_strangers(folder, manifest)
        for name, expected in manifest.files.items():
            found = file_record(folder / name)
            if found != expected:
                raise CorruptCheckpoint(
                    folder / name,
                    f"is not what was written: {expected.bytes} bytes expected, {found.bytes} found",
                    expected.sha256,
                    found.sha256,
                )
    except PermissionError as error:
        raise CheckpointError(
            f"{error.filename or folder}: {error.strerror}; check the file's owner"
        ) from error
    except OSError as error:
        raise CorruptCheckpoint(
            Path(error.filename or folder), f"cannot be read: {error.strerror}"
        ) from error
    if ITERATION_NAME.fullmatch(folder.name) and int(folder.name) != manifest.iteration:
        raise CorruptCheckpoint(folder, f"holds iteration {manifest.iteration}; the folder was renamed")
    return manifest


def latest_checkpoint(root: Path) -> tuple[Path, Checkpoint, list[str]] | None:
    """The newest whole checkpoint under `root`, by iteration number; None where there was never one.

    Returns (folder, checkpoint, warnings), one warning for each newer checkpoint that had to be passed over.
    Raises CheckpointError when there are checkpoints but none is whole: starting from scratch would hide it.
    """
    warnings: list[str] = []
    for _, folder in sorted(checkpoint_folders(root).items(), reverse=True):
        try:
            checkpoint = read_checkpoint(folder)
        except CorruptCheckpoint as error:
            if not os.path.lexists(folder):  # pruned by a live run while being read: there are newer ones
                return latest_checkpoint(root)
            warnings.append(f"checkpoint {folder.name} is corrupt, falling back to the one before: {error}")
        else:
            return folder, checkpoint, warnings
    if warnings:
        listed = "; ".join(warning.split(": ", 1)[1] for warning in warnings)
        raise CheckpointError(
            f"{root}: no whole checkpoint among {len(warnings)}, refusing to start from scratch: {listed}. "
            "Restore one from a backup, or start a new run in another folder"
        )
    return None


def checkpoint_folders(root: Path) -> dict[int, Path]:
    """Iteration number to folder, of everything under `root` that is named as a checkpoint, whole or not."""
    folders: dict[int, Path] = {}
    names = sorted(os.listdir(root)) if root.is_dir() else []
    for name in names:  # ".replaced-…" sorts before digits, so the real name wins
        if match := REPLACED_NAME.fullmatch(name):
            folders[int(match[1])] = root / name
        elif ITERATION_NAME.fullmatch(name):
            folders[int(name)] = root / name
    return folders


def _read_manifest(path: Path) -> Manifest:
    if path.is_symlink():
        raise CorruptCheckpoint(path, "is a symlink, refused")
    data = path.read_bytes()
    try:
        document = json.loads(data)
        body = {key: value for key, value in document.items() if key != "manifest_sha256"}
        expected, found = str(document["manifest_sha256"]), _json_sha256(body)
        if found != expected:
            raise CorruptCheckpoint(path, "was altered: its hash of itself differs", expected, found)
        if data != _rendered(document):
            raise CorruptCheckpoint(path, "was altered: it is not as a manifest is written")
        if document["schema"] > MANIFEST_SCHEMA:
            raise CheckpointError(
                f"{path}: schema {document['schema']} is newer than this version reads "
                f"({MANIFEST_SCHEMA}); upgrade distrl"
            )
        files = {
            name: FileRecord(str(item["sha256"]), int(item["bytes"]))
            for name, item in document["files"].items()
        }
        manifest = Manifest(int(document["iteration"]), decode(document["meta"], {}), files)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"not a manifest: {type(error).__name__}: {error}".replace("\n", " ")
        raise CorruptCheckpoint(path, reason) from error
    for name in files:
        if not LISTED_NAME.fullmatch(name) or name == MANIFEST:
            raise CorruptCheckpoint(path, f"lists {name!r}; only plain .json and .safetensors names are read")
    return manifest


def _rendered(document: dict[str, Any]) -> bytes:
    return (json.dumps(document, indent=1, allow_nan=False) + "\n").encode("ascii")


def _json_sha256(document: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, allow_nan=False).encode("ascii")).hexdigest()


def _encoded_meta(meta: dict[str, Any]) -> Any:
    arrays: dict[str, Any] = {}
    encoded = encode(meta, arrays)
    if arrays:
        raise ValueError(
            f"meta holds no arrays or bytes, got one at {next(iter(arrays))}; put it into a tree"
        )
    return encoded


def _refuse_strangers(folder: Path, manifest: Manifest) -> None:
    """Symlinks anywhere, and files that are not listed but are, or claim to be, pickles."""
    for parent, folders, files in os.walk(folder):
        for name in folders + files:
            path = Path(parent) / name
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise CorruptCheckpoint(path, "is a symlink or a special file, refused")
        for name in files:
            path = Path(parent) / name
            if path.parent == folder and (name in manifest.files or name == MANIFEST):
                continue
            with open(path, "rb") as file:
                start = file.read(4)
            if path.suffix.lower() in PICKLE_SUFFIXES or start.startswith(PICKLE_MAGIC):
                raise CorruptCheckpoint(path, "is a pickle that no manifest lists, refused; delete it")
