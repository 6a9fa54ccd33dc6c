"""The bytes of a data file as text: compression, encoding, line ends, and files that are something else altogether."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from distrl.errors import BadInput

HEAD_BYTES = 4096
COMPRESSIONS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bz2", b"\xfd7zXZ": "xz"}
BOMS = {
    codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip
# first bytes -> what it looks like, and what to do
OTHERS: dict[bytes, str] = {
    b"version https://git-lfs": "looks like a git-lfs pointer and not the data: fetch it with git lfs pull",
    b"PK\x03\x04": "looks like a zip archive (.zip, .xlsx, .npz, .pt): unpack it, or save the rows as JSONL",
    b"Rar!": "looks like a rar archive: unpack it and name the file inside",
    b"7z\xbc\xaf": "looks like a 7z archive: unpack it and name the file inside",
    b"%PDF": "looks like a PDF: save its texts as JSONL",
    b"SQLite format 3": "looks like an SQLite database: export its rows as JSONL or CSV",
    b"\x89HDF": "looks like an HDF5 file: save its rows as JSONL or Parquet",
    b"\x93NUMPY": "looks like a NumPy array: texts are read from JSONL, CSV or Parquet",
    b"\x80\x02": "looks like a pickle, which could run code and is not read: save the rows as JSONL",
    b"\x80\x03": "looks like a pickle, which could run code and is not read: save the rows as JSONL",
    b"\x80\x04": "looks like a pickle, which could run code and is not read: save the rows as JSONL",
    b"\x80\x05": "looks like a pickle, which could run code and is not read: save the rows as JSONL",
    b"PAR1": "looks like Parquet within another compression: decompress it first",
    b"ORC": "looks like an ORC file: save its rows as Parquet",
    b"Obj\x01": "looks like an Avro file: save its rows as Parquet",
    b"<?xml": "looks like XML: save its rows as JSONL",
}
HTML = "looks like an HTML page and not the data: a download that asked for a login, or the page of a file and not the file"
CONTROL = bytes([*range(1, 9), *range(14, 32), 127])


def compression_of(head: bytes) -> str | None:
    """The name of a file's compression, by its first bytes."""
    return next((name for magic, name in COMPRESSIONS.items() if head.startswith(magic)), None)


def open_stream(path: Path, compression: str | None) -> io.BufferedReader:
    """The file's bytes, decompressed. Raises BadInput where a package is missing."""
    if compression is None:
        return path.open("rb")
    if compression == "zstd":
        try:
            import zstandard
        except ImportError as error:
            raise BadInput(
                f"{path} is compressed with zstd, which needs zstandard: pip install 'distrl[data]'"
            ) from error
        found: Any = _Zstd(
            path.open("rb"), zstandard.ZstdDecompressor(max_window_size=2**31)
        )  # `zstd --long`
    else:
        opener: Any = {"gzip": gzip.open, "bz2": bz2.open, "xz": lzma.open}[compression]
        found = opener(path, "rb")
    return io.BufferedReader(cast("io.RawIOBase", found))


class _Zstd(io.RawIOBase):
    """Frames one after the other; EOFError for a file that ends within one, which zstandard's own reader passes over."""

    def __init__(self, source: IO[bytes], decompressor: Any) -> None:
        self.source = source
        self.decompressor = decompressor
        self.frame: Any = None
        self.ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        rest = b""
        while not self.ready:
            rest = rest or self.source.read(1 << 16)
            if not rest:
                if self.frame is not None:
                    raise EOFError("compressed file ended before the end of its last frame")
                return 0
            self.frame = self.frame or self.decompressor.decompressobj()
            self.ready = self.frame.decompress(rest)
            rest = b""
            if self.frame.eof:
                rest, self.frame = self.frame.unused_data, None
                if self.ready and rest:
                    self.source.seek(-len(rest), io.SEEK_CUR)
        size = min(len(buffer), len(self.ready))
        buffer[:size], self.ready = self.ready[:size], self.ready[size:]
        return size

    def close(self) -> None:
        self.source.close()
        super().close()


def refusal(head: bytes) -> str | None:
    """What a file that is not read looks like and what to do, or None for text."""
    for magic, what in OTHERS.items():
        if head.startswith(magic):
            return what
    begins = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:15].lower()
    if begins.startswith((b"<!doctype html", b"<html", b"<head")):
        return HTML
    if head[257:262] == b"ustar":
        return "looks like a tar archive: unpack it and name the file inside"
    text = head.lstrip(b"\0") and encoding_of(head) not in ("utf-8", "utf-8-sig")
    if not text and head.count(b"\0") > len(head) // 2:
        return "is NUL bytes from its beginning: the file is damaged (a broken download?)"
    if not text and len(head.translate(None, CONTROL)) < 0.9 * len(head):
        return "looks like a binary file: data is read from JSONL, JSON, CSV, Parquet or Arrow"
    return None


def encoding_of(head: bytes) -> str:
    """By a byte-order mark, or by where NUL bytes are; else UTF-8."""
    for mark, name in BOMS.items():
        if head.startswith(mark):
            return name
    pairs = len(head) // 2
    if pairs and head[1::2].count(0) > 0.7 * pairs and not head[::2].count(0):
        return "utf-16-le"
    if pairs and head[::2].count(0) > 0.7 * pairs and not head[1::2].count(0):
        return "utf-16-be"
    return "utf-8"


@dataclass(frozen=True)
class Stream:
    """The text of a file, which may be read several times."""

    path: Path
    encoding: str

    def open(self) -> io.BufferedReader:
        with self.path.open("rb") as raw:
            head = raw.read(HEAD_BYTES)
        return open_stream(self.path, compression_of(head))

    def text(self, newline: str | None = None) -> IO[str]:
        """As `open` of Python gives it, decoded strictly."""
        return io.TextIOWrapper(self.open(), encoding=self.encoding, newline=newline)

    def lines(self) -> Iterator[tuple[int, str | UnicodeDecodeError]]:
        """Each line with its number, from 1; a line that is not UTF-8 is its error."""
        with closing(self.open()) as stream:
            head = stream.peek(HEAD_BYTES)[:HEAD_BYTES]
            old_mac = b"\r" in head.rstrip(b"\r") and b"\n" not in head
            if old_mac or self.encoding not in ("utf-8", "utf-8-sig"):
                yield from enumerate(io.TextIOWrapper(stream, encoding=self.encoding), 1)
                return
            for number, raw in enumerate(stream, 1):
                line = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
                try:
                    yield number, line.decode()
                except UnicodeDecodeError as error:
                    yield number, error

    def chunks(self, size: int) -> Iterator[str]:
        """The text in pieces of about `size` characters."""
        with closing(self.text()) as stream:
            while part := stream.read(size):
                yield part
