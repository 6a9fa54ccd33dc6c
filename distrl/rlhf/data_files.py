"""Data files as records: whatever a path is (JSONL, a JSON array, CSV, Parquet, compressed, a folder), rows come one by one.

    files_of(path) -> [file, ...]        one file; the shards of a folder or of a glob, in the order of their names
    records(path)  -> Record, ...        each with its place: file:line, file:item (a JSON array), file:row (a table)

What a file is follows from its first bytes, not from its name; only CSV and TSV are known by their suffix. Files are
streamed. A line that cannot be read is a Record with a `problem`; a file that cannot be read is BadInput.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distrl.errors import BadInput, translated
from distrl.named import nearest
from distrl.rlhf.data_streams import HEAD_BYTES, Stream, compression_of, encoding_of, open_stream, refusal

TABLES = (".csv", ".tsv", ".tab")
SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet", ".arrow", *TABLES)
COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
NOT_ROWS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")  # beside shards
CHUNK = 1 << 16  # characters
LONGEST_WORD = len("-Infinity")  # of JSON, which a piece may cut in two
WRAPPERS = ("data", "rows", "train", "examples", "instances")  # {"data": [row, ...]} is read as its rows


@dataclass(frozen=True)
class Record:
    """A row and its place, or what is wrong with it."""

    where: str
    fields: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None


def files_of(path: str | Path) -> list[Path]:
    """The files that a path stands for, in order. Raises BadInput where there are none."""
    path = Path(path)
    with translated(f"{path} cannot be read", kind=BadInput):
        if path.is_dir():
            return _files_of_folder(path)
        if path.is_file():
            return [path]
        if path.exists():
            raise BadInput(
                f"{path} must be a regular file, since a run reads its data again on resume; write it to a file first"
            )
        if any(sign in path.name for sign in "*?["):
            found = sorted(one for one in path.parent.glob(path.name) if one.is_file())
            if found:
                return found
            raise BadInput(f"{path} matches no file")
    raise BadInput(f"{path} cannot be read: No such file or directory{_missing(path)}")


def _missing(path: Path) -> str:
    if path.is_symlink():
        return f"; it is a link to {os.readlink(path)}"
    if path.parent.is_dir() and (near := nearest(path.name, [one.name for one in path.parent.iterdir()])):
        return near
    if len(path.parts) == 2 and not path.is_absolute() and not path.suffix and not path.parent.exists():
        return f"; data sets are not downloaded: huggingface-cli download --repo-type dataset {path} --local-dir FOLDER"
    return ""


def _suffix(path: Path) -> str:
    """Without that of a compression: `.jsonl` of a.jsonl.gz."""
    return Path(path.stem).suffix.lower() if path.suffix.lower() in COMPRESSED else path.suffix.lower()


def _files_of_folder(folder: Path) -> list[Path]:
    if (folder / "dataset_dict.json").is_file():
        splits = sorted(
            (one.name for one in folder.iterdir() if one.is_dir()), key=lambda s: (s != "train", s)
        )
        raise BadInput(
            f"{folder} holds the splits {', '.join(splits)} of a data set; name one: {folder / splits[0] if splits else ''}"
        )
    if (folder / "state.json").is_file():  # of `datasets.Dataset.save_to_disk`
        with translated(f"{folder / 'state.json'} is not what `datasets` writes"):
            named = json.loads((folder / "state.json").read_text(encoding="utf-8"))["_data_files"]
            return [
                folder / Path(one["filename"]).name for one in named
            ]  # within the folder, whatever it says
    shards = sorted(
        one
        for one in folder.iterdir()
        if one.is_file()
        and _suffix(one) in SUFFIXES
        and one.name not in NOT_ROWS
        and not one.name.startswith((".", "_"))
    )
    if not shards:
        inside = sorted(one.name for one in folder.iterdir() if one.is_dir() and not one.name.startswith("."))
        more = f"; its folders are {', '.join(inside[:5])}: name one" if inside else ""
        raise BadInput(f"{folder} is a folder without data files ({', '.join(SUFFIXES)}){more}")
    for what, kinds in (
        ("kinds", {_suffix(one) for one in shards}),
        ("splits", {one.name.partition(".")[0].partition("-")[0] for one in shards}),
    ):
        if len(kinds) > 1 and (what == "kinds" or kinds & {"train", "test", "validation", "valid", "dev"}):
            raise BadInput(
                f"{folder} holds files of several {what} ({', '.join(sorted(kinds))}); name a file, or shards by a "
                f"pattern: '{folder}/train-*{_suffix(shards[0])}'"
            )
    return shards


def sha256_of(path: str | Path) -> str:
    """Of the bytes of a file; of a folder, of its shards' digests in order. Raises BadInput."""
    digests = []
    for one in files_of(path):
        with translated(f"{one} cannot be read"), one.open("rb") as stream:
            digests.append(hashlib.file_digest(stream, "sha256").hexdigest())
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def records(path: str | Path) -> Iterator[Record]:
    """Every row of a file or folder, in order. Raises BadInput for what cannot be read at all."""
    for one in files_of(path):
        yield from _records_of(one)


def _records_of(path: Path) -> Iterator[Record]:
    with translated(f"{path} cannot be read", "is it complete? download or write it again"):
        try:
            yield from _read_records(path)
        except UnicodeDecodeError as error:
            raise BadInput(
                f"{path} is not {error.encoding.upper()} ({error.reason}, byte 0x{error.object[error.start]:02x}); convert "
                "it with iconv -t UTF-8"
            ) from error


def _read_records(path: Path) -> Iterator[Record]:
    with path.open("rb") as raw:
        head = raw.read(HEAD_BYTES)
    if not head.strip() and path.stat().st_size == len(head):
        raise BadInput(f"{path} is empty: it has nothing to learn from")
    if head.startswith((b"PAR1", b"ARROW1", b"\xff\xff\xff\xff")):
        from distrl.rlhf.data_tables import arrow_rows

        yield from (Record(f"{path}:row {n}", row) for n, row in enumerate(arrow_rows(path, head), 1))
        return
    with open_stream(path, compression_of(head)) as stream:
        inside = stream.peek(HEAD_BYTES)[:HEAD_BYTES]
    if not inside:
        raise BadInput(f"{path} is empty: it has nothing to learn from")
    if (why := refusal(inside)) is not None:
        raise BadInput(f"{path} {why}")
    if _suffix(path) in TABLES:
        from distrl.rlhf.data_tables import csv_rows

        yield from (Record(*one) for one in csv_rows(path, inside, tabs=_suffix(path) != ".csv"))
        return
    yield from _json_records(path, inside)


def _json_records(path: Path, head: bytes) -> Iterator[Record]:
    how = Stream(path, encoding_of(head))
    if head.decode(how.encoding, "ignore").lstrip("\ufeff \t\r\n").startswith("["):
        return _unwrapped(path, _items(how, in_list=True))
    found = next((line for _, line in how.lines() if not isinstance(line, str) or line.strip()), "")
    first = found if isinstance(found, str) else ""
    begins = first.lstrip()[:1]
    if begins == "{" and _spans_lines(how, first):
        return _unwrapped(path, _items(how, in_list=False))
    if begins and begins != "{" and _no_line_is_json(how):
        raise BadInput(
            f"{path} looks like text and not JSON (it begins {first.strip()[:40]!r}): write one object a line, "
            '{"text": "..."}, or name a table .csv or .tsv'
        )
    return _lines(path, how)


def _no_line_is_json(how: Stream) -> bool:
    some = []
    for _, line in how.lines():
        some.append(isinstance(line, str) and line.lstrip().startswith("{"))
        if len(some) == 20:
            break
    return not any(some)


def _spans_lines(how: Stream, first: str) -> bool:
    """Whether the file's first object ends on a later line than it begins."""
    try:
        json.JSONDecoder().raw_decode(first.strip())
        return False
    except (ValueError, RecursionError):
        pass
    try:
        return bool(next(_items(how, in_list=False)))
    except BadInput:
        return False


def _lines(path: Path, how: Stream) -> Iterator[Record]:
    alone = True
    held: Record | None = None  # the first line, until it is known whether more follow
    for number, line in how.lines():
        if isinstance(line, str) and not line.strip():
            continue
        one = _line(f"{path}:{number}", line)
        if held is None and alone:
            held = one
            continue
        alone = False
        if held is not None:
            yield held
            held = None
        yield one
    if held is not None:  # the only one
        yield from _unwrapped(path, iter([held]))


def _line(where: str, line: str | UnicodeDecodeError) -> Record:
    if isinstance(line, UnicodeDecodeError):
        told = f"no JSON: not UTF-8 (byte 0x{line.object[line.start]:02x} in column {line.start + 1})"
        return Record(where, problem=f"{told}; convert the file with iconv -t UTF-8")
    try:
        found = json.loads(line.strip(" \t\r\n"), object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        return Record(where, problem=f"no JSON: {_why_no_json(line, error)}")
    except (ValueError, RecursionError) as error:
        return Record(where, problem=f"no JSON: {error}")
    if not isinstance(found, dict):
        return Record(where, problem=f"a line must be a JSON object, this is {kind_of(found)}")
    return Record(where, found)


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. ValueError for a key that it has twice, of which the first would be lost."""
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} is there twice")
    return found


def _why_no_json(line: str, error: json.JSONDecodeError) -> str:
    text = line.strip()
    if "\0" in text:
        return "it has NUL bytes: the file is damaged"
    if text.startswith(("{'", "[{'")):
        return "it looks like a dict that Python printed; write it with json.dumps"
    if error.msg == "Extra data":
        if text[error.pos :].strip() == "," or text.endswith("},"):
            return "it ends in a comma; JSONL has nothing between its lines"
        return f"more than one value in a line (column {error.colno})"
    return f"{error.msg} (column {error.colno})"


def kind_of(value: Any) -> str:
    """What a value is, as JSON calls it."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    found = names.get(type(value))
    return found or ("a number" if isinstance(value, (int, float)) else type(value).__name__)


# values that span lines


def _items(how: Stream, in_list: bool) -> Iterator[Record]:
    """The values of a JSON array, or values that follow each other. BadInput where the JSON is broken."""
    text = _Growing(how)
    if in_list:
        text.take("[")
    number = 0
    while True:
        mark = text.mark()
        if not mark or (in_list and mark == "]"):
            break
        if in_list and number:
            text.take(",")
        number += 1
        value = text.value()
        where = f"{how.path}:item {number}"
        if isinstance(value, dict):
            yield Record(where, value)
        else:
            yield Record(where, problem=f"an item must be a JSON object, this is {kind_of(value)}")
    if in_list:
        text.take("]")
        if text.mark():
            text.broken("more follows the end of the array; JSONL has one object a line")


class _Growing:
    """JSON text, of which only what is looked at is held."""

    def __init__(self, how: Stream) -> None:
        self.how = how
        self.parts = how.chunks(CHUNK)
        self.text = ""
        self.at = 0
        self.line = 1
        self.decoder = json.JSONDecoder(object_pairs_hook=unique)

    def _more(self) -> bool:
        self.line += self.text.count("\n", 0, self.at)
        some, size = [self.text[self.at :]], 0
        for part in self.parts:  # as much again as there is, so that a huge value is not tried too often
            some.append(part)
            size += len(part)
            if size >= len(some[0]):
                break
        self.text, self.at = "".join(some), 0
        return size > 0

    def mark(self) -> str:
        """The next character that is no space; empty at the end."""
        while True:
            while self.at < len(self.text):
                if not self.text[self.at].isspace():
                    return self.text[self.at]
                self.at += 1
            if not self._more():
                return ""

    def take(self, sign: str) -> None:
        found = self.mark()
        if found != sign:
            self.broken(f"{sign!r} is missing" if not found else f"{sign!r} must stand before {found!r}")
        self.at += 1

    def value(self) -> Any:
        if self.mark() in ("]", ""):
            self.broken("a value is missing; is there a comma too many?")
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                near_end = error.pos >= len(self.text.rstrip()) - LONGEST_WORD
                cut_off = near_end or error.msg.startswith("Unterminated string")
                if not (cut_off and self._more()):
                    self.broken(f"{error.msg}", error.pos)
            except (ValueError, RecursionError) as error:
                self.broken(str(error))
            else:
                self.at = end
                return value

    def broken(self, why: str, at: int | None = None) -> None:
        line = self.line + self.text.count("\n", 0, self.at if at is None else at)
        raise BadInput(f"{self.how.path}:{line}: no JSON: {why}; the file cannot be read beyond it")


def _unwrapped(path: Path, rows: Iterator[Record]) -> Iterator[Record]:
    """Rows; where there is one alone that holds them all, {"data": [...]}, those within. BadInput for columns."""
    first = next(rows, None)
    if first is None:
        return
    second = next(rows, None)
    if second is not None:
        yield first
        yield second
        yield from rows
        return
    for name in WRAPPERS:
        inside = first.fields.get(name)
        if isinstance(inside, list) and inside and all(isinstance(one, dict) for one in inside):
            yield from (Record(f"{path}:item {n}", one) for n, one in enumerate(inside, 1))
            return
    if first.fields and all(map(_is_column, first.fields.values())):
        raise BadInput(
            f'{path} holds columns and not rows; write rows: df.to_json(path, orient="records", lines=True)'
        )
    yield first


def _is_column(value: Any) -> bool:
    """As pandas writes a column, {"0": ...}, or a list of texts."""
    if isinstance(value, dict):
        return "0" in value
    return isinstance(value, list) and bool(value) and isinstance(value[0], str)
