"""Files of data: the same rows from each kind of file, and one line for a file that is something else."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import importlib.util
import json
import lzma
import pickle
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distrl.errors import BadInput
from distrl.rlhf.data_files import files_of, records, sha256_of

ROWS = [{"prompt": "a\nü", "completion": 'b,"c"'}, {"prompt": "d\u2028", "completion": "e"}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
CSV = 'prompt,completion\n"a\nü","b,""c"""\nd\u2028,e\n'
HAS_DATA_EXTRA = all(importlib.util.find_spec(name) for name in ("pyarrow", "zstandard"))
needs_extra = pytest.mark.skipif(not HAS_DATA_EXTRA, reason="needs distrl[data]")


def pretty(rows: list[dict[str, Any]]) -> str:
    return "\n".join(json.dumps(row, indent=2) for row in rows)


TEXTS: dict[str, tuple[str, bytes]] = {
    "JSONL": ("x.jsonl", LINES.encode()),
    "without a last line end": ("x.jsonl", LINES.strip().encode()),
    "CRLF": ("x.jsonl", LINES.replace("\n", "\r\n").encode()),
    "CR": ("x.jsonl", LINES.replace("\n", "\r").encode()),
    "blank lines": ("x.jsonl", b"\n\n" + LINES.replace("\n", "\n \n").encode()),
    "a byte-order mark": ("x.jsonl", LINES.encode("utf-8-sig")),
    "UTF-16": ("x.jsonl", LINES.encode("utf-16")),
    "UTF-16 without a mark": ("x.jsonl", LINES.replace("\n", "\r\n").encode("utf-16-le")),
    "UTF-32": ("x.jsonl", LINES.encode("utf-32")),
    "no suffix": ("x", LINES.encode()),
    "an array": ("x.json", json.dumps(ROWS).encode()),
    "an array over lines": ("x.json", json.dumps(ROWS, indent=2).encode()),
    "an array with a mark": ("x.json", json.dumps(ROWS).encode("utf-8-sig")),
    "objects over lines": ("x.json", pretty(ROWS).encode()),
    "rows within an object": ("x.json", json.dumps({"version": 1, "data": ROWS}, indent=1).encode()),
    "rows within a line": ("x.json", json.dumps({"rows": ROWS}).encode()),
    "gzip": ("x.jsonl.gz", gzip.compress(LINES.encode())),
    "gzip by another name": ("x.jsonl", gzip.compress(LINES.encode())),
    "two gzip members": ("x.gz", b"".join(gzip.compress(f"{line}\n".encode()) for line in LINES.split("\n"))),
    "bz2": ("x.bz2", bz2.compress(LINES.encode())),
    "xz": ("x.xz", lzma.compress(LINES.encode())),
    "CSV": ("x.csv", CSV.encode()),
    "CSV with CRLF and a mark": ("x.csv", CSV.replace("\n", "\r\n").replace("a\r\n", "a\n").encode("utf-8-sig")),
    "CSV of UTF-16": ("x.csv", CSV.encode("utf-16")),
    "CSV with an index": ("x.csv", ',prompt,completion\n0,"a\nü","b,""c"""\n1,d\u2028,e\n'.encode()),
    "CSV with semicolons": ("x.csv", CSV.replace(",c", ";c").replace('","', '";"').replace("d\u2028,", "d\u2028;").encode()),
    "TSV": ("x.tsv", 'prompt\tcompletion\n"a\nü"\t"b,""c"""\nd\u2028\te\n'.encode()),
    "CSV in gzip": ("x.csv.gz", gzip.compress(CSV.encode())),
}  # fmt: skip


@pytest.mark.parametrize("name", TEXTS)
def test_the_same_rows_come_from_every_kind_of_text(name: str, tmp_path: Path) -> None:
    file, content = TEXTS[name]
    (tmp_path / file).write_bytes(content)
    found = list(records(tmp_path / file))
    assert [one.problem for one in found] == [None, None]
    assert [one.fields for one in found] == ROWS


def test_places_are_lines_items_or_rows(tmp_path: Path) -> None:
    def places(name: str, content: str) -> list[str]:
        (tmp_path / name).write_text(content, encoding="utf-8")
        return [one.where.removeprefix(f"{tmp_path}/") for one in records(tmp_path / name)]

    assert places("a.jsonl", "\n" + LINES) == ["a.jsonl:2", "a.jsonl:3"]
    assert places("a.json", json.dumps(ROWS)) == ["a.json:item 1", "a.json:item 2"]
    assert places("a.csv", CSV) == ["a.csv:2", "a.csv:4"], "the first row has a line end in it"


def test_an_array_is_read_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distrl.rlhf.data_files.CHUNK", 7)
    draw = random.Random(0)
    rows = [
        {
            "prompt": "x" * draw.randrange(90),
            "n": draw.random(),
            "l": [True, draw.random() / 1e9, {"a": "]}\\ü"}],
        }
        for _ in range(200)
    ]
    for indent in (None, 1):
        (tmp_path / "x.json").write_text(json.dumps(rows, indent=indent))
        assert [one.fields for one in records(tmp_path / "x.json")] == rows


BROKEN_ARRAYS = {
    "a comma too many": ('[{"a": 1},\n]', ":2: .*a comma too many"),
    "cut off in a text": ('[{"a": 1},\n{"a": "b', ":2: no JSON: Unterminated"),
    "cut off behind a row": ('[{"a": 1}', "']' is missing"),
    "no comma": ('[{"a": 1} {"a": 2}]', "',' must stand before"),
    "one a line": ('[{"a": 1}]\n[{"a": 2}]', ":2: .*more follows the end of the array"),
    "a key twice": ('[{"a": 1, "a": 2}]', "the key 'a' is there twice"),
    "deep": ('[{"a": ' + "[" * 100_000, "recursion"),
}


@pytest.mark.parametrize("name", BROKEN_ARRAYS)
def test_a_broken_array_is_refused_at_its_line(name: str, tmp_path: Path) -> None:
    text, told = BROKEN_ARRAYS[name]
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(BadInput, match=told):
        list(records(tmp_path / "x.json"))


LINES_THAT_ARE_NONE = {
    "a comma": (b'{"a": 1},', "ends in a comma"),
    "two": (b'{"a": 1} {"a": 2}', "more than one value"),
    "printed by Python": (b"{'a': 1}", "json.dumps"),
    "NUL": (b"\0\0\0", "NUL bytes: the file is damaged"),
    "Latin-1": (b'{"a": "caf\xe9"}', "not UTF-8 .byte 0xe9 in column 11.*iconv"),
    "cut off": (b'{"a": "b', "Unterminated string"),
    "a number": (b"3", "must be a JSON object, this is a number"),
    "twice": (b'{"a": {"b": 1, "b": 1}}', "the key 'b' is there twice"),
    "digits": (b'{"a": ' + b"9" * 5000 + b"}", "Exceeds the limit"),
    "deep": (b'{"a": ' + b"[" * 100_000, "recursion"),
}


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("name", LINES_THAT_ARE_NONE)
def test_a_line_that_is_no_row_says_what_it_looks_like(name: str, first: bool, tmp_path: Path) -> None:
    line, told = LINES_THAT_ARE_NONE[name]
    lines = [line, b'{"a": 1}', b'{"a": 2}'] if first else [b'{"a": 1}', line, b'{"a": 2}']
    (tmp_path / "x.jsonl").write_bytes(b"\n".join(lines))
    found = list(records(tmp_path / "x.jsonl"))
    (bad,) = [one for one in found if one.problem is not None]
    assert bad.where.endswith(":1" if first else ":2") and len(found) == 3
    assert re.search(told, bad.problem), bad.problem


OTHER_FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "spaces": (b" \n\n ", "is empty"),
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
    "HTML": (b"\n<!DOCTYPE html>\n<html>", "looks like an HTML page"),
    "XML": (b"<?xml version='1.0'?>", "looks like XML"),
    "a pickle": (pickle.dumps(ROWS), "looks like a pickle, which could run code"),
    "zip": (b"PK\x03\x04....", "looks like a zip archive"),
    "tar": (b"x" * 257 + b"ustar" + b"\0" * 100, "looks like a tar archive"),
    "PDF": (b"%PDF-1.7", "looks like a PDF"),
    "binary": (bytes(range(1, 256)) * 9, "looks like a binary file"),
    "NUL": (b"\0" * 999, "NUL bytes from its beginning"),
    "text": (b"once upon a time\nthere was\n", "looks like text and not JSON .it begins 'once upon"),
    "CSV by another name": (b"prompt,completion\na,b\n", "looks like text.*name a table .csv"),
    "columns of pandas": (b'{"prompt": {"0": "a"}, "completion": {"0": "b"}}', "holds columns and not rows"),
    "columns": (b'{"prompt": ["a"], "completion": ["b"]}', "holds columns and not rows"),
    "an empty gzip": (gzip.compress(b""), "is empty"),
    "gzip cut off": (gzip.compress(LINES.encode() * 99)[:-9], "cannot be read: EOFError.*is it complete"),
    "gzip damaged": (gzip.compress(b"x" * 99)[:12] + b"\xff" * 60, "cannot be read"),
    "UTF-16 cut off": (LINES.encode("utf-16")[:-1], "is not UTF-16"),
    "a pickle in gzip": (gzip.compress(pickle.dumps(ROWS)), "looks like a pickle"),
}


@pytest.mark.parametrize("name", OTHER_FILES)
def test_a_file_that_is_something_else_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    content, told = OTHER_FILES[name]
    (tmp_path / "x.jsonl").write_bytes(content)
    with pytest.raises(BadInput, match=told) as refused:
        list(records(tmp_path / "x.jsonl"))
    assert len(refused.value.problems) == 1 and "\n" not in str(refused.value)


BAD_TABLES = {
    "a row too long": (b"a,b\n1,2\n1,2,3\n", None),
    "a quote left open": (b'a,b\n1,"2\n', ":2: no CSV"),
    "a column twice": (b"a,a\n1,2\n", "names a twice"),
    "Latin-1": (b"a,b\ncaf\xe9,2\n", "is not UTF-8.*iconv"),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_a_table_that_is_wrong_is_named(name: str, tmp_path: Path) -> None:
    content, told = BAD_TABLES[name]
    (tmp_path / "x.csv").write_bytes(content)
    if told is None:
        good, bad = records(tmp_path / "x.csv")
        assert good.fields == {"a": "1", "b": "2"}
        assert bad.where.endswith("x.csv:3") and bad.problem == "3 values for 2 columns; is a quote missing?"
        return
    with pytest.raises(BadInput, match=told):
        list(records(tmp_path / "x.csv"))


def _parquet(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(ROWS), path)


def _arrow(path: Path, kind: str = "new_stream") -> None:
    import pyarrow as pa

    table = pa.Table.from_pylist(ROWS)
    with pa.OSFile(str(path), "wb") as out, getattr(pa.ipc, kind)(out, table.schema) as writer:
        writer.write_table(table)


@needs_extra
@pytest.mark.parametrize("name", ["parquet", "stream", "file", "zst"])
def test_tables_of_arrow_and_zstd_give_the_same_rows(name: str, tmp_path: Path) -> None:
    import zstandard

    write: dict[str, Callable[[Path], Any]] = {
        "parquet": _parquet,
        "stream": _arrow,
        "file": lambda path: _arrow(path, "new_file"),
        "zst": lambda path: path.write_bytes(zstandard.compress(LINES.encode())),
    }
    write[name](tmp_path / "x")
    found = list(records(tmp_path / "x"))
    assert [one.fields for one in found] == ROWS
    assert [one.where.removeprefix(f"{tmp_path}/") for one in found] == (
        ["x:1", "x:2"] if name == "zst" else ["x:row 1", "x:row 2"]
    )


@needs_extra
def test_what_is_cut_off_within_a_frame_of_zstd_is_not_lost_in_silence(tmp_path: Path) -> None:
    import zstandard

    draw = random.Random(0)
    lines = "".join(json.dumps({"prompt": str(draw.random())}) + "\n" for _ in range(9000)).encode()
    whole = zstandard.compress(lines) + zstandard.compress(LINES.encode())
    (tmp_path / "x.zst").write_bytes(whole)
    assert sum(1 for _ in records(tmp_path / "x.zst")) == 9002, "two frames"
    (tmp_path / "x.zst").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInput, match="ended before the end of its last frame"):
        list(records(tmp_path / "x.zst"))


@needs_extra
def test_a_damaged_table_is_refused_in_one_line(tmp_path: Path) -> None:
    for write in (_parquet, _arrow):
        write(tmp_path / "x")
        (tmp_path / "x").write_bytes((tmp_path / "x").read_bytes()[:-200])
        with pytest.raises(BadInput, match="cannot be read: .*is it complete") as refused:
            list(records(tmp_path / "x"))
        assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(("head", "needs"), [(b"PAR1", "pyarrow"), (b"\x28\xb5\x2f\xfd", "zstandard")])
def test_without_the_extra_the_command_that_installs_it_is_named(
    head: bytes, needs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, needs, None)
    (tmp_path / "x").write_bytes(head + b"....")
    with pytest.raises(BadInput, match=rf"needs {needs}: pip install 'distrl\[data\]'"):
        list(records(tmp_path / "x"))


def _shard(folder: Path, name: str, prompt: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps({"prompt": prompt}) + "\n")


def _prompts(path: Path) -> list[str]:
    return [one.fields["prompt"] for one in records(path)]


def test_a_folder_is_its_shards_in_order_and_a_pattern_those_that_match(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    for n in (1, 0, 2):
        _shard(folder, f"train-0000{n}-of-00003.jsonl", str(n))
    (folder / "README.md").write_text("# Data")
    (folder / "dataset_infos.json").write_text("{}")
    _shard(folder, "._train.jsonl", "of a Mac")
    assert _prompts(folder) == ["0", "1", "2"]
    _shard(folder, "test-00000-of-00001.jsonl", "held out")
    with pytest.raises(BadInput, match=r"several splits \(test, train\).*train-\*\.jsonl"):
        list(records(folder))
    assert _prompts(folder / "train-*.jsonl") == ["0", "1", "2"]
    with pytest.raises(BadInput, match="matches no file"):
        list(records(folder / "valid-*.jsonl"))
    (folder / "rows.csv").write_text("prompt\na\n")
    with pytest.raises(BadInput, match="several kinds"):
        list(records(folder))


@needs_extra
def test_what_datasets_saved_is_read_in_its_own_order(tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    folder.mkdir()
    names = ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
    for name in names:
        _arrow(folder / name)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text("{}")
    assert [one.fields for one in records(folder)] == ROWS * 2
    (folder / names[1]).unlink()
    with pytest.raises(BadInput, match="cannot be read: FileNotFoundError"):
        list(records(folder))
    (folder / "state.json").write_text("{}")
    with pytest.raises(BadInput, match="is not what `datasets` writes"):
        list(records(folder))


def test_a_folder_of_splits_or_without_data_is_refused_with_what_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(BadInput, match="a folder without data files .*its folders are train"):
        files_of(tmp_path)
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train"]}')
    with pytest.raises(BadInput, match=r"holds the splits train .*/train$"):
        files_of(tmp_path)


def test_a_path_to_nothing_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    _shard(tmp_path, "train.jsonl", "a")
    with pytest.raises(BadInput, match=r"No such file or directory; did you mean 'train.jsonl'"):
        files_of(tmp_path / "trian.jsonl")
    (tmp_path / "link").symlink_to("gone")
    with pytest.raises(BadInput, match="it is a link to gone"):
        files_of(tmp_path / "link")
    with pytest.raises(BadInput, match="data sets are not downloaded: huggingface-cli download"):
        files_of("no-such-owner/no-such-data")


def test_a_file_that_can_be_read_once_alone_is_refused(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadInput, match="must be a regular file"):
        files_of(tmp_path / "pipe")


def test_the_digest_of_a_file_is_its_bytes_and_of_a_folder_its_shards(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    _shard(folder, "a.jsonl", "a")
    content = (folder / "a.jsonl").read_bytes()
    assert sha256_of(folder / "a.jsonl") == hashlib.sha256(content).hexdigest() == sha256_of(folder)
    _shard(folder, "b.jsonl", "b")
    both = sha256_of(folder)
    _shard(folder, "b.jsonl", "c")
    assert sha256_of(folder) != both
