"""Find rows whose content a better row has, and mark them, unit by unit.

contents_chunk   sidecars            →  one row of each content, by ranges of the hash
compare_range    a range of chunks   →  positions of copies, by chunk
gather_chunk     ranges of a chunk   →  its marks, a bit a row

What they pass on lies in files below the run's directory until the rows are written: no more
than 24 bytes a row, on no driver and in no worker's memory.
"""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from jobs import pipeline
from jobs.select_stages import Marks, ScoredUnit, columns_of, consecutive
from scar_core import storage
from scar_core.selection import copies

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from scar_core.selection.copies import Which

logger = logging.getLogger("scar_curate")

# Rows whose hashes one task holds: some 100 MB while it sorts them.
CHUNK_ROWS = 1_000_000
READ_THREADS = 16


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """Who gives what to whom."""

    folder: str
    which: Which
    most: int
    """Rows of a content that are no copies."""
    chunks: int
    ranges: int
    """A power of two."""

    def contents(self, chunk: int) -> str:
        """A chunk's contents; a batch for each range."""
        return storage.join(self.folder, f"{self.which}/contents-{chunk:06d}.arrow")

    def known(self, chunk: int) -> str:
        """What a chunk knows by itself; one batch."""
        return storage.join(self.folder, f"{self.which}/known-{chunk:06d}.arrow")

    def found(self, range_: int) -> str:
        """What a range found; a batch for each chunk."""
        return storage.join(self.folder, f"{self.which}/found-{range_:06d}.arrow")

    def marks(self, chunk: int) -> str:
        """A chunk's marks."""
        return storage.join(self.folder, f"{self.which}/marks-{chunk:06d}.bin")


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Consecutive units."""

    number: int
    units: tuple[ScoredUnit, ...]


@contextmanager
def scratch(folder: str, *, name: str = "scratch") -> Iterator[str]:
    """A folder of this run for what its tasks pass on; gone at the end of the block."""
    path = storage.join(folder, name)
    try:
        yield path
    finally:
        try:
            storage.remove_folder(path)
        except OSError as error:  # what is left there harms nobody, and hides no other error
            logger.warning("%s: could not be removed: %s", path, error)


def mark(
    units: Sequence[ScoredUnit], *, folder: str, which: Which, most: int = 1
) -> list[ScoredUnit]:
    """The units with marks at their rows that are `which`, by their effective scores.

    Args:
        units: of the pool, in (path, row) order.
        folder: for the marks and what leads to them; holds neither yet.
        which: the rows to mark.
        most: rows of a content that are no copies.
    """
    bare = [replace(scored, marks=None) for scored in units]
    shares = consecutive(bare, rows=CHUNK_ROWS)
    chunks = [Chunk(number=n, units=tuple(share)) for n, share in enumerate(shares)]
    rows = sum(scored.unit.rows for scored in units)
    ranges = 1 << max(0, -(-rows // CHUNK_ROWS) - 1).bit_length()
    exchange = Exchange(folder=folder, which=which, most=most, chunks=len(chunks), ranges=ranges)
    _all(pipeline.run(contents_chunk, chunks, exchange=exchange))
    _all(pipeline.run(compare_range, range(ranges), exchange=exchange))
    _all(pipeline.run(gather_chunk, chunks, exchange=exchange))
    marked = []
    for chunk in chunks:
        first_byte = 0
        for scored in chunk.units:
            marks = Marks(exchange.marks(chunk.number), first_byte)
            marked.append(replace(scored, marks=marks))
            first_byte += _mark_bytes(scored)
    return marked


def _all(results: Iterator[None]) -> None:
    for _ in results:
        pass


def _mark_bytes(scored: ScoredUnit) -> int:
    return -(-scored.unit.rows // 8)


def contents_chunk(chunk: Chunk, *, exchange: Exchange) -> None:
    """Give each range a chunk's contents, and keep what the chunk knows by itself."""
    contents, known = copies.contents_of(
        columns_of(chunk.units), which=exchange.which, most=exchange.most
    )
    parts = copies.split(contents, ranges=exchange.ranges)
    copies.write_contents(exchange.contents(chunk.number), parts)
    copies.write_positions(exchange.known(chunk.number), [known])


def compare_range(range_: int, *, exchange: Exchange) -> None:
    """Compare all chunks' contents of a range."""
    paths = [exchange.contents(chunk) for chunk in range(exchange.chunks)]
    with ThreadPoolExecutor(READ_THREADS) as threads:
        parts = list(threads.map(partial(copies.read_contents, index=range_), paths))
    found = copies.compare(parts, which=exchange.which, most=exchange.most)
    copies.write_positions(exchange.found(range_), found)


def gather_chunk(chunk: Chunk, *, exchange: Exchange) -> None:
    """Store a chunk's marks: what it knows by itself, and what the ranges found."""
    paths = [exchange.found(range_) for range_ in range(exchange.ranges)]
    with ThreadPoolExecutor(READ_THREADS) as threads:
        parts = list(threads.map(partial(copies.read_positions, index=chunk.number), paths))
    known = copies.read_positions(exchange.known(chunk.number), 0)
    sizes = [scored.unit.rows for scored in chunk.units]
    marked_N = np.zeros(sum(sizes), np.bool_)
    marked_N[np.concatenate([known, *parts])] = True
    edges = np.cumsum(sizes)[:-1]
    bits = b"".join(np.packbits(part).tobytes() for part in np.split(marked_N, edges))
    storage.write_bytes(exchange.marks(chunk.number), bits)
