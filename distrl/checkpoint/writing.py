"""Writing checkpoints: aside, flushed, renamed. Whenever the process dies, the one before is intact."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distrl.checkpoint.errors import CheckpointError, CorruptCheckpoint
from distrl.checkpoint.files import (
    FileRecord,
    fsync_folder,
    is_other_live_process,
    make_folder_durable,
    write_durable,
)
from distrl.checkpoint.reading import MANIFEST, TREE_NAME, Manifest, checkpoint_folders, verify_checkpoint
from distrl.checkpoint.tree import EncodedTree, StateTree, encode_tree, save_encoded

TEMPORARY_NAME = re.compile(r"\.tmp-.+-([0-9]+)")
REPLACED_NAME = re.compile(r"\.replaced-(.+)-[0-9]+")


def write_checkpoint(
    root: Path,
    iteration: int,
    trees: Mapping[str, StateTree],
    meta: Mapping[str, Any],
    *,
    name: str | None = None,
) -> Path:
    """Writes `trees` and `meta` as one checkpoint and returns its folder, `root/<iteration, 8 digits>`.

    Args:
        root: the folder of checkpoints, made if missing; one writer at a time (the run's lock sees to it).
        iteration: 0 or more.
        trees: name to state tree; a name is letters, digits, `_`, `-` and `.`.
        meta: a small state tree without arrays, kept in the manifest itself.
        name: another name for the folder, such as "best"; it replaces the one before.

    The same content again is left alone; other content for the same iteration takes its place. Raises
    ValueError for what a state tree cannot hold, before the disk is touched, and CheckpointError when
    the disk refuses: then nothing half-written is left and the other checkpoints are as they were.
    """
    encoded = _checked_trees(iteration, trees, name)
    Manifest(iteration, dict(meta), {}).to_bytes()  # raises for a meta that cannot be written
    folder_name = name if name is not None else f"{iteration:08d}"
    temporary = root / f".tmp-{folder_name}-{os.getpid()}"
    try:
        make_folder_durable(root)
        _clean_up_after_the_dead(root)
        temporary.mkdir()
        manifest = _fill(temporary, iteration, encoded, meta)
        return _move_into_place(temporary, root / folder_name, manifest.digest)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        needed = sum(tree.num_bytes for tree in encoded.values())
        raise CheckpointError(
            f"checkpoint of iteration {iteration} was not saved in {root}: {error.strerror or error}; "
            f"it needs {needed} bytes and {_free_bytes(root)} are free: make room. Earlier ones are intact"
        ) from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def prune(root: Path, keep_last: int, keep_every: int = 0) -> list[Path]:
    """Deletes all but the last `keep_last` checkpoints and those whose iteration divides by `keep_every`.

    `keep_every` 0 keeps none besides the last. The newest whole one is never deleted, even when newer ones,
    all corrupt, fill the quota. Returns the deleted folders; raises OSError when one cannot be deleted.
    """
    if keep_last < 1 or keep_every < 0:
        raise ValueError(f"keep_last is 1 or more and keep_every 0 or more, got {keep_last} and {keep_every}")
    newest_first = sorted(checkpoint_folders(root).items(), reverse=True)
    doomed = [
        folder
        for iteration, folder in newest_first[keep_last:]
        if keep_every == 0 or iteration % keep_every != 0
    ]
    if doomed and (whole := _newest_whole([folder for _, folder in newest_first])) in doomed:
        doomed.remove(whole)
    for folder in doomed:
        _delete(folder)
    return doomed


@dataclass
class CheckpointWriter:
    """Saves and prunes; a failure is a warning until `max_failures` of them follow one another.

    `warn` is called with each warning. `last_saved` is the newest folder that this writer wrote.
    """

    root: Path
    keep_last: int = 3
    keep_every: int = 0
    max_failures: int = 3
    warn: Callable[[str], None] | None = None
    num_failures: int = field(default=0, init=False)
    last_saved: Path | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.keep_last < 1 or self.keep_every < 0 or self.max_failures < 1:
            raise ValueError(
                "keep_last and max_failures are 1 or more and keep_every 0 or more, got "
                f"{self.keep_last}, {self.max_failures} and {self.keep_every}"
            )

    def save(self, iteration: int, trees: Mapping[str, StateTree], meta: Mapping[str, Any]) -> str | None:
        """Writes one checkpoint; returns the warning if it, or pruning, failed, and None if all is well.

        Raises CheckpointError at the `max_failures`-th failure in a row, ValueError for a bad tree.
        """
        warning = None
        try:
            self.last_saved = write_checkpoint(self.root, iteration, trees, meta)
            self.num_failures = 0
            prune(self.root, self.keep_last, self.keep_every)
        except CheckpointError as error:
            self.num_failures += 1
            if self.num_failures >= self.max_failures:
                raise CheckpointError(
                    f"saving failed {self.num_failures} times in a row; the last: {error}"
                ) from error
            warning = (
                f"{error} (failure {self.num_failures} of {self.max_failures} in a row, training goes on)"
            )
        except OSError as error:
            warning = f"an old checkpoint in {self.root} could not be deleted: {error}"
        if warning is not None and self.warn is not None:
            self.warn(warning)
        return warning


def _checked_trees(
    iteration: int, trees: Mapping[str, StateTree], name: str | None
) -> dict[str, EncodedTree]:
    if iteration < 0:
        raise ValueError(f"iteration is 0 or more, got {iteration}")
    if name is not None and (not TREE_NAME.fullmatch(name) or name.isdecimal()):
        raise ValueError(f"a checkpoint's name is letters, digits, _, - and . and no number, got {name!r}")
    for tree_name in trees:
        if not TREE_NAME.fullmatch(tree_name) or tree_name == "manifest":
            raise ValueError(
                f"a tree's name is letters, digits, _, - and . and not manifest, got {tree_name!r}"
            )
    return {tree_name: encode_tree(tree) for tree_name, tree in trees.items()}


def _fill(folder: Path, iteration: int, encoded: dict[str, EncodedTree], meta: Mapping[str, Any]) -> Manifest:
    files: dict[str, FileRecord] = {}
    for name, tree in encoded.items():
        files |= save_encoded(folder, name, tree)
    manifest = Manifest(iteration, dict(meta), files)
    write_durable(folder / MANIFEST, [manifest.to_bytes()])
    fsync_folder(folder)
    return manifest


def _move_into_place(temporary: Path, final: Path, digest: str) -> Path:
    """Renames; an older folder of that name steps aside first, where a reader still finds it."""
    aside = final.with_name(f".replaced-{final.name}-{os.getpid()}")
    if os.path.lexists(final):
        if _digest_or_none(final) == digest:
            shutil.rmtree(temporary)
            return final
        os.rename(final, aside)
    try:
        os.rename(temporary, final)
    except OSError:
        if os.path.lexists(aside):
            os.rename(aside, final)
        raise
    fsync_folder(final.parent)
    if os.path.lexists(aside):
        _delete(aside)
    return final


def _clean_up_after_the_dead(root: Path) -> None:
    for name in os.listdir(root):
        if match := TEMPORARY_NAME.fullmatch(name):
            if not is_other_live_process(match[1]):
                _delete(root / name)
        elif match := REPLACED_NAME.fullmatch(name):  # killed while replacing: undo, or finish
            if os.path.lexists(root / match[1]):
                _delete(root / name)
            else:
                os.rename(root / name, root / match[1])


def _digest_or_none(folder: Path) -> str | None:
    try:
        return verify_checkpoint(folder).digest
    except CorruptCheckpoint:
        return None


def _newest_whole(folders: list[Path]) -> Path | None:
    return next((folder for folder in folders if _digest_or_none(folder) is not None), None)


def _delete(folder: Path) -> None:
    """Deletes whole or not at all, as a reader sees it: the name goes first."""
    if folder.is_symlink() or not folder.is_dir():
        folder.unlink()
        return
    if not TEMPORARY_NAME.fullmatch(folder.name):
        hidden = folder.with_name(f".tmp-{folder.name.lstrip('.')}-{os.getpid()}")
        os.rename(folder, hidden)
        folder = hidden
    shutil.rmtree(folder)


def _free_bytes(folder: Path) -> int:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free
