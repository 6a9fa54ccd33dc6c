"""Rows of tables: CSV and TSV with a header, Parquet, and Arrow files as `datasets` saves them."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distrl.errors import BadInput
from distrl.rlhf.data_streams import Stream, encoding_of

Placed = tuple[str, dict[str, Any], str | None]  # where, fields, problem: a `data_files.Record`


def csv_rows(path: Path, head: bytes, tabs: bool) -> Iterator[Placed]:
    """Rows by the header's names; every value is text. BadInput for a header that names nothing or something twice."""
    csv.field_size_limit(sys.maxsize)
    encoding = encoding_of(head)
    with Stream(path, "utf-8-sig" if encoding == "utf-8" else encoding).text(newline="") as text:
        first = next((line for line in text if line.strip()), "")
        delimiter = "\t" if tabs else max(",;\t", key=first.count)
        text.seek(0) if text.seekable() else None
        rows = csv.reader(text, delimiter=delimiter, strict=True)
        header = next((row for row in rows if row), [])
        names = [name.strip() for name in header]
        twice = {name for name in names if name and names.count(name) > 1}
        if not any(names) or twice:
            told = f"names {', '.join(sorted(twice))} twice" if twice else "is empty"
            raise BadInput(f"{path}: the first line must name the columns, and it {told}")
        while True:
            number = rows.line_num + 1  # where the next row begins
            try:
                row = next(rows, None)
            except csv.Error as error:
                raise BadInput(f"{path}:{number}: no CSV: {error}") from error
            if row is None:
                return
            if not row:
                continue
            where = f"{path}:{number}"
            if len(row) != len(names):
                yield where, {}, f"{len(row)} values for {len(names)} columns; is a quote missing?"
                continue
            yield where, {name: value for name, value in zip(names, row) if name}, None


def arrow_rows(path: Path, head: bytes) -> Iterator[dict[str, Any]]:
    """Of Parquet or Arrow. Raises BadInput without pyarrow, and what pyarrow raises for a damaged file."""
    what = "Parquet" if head.startswith(b"PAR1") else "an Arrow file"
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise BadInput(f"{path} is {what}, which needs pyarrow: pip install 'distrl[data]'") from error
    if head.startswith(b"PAR1"):
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                yield from batch.to_pylist()
        return
    with pa.memory_map(str(path)) as source:
        if head.startswith(b"ARROW1"):
            reader = pa.ipc.open_file(source)
            batches = (reader.get_batch(n) for n in range(reader.num_record_batches))
        else:
            batches = iter(pa.ipc.open_stream(source))
        for batch in batches:
            for begin in range(0, batch.num_rows, 1024):
                yield from batch.slice(begin, 1024).to_pylist()
