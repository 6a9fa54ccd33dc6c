"""State trees on disk: arrays in `<name>.safetensors`, everything else in `<name>.json`. Never pickle.

A state tree is a nested dict (str keys), list or tuple of numpy arrays, numpy scalars, str, int, float, bool,
None and bytes. It comes back exactly: dtype, shape, NaN bits, integers of any size, the order of keys; except
that a tuple comes back as a list, a numpy scalar as a 0-d array, and an array in the machine's byte order.

In the JSON, an object with one key that starts with `$` is a value that JSON has no word for (`$array`,
`$bytes`, `$int`, `$float`); a real key that starts with `$` gets a second one. An array's name in the
safetensors file is its JSON pointer (RFC 6901), so any safetensors reader can find `/policy/weight`.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distrl.checkpoint.errors import CorruptCheckpoint
from distrl.checkpoint.files import FileRecord, ReadableBuffer, write_durable

TREE_SCHEMA = 1
JSON_SAFE_INT = 2**53  # beyond it other JSON readers round
StateTree = Any  # nested; a precise recursive type would refuse dict[str, ndarray], as dict is invariant

SAFETENSORS_NAME = {
    "bool": "BOOL",
    "int8": "I8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "uint8": "U8",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
    "float16": "F16",
    "float32": "F32",
    "float64": "F64",
    "complex64": "C64",
}


@dataclass(frozen=True)
class EncodedTree:
    """A state tree in its two parts: JSON text, and the arrays it refers to by name."""

    structure: bytes
    arrays: dict[str, np.ndarray]

    @property
    def num_bytes(self) -> int:
        """What the two files will take, up to the safetensors header."""
        return len(self.structure) + sum(array.nbytes for array in self.arrays.values())


def save_tree(folder: Path, name: str, tree: StateTree) -> dict[str, FileRecord]:
    """Writes `<name>.safetensors` and `<name>.json` into `folder`, flushed; returns their hashes and sizes.

    Raises ValueError for a value that a state tree cannot hold (naming where it is), OSError from the disk.
    """
    return save_encoded(folder, name, encode_tree(tree))


def save_encoded(folder: Path, name: str, encoded: EncodedTree) -> dict[str, FileRecord]:
    """`save_tree` for a tree that is encoded already."""
    return {
        f"{name}.safetensors": write_durable(
            folder / f"{name}.safetensors", _safetensors_chunks(encoded.arrays)
        ),
        f"{name}.json": write_durable(folder / f"{name}.json", [encoded.structure]),
    }


def load_tree(folder: Path, name: str) -> StateTree:
    """Reads back what `save_tree` wrote; arrays are fresh and writable.

    Raises CorruptCheckpoint when a file is missing or is not of this format. Hashes are the manifest's work.
    """
    # Imported here: a safetensors without numpy support still lets one look at a manifest.
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    json_path, array_path = folder / f"{name}.json", folder / f"{name}.safetensors"
    try:
        document = json.loads(json_path.read_bytes())
        if document["schema"] != TREE_SCHEMA:
            raise ValueError(f"schema is {document['schema']!r}, this version reads {TREE_SCHEMA}")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptCheckpoint(json_path, f"not a state tree: {_reason(error)}") from error
    try:
        arrays = load_file(array_path)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise CorruptCheckpoint(array_path, f"not a safetensors file: {_reason(error)}") from error
    try:
        return decode(document["tree"], arrays)
    except (KeyError, ValueError, TypeError, AttributeError, struct.error, RecursionError) as error:
        raise CorruptCheckpoint(json_path, f"does not fit its arrays: {_reason(error)}") from error


def tree_sha256(tree: StateTree) -> str:
    """A digest of a state tree's exact content, whatever machine or file it is on (hexadecimal)."""
    encoded = encode_tree(tree)
    digest = hashlib.sha256(encoded.structure)
    for chunk in _safetensors_chunks(encoded.arrays):
        digest.update(chunk)
    return digest.hexdigest()


def encode_tree(tree: StateTree) -> EncodedTree:
    """Splits a state tree into JSON and arrays. ValueError, naming the place, for what it cannot hold."""
    arrays: dict[str, np.ndarray] = {}
    document = {"schema": TREE_SCHEMA, "tree": encode(tree, arrays)}
    return EncodedTree(json.dumps(document, allow_nan=False).encode("ascii"), arrays)


def encode(tree: StateTree, arrays: dict[str, np.ndarray], path: str = "") -> Any:
    """The JSON form of `tree`; its arrays are put into `arrays` under their JSON pointers."""
    kind = type(tree)
    if tree is None or kind is bool:
        return tree
    if kind is str:
        return _checked_text(tree, path)
    if kind is int:
        return tree if abs(tree) < JSON_SAFE_INT else {"$int": hex(tree)}
    if kind is float:
        return tree if math.isfinite(tree) else {"$float": struct.pack(">d", tree).hex()}
    if kind is bytes:
        arrays[path] = np.frombuffer(tree, dtype=np.uint8)
        return {"$bytes": path}
    if kind is np.ndarray or isinstance(tree, np.generic):
        arrays[path] = _checked_array(np.asarray(tree), path)
        return {"$array": path}
    if isinstance(tree, Mapping):
        return {_escaped_key(key, path): encode(tree[key], arrays, _join(path, key)) for key in tree}
    if isinstance(tree, list | tuple):
        return [encode(item, arrays, f"{path}/{index}") for index, item in enumerate(tree)]
    raise ValueError(
        f"state tree at {path or '/'}: holds dict, list, numpy array, str, int, float, bool, None and bytes, "
        f"got {kind.__module__}.{kind.__qualname__}; convert it first"
    )


def decode(node: Any, arrays: Mapping[str, np.ndarray]) -> StateTree:
    """The inverse of `encode`. KeyError, ValueError or TypeError for what `encode` cannot have made."""
    if isinstance(node, list):
        return [decode(item, arrays) for item in node]
    if not isinstance(node, dict):
        return node
    tag = next(iter(node)) if len(node) == 1 else ""
    if not tag.startswith("$") or tag.startswith("$$"):
        return {_unescaped_key(key): decode(item, arrays) for key, item in node.items()}
    value = node[tag]
    if tag == "$array":
        return arrays[value]
    if tag == "$bytes":
        return arrays[value].tobytes()
    if tag == "$int":
        return int(value, 16)
    if tag == "$float":
        return float(struct.unpack(">d", bytes.fromhex(value))[0])
    raise ValueError(f"unknown tag {tag!r}")


def _safetensors_chunks(arrays: dict[str, np.ndarray]) -> Iterator[ReadableBuffer]:
    """The safetensors format, array by array: the library's writer would hold a second copy, or hide OSError.

    Layout: 8 bytes of header length (little endian), a JSON header padded to 8 bytes, the data without gaps;
    widest items first, so that every array is aligned.
    """
    ordered = sorted(arrays.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    header: dict[str, Any] = {}
    offset = 0
    for name, array in ordered:
        header[name] = {
            "dtype": SAFETENSORS_NAME[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    text = json.dumps(header, ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text
    for _, array in ordered:
        if array.nbytes:
            little_endian = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
            yield little_endian.reshape(-1).view(np.uint8).data


def _checked_array(array: np.ndarray, path: str) -> np.ndarray:
    if array.dtype.name not in SAFETENSORS_NAME:
        raise ValueError(
            f"state tree at {path or '/'}: an array has one of the dtypes {', '.join(SAFETENSORS_NAME)}, "
            f"got {array.dtype}; convert it first"
        )
    return array


def _checked_text(text: str, path: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"state tree at {path or '/'}: text is valid Unicode, got {text!r}") from error
    return text


def _escaped_key(key: Any, path: str) -> str:
    if type(key) is not str:
        raise ValueError(f"state tree at {path or '/'}: keys of a dict are str, got {key!r}")
    _checked_text(key, path)
    return "$" + key if key.startswith("$") else key


def _unescaped_key(key: str) -> str:
    if key.startswith("$") and not key.startswith("$$"):
        raise ValueError(f"unknown tag {key!r}")
    return key[1:] if key.startswith("$") else key


def _join(path: str, key: Any) -> str:
    return f"{path}/" + str(key).replace("~", "~0").replace("/", "~1")


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".replace("\n", " ")
