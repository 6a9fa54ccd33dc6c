"""State trees come back to the bit, or are refused by place."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load_file

from distrl.checkpoint import (
    CorruptCheckpoint,
    load_tree,
    save_tree,
    tree_sha256,
    write_checkpoint,
)

DTYPES = ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
DTYPES += ["float16", "float32", "float64", "complex64"]
BOTH_FILES = {"policy.json", "policy.safetensors"}


def assert_same_tree(found: Any, expected: Any) -> None:
    """Equal to the bit: types, dtypes, shapes, NaN payloads, signs of zero, order of keys."""
    if isinstance(expected, np.ndarray):
        assert isinstance(found, np.ndarray)
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert found.tobytes() == expected.tobytes()
    elif isinstance(expected, dict):
        assert type(found) is dict and list(found) == list(expected)
        for key in expected:
            assert_same_tree(found[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert type(found) is list and len(found) == len(expected)
        for found_item, expected_item in zip(found, expected, strict=True):
            assert_same_tree(found_item, expected_item)
    elif isinstance(expected, float):
        assert type(found) is float
        assert np.float64(found).tobytes() == np.float64(expected).tobytes()
    else:
        assert type(found) is type(expected) and found == expected


arrays = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
)


keys = st.text(max_size=4) | st.sampled_from(
    ["$array", "$$int", "$", "a/b", "~", "~1", "", "__metadata__", "0"]
)


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5)


state_trees = st.recursive(
    leaves | arrays,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(tree=state_trees)
def test_any_state_tree_comes_back_exactly(tree: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("tree")
    save_tree(folder, "policy", tree)
    loaded = load_tree(folder, "policy")
    assert_same_tree(loaded, tree)
    assert tree_sha256(loaded) == tree_sha256(tree)
    assert {path.name for path in folder.iterdir()} == BOTH_FILES


def test_awkward_arrays_and_numbers_come_back_exactly(tmp_path: Path) -> None:
    payload_nan = float(np.array([0x7FF800000000BEEF], np.uint64).view(np.float64)[0])
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    tree = {
        "strided": base[::2, ::-3],
        "fortran": np.asfortranarray(base),
        "scalar": np.array(np.nan, np.float16),
        "empty": np.zeros((3, 0, 2), np.int64),
        "numbers": [payload_nan, float("inf"), float("-inf"), -0.0, 5e-324, 10**5000, -(2**53), 2**64 - 1],
        "bytes": b"\x00\xff\x80",
    }
    save_tree(tmp_path, "state", tree)
    assert_same_tree(load_tree(tmp_path, "state"), tree)


def test_tuples_numpy_scalars_and_foreign_byte_order_come_back_as_documented(tmp_path: Path) -> None:
    save_tree(tmp_path, "state", {"t": (1, (2,)), "s": np.float32(0.1), "b": np.array([1, 258], ">i4")})
    expected = {"t": [1, [2]], "s": np.array(0.1, np.float32), "b": np.array([1, 258], np.int32)}
    assert_same_tree(load_tree(tmp_path, "state"), expected)


def test_loaded_arrays_are_writable_and_not_the_file(tmp_path: Path) -> None:
    save_tree(tmp_path, "state", np.zeros(3))
    load_tree(tmp_path, "state")[0] = 7.0
    assert_same_tree(load_tree(tmp_path, "state"), np.zeros(3))


def test_the_array_file_is_plain_safetensors_named_by_path(tmp_path: Path) -> None:
    save_tree(tmp_path, "policy", {"body": [{"w/0": np.arange(3, dtype=np.int16)}], "on": np.array(True)})
    found = load_file(tmp_path / "policy.safetensors")
    assert_same_tree(
        dict(sorted(found.items())), {"/body/0/w~10": np.arange(3, dtype=np.int16), "/on": np.array(True)}
    )


@pytest.mark.parametrize(
    ("tree", "place"),
    [
        ({"a": [np.array([None])]}, "/a/0"),
        ({"a": np.zeros(1, np.complex128)}, "/a"),
        ({"a": {1: 2}}, "/a"),
        ({"a": {2, 3}}, "/a"),
        ({"a": object()}, "/a"),
        ({"a": np.ma.masked_array([1, 2], [False, True])}, "/a"),
        ({"a": "\ud800"}, "/a"),
    ],
)
def test_what_a_tree_cannot_hold_is_refused_by_place_before_anything_is_written(
    tree: Any, place: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=f"at {place}:"):
        write_checkpoint(tmp_path / "checkpoints", 0, {"policy": tree}, {})
    assert not (tmp_path / "checkpoints").exists()


def test_the_digest_of_a_tree_sees_one_bit_the_dtype_and_the_shape() -> None:
    base = np.arange(6, dtype=np.int32)
    one_bit = base.copy()
    one_bit[3] ^= 1
    trees = [base, one_bit, base.view(np.uint32), base.reshape(2, 3), [base], {"a": base}]
    assert len({tree_sha256(tree) for tree in trees}) == len(trees)


def test_a_damaged_tree_without_a_manifest_is_still_no_crash(tmp_path: Path) -> None:
    save_tree(tmp_path, "policy", {"w": np.arange(4.0)})
    good = (tmp_path / "policy.json").read_bytes()
    deep = b'{"schema": 1, "tree": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    wrong = [b"", b"[]", b"{", b'{"schema": 2, "tree": 1}', good.replace(b"/w", b"/v"), deep]
    wrong += [good.replace(b"$array", b"$other"), good.replace(b'"/w"', b"[1]")]
    for content in wrong:
        (tmp_path / "policy.json").write_bytes(content)
        with pytest.raises(CorruptCheckpoint, match=r"policy\.json"):
            load_tree(tmp_path, "policy")
    (tmp_path / "policy.json").write_bytes(good)
    os.truncate(tmp_path / "policy.safetensors", 30)
    with pytest.raises(CorruptCheckpoint, match=r"policy\.safetensors: not a safetensors file"):
        load_tree(tmp_path, "policy")
