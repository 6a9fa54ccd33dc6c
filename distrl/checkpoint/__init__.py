"""The checkpoint store: atomic, hashed, no pickle. Loadable without ray, gymnasium or torch.

`checkpoints/<iteration, 8 digits>/` holds `<tree>.safetensors` and `<tree>.json` for each state tree, and
`manifest.json`, written last: schema, iteration, meta, and SHA-256 and size of every file.
"""

from distrl.checkpoint.errors import CheckpointError, CorruptCheckpoint
from distrl.checkpoint.files import FileRecord
from distrl.checkpoint.reading import (
    Checkpoint,
    Manifest,
    checkpoint_folders,
    latest_checkpoint,
    read_checkpoint,
    verify_checkpoint,
)
from distrl.checkpoint.tree import StateTree, load_tree, save_tree, tree_sha256
from distrl.checkpoint.writing import CheckpointWriter, prune, write_checkpoint

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "CheckpointWriter",
    "CorruptCheckpoint",
    "FileRecord",
    "Manifest",
    "StateTree",
    "checkpoint_folders",
    "latest_checkpoint",
    "load_tree",
    "prune",
    "read_checkpoint",
    "save_tree",
    "tree_sha256",
    "verify_checkpoint",
    "write_checkpoint",
]
