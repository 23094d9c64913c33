"""The rows of a JSONL, JSON or CSV file, one by one, never the whole file.

A line that holds no row is given as `Broken` in its place, so that rows keep their numbers; lines
of white space are no rows.
"""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TextIO

from scar_core.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Of one row. A file without line ends is no JSONL; it must not fill the memory.
MOST_ROW_BYTES = 256 * 2**20
# Of a JSON file that is an object: it is parsed whole.
MOST_OBJECT_BYTES = 256 * 2**20
# Little: what is held is copied at every item of a list.
_READ_CHARACTERS = 2**16
# Longer than any token of JSON but a string: an error so near to the end may be of a cut one.
_TOKEN = 16
_BLANK = " \t\r\n"


class Broken(NamedTuple):
    """What a line holds that is no row."""

    place: str
    """`line 17`, say."""
    why: str


class SizedRow(NamedTuple):
    """A row, and about how many bytes of the file it took."""

    size_bytes: int
    row: dict[str, Any] | Broken


class _StoppedError(InputError):
    """The rest of a file cannot be read; the text says where in it, and why."""


def json_rows(opened: Callable[[], BinaryIO], *, lines: bool) -> Iterator[SizedRow]:
    """The objects of a file: one a line, or a list of them, or an object that holds all of them.

    Args:
        opened: the file from its start, each time it is called.
        lines: whether an object that the file begins with is a line, whatever follows.

    Raises:
        InputError: the rest cannot be read; it names no file.
    """
    stream = opened()
    first = b""
    while not first.strip(b"\xef\xbb\xbf" + _BLANK.encode()):
        line = stream.readline(MOST_ROW_BYTES)
        if not line:
            return
        first = line
    start = first.removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith(b"["):
        yield from _list_rows(opened())
    elif lines or (_is_object(start) and stream.read(_READ_CHARACTERS).strip()):
        yield from _line_rows(opened())
    else:
        yield from _object_rows(opened())


def _is_object(line: bytes) -> bool:
    return isinstance(_parsed(line), dict)


def _parsed(line: bytes) -> Any:  # noqa: ANN401 - any JSON
    """The value of a line; a string-less `Broken` is told by its `why` alone."""
    try:
        value = json.loads(line.decode())
        if b"\\u" in line:  # half of a surrogate pair is written so; no text has it
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return Broken("", "holds half of a surrogate pair, which no text does")
    except UnicodeDecodeError as error:
        return Broken("", f"is not UTF-8: {error.reason} at byte {error.start + 1:,}")
    except (ValueError, RecursionError) as error:
        return Broken("", f"is not JSON: {error}")
    return value


def _as_row(value: Any, place: str) -> dict[str, Any] | Broken:  # noqa: ANN401 - any JSON
    if isinstance(value, Broken):
        return value._replace(place=place)
    if not isinstance(value, dict):
        return Broken(place, f"is a {type(value).__name__}, no object")
    return value


def _line_rows(stream: BinaryIO) -> Iterator[SizedRow]:
    number = 0
    while line := stream.readline(MOST_ROW_BYTES + 1):
        number += 1
        if len(line) > MOST_ROW_BYTES:
            raise _StoppedError(f"line {number:,} has more than {MOST_ROW_BYTES:,} bytes")
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if line.strip():
            yield SizedRow(len(line), _as_row(_parsed(line), f"line {number:,}"))


def _text(stream: BinaryIO, **options: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(stream, encoding="utf-8-sig", **options)  # type: ignore[arg-type]


def _list_rows(stream: BinaryIO) -> Iterator[SizedRow]:
    """The objects of one list, however long it is."""
    characters = _text(stream)
    held, number = _more(characters, "").lstrip(_BLANK)[1:], 0
    while True:
        held = _more(characters, held)
        if number == 0 and held.startswith("]"):
            break
        value, source, held = _item(characters, held, number + 1)
        number += 1
        yield SizedRow(len(source), _as_row(_whole(value, source), f"item {number:,}"))
        held = _more(characters, held)
        if held.startswith("]"):
            break
        if not held.startswith(","):
            found = repr(held[:1]) if held else "the end of the file"
            raise _StoppedError(f"item {number:,} is followed by {found}; wanted a comma or ]")
        held = held[1:]
    if _more(characters, held[1:]):
        raise _StoppedError(f"something follows the list of {number:,} items")


def _more(characters: TextIO, held: str) -> str:
    """What is held from its first character that is not blank, read on until there is one."""
    while not (held := held.lstrip(_BLANK)):
        held = characters.read(_READ_CHARACTERS)
        if not held:
            break
    return held


def _item(characters: TextIO, held: str, number: int) -> tuple[Any, str, str]:
    """The value that is held first, its source, and what is held after it."""
    while True:
        try:
            value, end = json.JSONDecoder().raw_decode(held)
            fault = "the list has no end"
        except RecursionError as error:
            raise _StoppedError(f"item {number:,}: {error}") from error
        except json.JSONDecodeError as error:
            value, end, fault = None, len(held), error.msg
            if len(held) - error.pos > _TOKEN and not fault.startswith("Unterminated"):
                raise _StoppedError(f"item {number:,} is not JSON: {fault}") from error
        if end < len(held):  # else a number may go on
            return value, held[:end], held[end:]
        # As much again, so that a long item is parsed a few times and not a thousand.
        more = characters.read(max(_READ_CHARACTERS, len(held)))
        if not more or len(held) > MOST_ROW_BYTES:
            raise _StoppedError(f"item {number:,} is not JSON: {fault}")
        held += more


def _whole(value: Any, source: str) -> Any:  # noqa: ANN401 - any JSON
    """The value, or what is said of one with half of a surrogate pair."""
    return value if "\\u" not in source else _parsed(source.encode("utf-8", "surrogatepass"))


def _object_rows(stream: BinaryIO) -> Iterator[SizedRow]:
    """The rows of an object of columns, of one that has a list of objects, or that is a row."""
    data = stream.read(MOST_OBJECT_BYTES + 1)
    if len(data) > MOST_OBJECT_BYTES:
        raise _StoppedError(
            f"is one object of more than {MOST_OBJECT_BYTES:,} bytes; wanted a list of objects, or "
            "one object a line"
        )
    value = _as_row(_parsed(data.removeprefix(b"\xef\xbb\xbf")), "")
    if isinstance(value, Broken):
        raise _StoppedError(f"it {value.why}")
    rows = _rows_inside(value)
    for number, row in enumerate(rows, start=1):
        yield SizedRow(len(data) // len(rows), _as_row(row, f"item {number:,}"))


def _rows_inside(value: dict[str, Any]) -> list[Any]:
    columns = [part for part in value.values() if isinstance(part, list)]
    if len(columns) == len(value) > 1 and len({len(part) for part in columns}) == 1:
        return [dict(zip(value, row, strict=True)) for row in zip(*columns, strict=True)]
    tables = [part for part in columns if part and all(isinstance(row, dict) for row in part)]
    return tables[0] if len(tables) == 1 else [value]


def csv_header(opened: Callable[[], BinaryIO], *, delimiter: str) -> list[str]:
    """The names in the first line of a CSV file; none where it is empty."""
    return next(_csv_lines(opened(), delimiter), (0, []))[1]


def csv_rows(opened: Callable[[], BinaryIO], *, delimiter: str) -> Iterator[SizedRow]:
    """The rows below the header of a CSV file, every field as text; an empty one is no null.

    Raises:
        InputError: the rest cannot be read; it names no file.
    """
    lines = _csv_lines(opened(), delimiter)
    _, names = next(lines, (0, []))
    for number, cells in lines:
        size = sum(map(len, cells))
        if len(cells) != len(names):
            why = f"has {len(cells):,} fields, the header {len(names):,}"
            yield SizedRow(size, Broken(f"line {number:,}", why))
        elif not _is_text(cells):
            yield SizedRow(size, Broken(f"line {number:,}", "is not UTF-8"))
        else:
            yield SizedRow(size, dict(zip(names, cells, strict=True)))


def _csv_lines(stream: BinaryIO, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """(number of its last line, fields) of each line that is not empty."""
    csv.field_size_limit(MOST_ROW_BYTES)
    characters = _text(stream, newline="", errors="surrogateescape")
    # strict: else a quote that nobody closes makes one field of the rest of the file.
    reader = csv.reader(characters, delimiter=delimiter, strict=True)
    try:
        for cells in reader:
            if cells:
                yield reader.line_num, cells
    except csv.Error as error:
        raise _StoppedError(f"line {reader.line_num:,} is not CSV: {error}") from error


def _is_text(cells: list[str]) -> bool:
    try:
        "".join(cells).encode()
    except UnicodeEncodeError:
        return False
    return True
