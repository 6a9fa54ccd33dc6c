"""How saving and loading fail. Both end a run with exit status 1 and say what to do."""

from __future__ import annotations

from pathlib import Path

from distrl.errors import RunFailed


class CheckpointError(RunFailed):
    """A checkpoint could not be written, or there is none that can be used."""


class CorruptCheckpoint(CheckpointError):
    """A checkpoint is not what was written, or holds what must not be loaded.

    `path` is the file at fault; where a hash differs, `expected_sha256` and `actual_sha256` are both set.
    """

    def __init__(
        self,
        path: Path,
        reason: str,
        expected_sha256: str | None = None,
        actual_sha256: str | None = None,
    ) -> None:
        self.path = path
        self.expected_sha256 = expected_sha256
        self.actual_sha256 = actual_sha256
        hashes = f" (SHA-256 expected {expected_sha256}, found {actual_sha256})" if expected_sha256 else ""
        super().__init__(f"{path}: {reason}{hashes}")
