"""What the files of a pool hold: by their names, and by the marks that their first bytes are.

A mark is believed before a name: `.gz` is what a store that unpacks leaves at the end of names.
JSON and CSV have no marks; there the name decides, or a flag.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Literal, cast

import pyarrow as pa

from scar_core import storage
from scar_core.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

Format = Literal["parquet", "jsonl", "json", "csv", "arrow"]
Compression = Literal["", "gz", "zst", "bz2", "xz"]

FORMAT_SUFFIXES: dict[str, Format] = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
}
COMPRESSIONS: tuple[Compression, ...] = ("gz", "zst", "bz2", "xz")
# What is always packed inside is not packed again, and could not be read in part if it were.
PACKED: tuple[Format, ...] = ("jsonl", "json", "csv")
SUFFIXES = (
    *FORMAT_SUFFIXES,
    *(f"{s}.{c}" for s, f in FORMAT_SUFFIXES.items() if f in PACKED for c in COMPRESSIONS),
)
"""Of the names that a folder or a glob is searched for."""

_FORMAT_MARKS: dict[bytes, Format] = {
    b"PAR1": "parquet",
    b"ARROW1": "arrow",
    b"\xff\xff\xff\xff": "arrow",  # a stream
}
_COMPRESSION_MARKS: dict[bytes, Compression] = {
    b"\x1f\x8b": "gz",
    b"\x28\xb5\x2f\xfd": "zst",
    b"BZh": "bz2",
    b"\xfd7zXZ\x00": "xz",
}
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")

END_BYTES = 64 * 2**10
_BUFFER_BYTES = 2**20
UNPACKING_ERRORS = (EOFError, zlib.error, lzma.LZMAError, pa.ArrowException, OSError)
"""What `unpacked` raises of a file that is cut or broken, and of a store, whose errors are ours."""


@dataclass(frozen=True, kw_only=True)
class FormatConfig:
    """What the files of a pool are taken for."""

    pool_format: Literal["auto", "parquet", "jsonl", "json", "csv", "arrow"] = "auto"
    """What the pool's files hold; auto: what their names and first bytes say, each by itself."""
    csv_delimiter: str | None = None
    """What is between the fields of a CSV file, one character; by default a comma, and a tab in
    files named .tsv."""

    def __post_init__(self) -> None:
        """Refuse what separates nothing."""
        mark = self.csv_delimiter
        if mark is not None and (len(mark) != 1 or mark in '"\r\n'):
            raise ValueError(
                f"csv_delimiter must be one character, no quote or line end, got {mark!r}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """What a file holds, and how it is packed."""

    format: Format
    compression: Compression = ""
    delimiter: str = ""
    """Of CSV alone."""

    def __str__(self) -> str:
        """As a name would end."""
        return f"{self.format}.{self.compression}" if self.compression else self.format


def named_kind(path: str) -> tuple[Format | None, Compression]:
    """What a file's name says of it."""
    name = path.partition("?")[0].lower()
    compression: Compression = ""
    for known in COMPRESSIONS:
        if name.endswith(f".{known}"):
            name, compression = name[: -len(known) - 1], known
    formats = (known for suffix, known in FORMAT_SUFFIXES.items() if name.endswith(suffix))
    return next(formats, None), compression


def read_ends(info: storage.FileInfo) -> tuple[bytes, bytes]:
    """The first and the last bytes of a file, up to END_BYTES each."""
    with storage.open_input(info.path, listed=info) as file:
        head = file.read(min(END_BYTES, info.size_bytes))
        file.seek(max(0, info.size_bytes - END_BYTES))
        return head, file.read(END_BYTES)


def kind_of(info: storage.FileInfo, head: bytes, config: FormatConfig) -> Kind:
    """What a file holds that begins so.

    Raises:
        InputError: nothing says what it is, or it is text of two bytes a character.
    """
    named, _ = named_kind(info.path)
    marked = next((known for mark, known in _FORMAT_MARKS.items() if head.startswith(mark)), None)
    packing = (known for mark, known in _COMPRESSION_MARKS.items() if head.startswith(mark))
    compression: Compression = next(packing, "")
    asked = None if config.pool_format == "auto" else config.pool_format
    format_ = marked or asked or named or (None if compression else _guessed(head))
    if format_ is None:
        raise InputError(
            f"{info.shown}: neither its name nor its first bytes say what it is; wanted a name "
            f"ending in {', '.join(FORMAT_SUFFIXES)}. Rename it, or pass --pool-format."
        )
    if head.startswith(_UTF_16):
        raise InputError(f"{info.shown}: is text in UTF-16; wanted UTF-8. Write it again so.")
    if format_ != "csv":
        return Kind(format=format_, compression=compression)
    tab = ".tsv" in info.path.rpartition("/")[2].lower()
    delimiter = config.csv_delimiter or ("\t" if tab else ",")
    return Kind(format=format_, compression=compression, delimiter=delimiter)


def told_apart(info: storage.FileInfo, kind: Kind) -> str | None:
    """What is to be said of a file that its name says something else of; None where it does not."""
    named, compression = named_kind(info.path)
    if named in (None, kind.format) and compression == kind.compression:
        return None
    said = f"{named or ''}{'.' if named and compression else ''}{compression}" or "nothing of it"
    return f"{info.shown}: holds {kind}, its name says {said}; read as {kind}"


def _guessed(head: bytes) -> Format | None:
    """What text without a name is taken for."""
    first = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    return {b"{": "jsonl", b"[": "json"}.get(first)  # type: ignore[return-value]


@contextmanager
def unpacked(info: storage.FileInfo, kind: Kind) -> Iterator[BinaryIO]:
    """A file's content as a stream; raises UNPACKING_ERRORS where it is cut or broken."""
    with storage.open_input(info.path) as file:
        buffered = cast("BinaryIO", io.BufferedReader(_Raw(file), _BUFFER_BYTES))
        stream: object = buffered
        if kind.compression == "gz":
            stream = gzip.GzipFile(fileobj=buffered)
        elif kind.compression == "bz2":
            stream = bz2.BZ2File(buffered)
        elif kind.compression == "xz":
            stream = lzma.LZMAFile(buffered)  # noqa: SIM115 - what is below it is closed
        elif kind.compression == "zst":
            source = pa.PythonFile(buffered, mode="r")
            stream = io.BufferedReader(pa.CompressedInputStream(source, "zstd"), _BUFFER_BYTES)
        yield cast("BinaryIO", stream)


class _Raw(io.RawIOBase):
    """A file of any store as Python's buffers want it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """As many bytes as fit, or are left."""
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seekable(self) -> bool:
        """As the file is."""
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        """As the file does."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """As the file does."""
        return self._file.tell()
