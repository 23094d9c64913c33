"""Find clusters of rows that are nearly the same, by their texts.

sketch_units   some units of a file  →  band hashes of their rows, beside the scores, once for all
band_chunk     a chunk's sketches    →  (band, row), by ranges of the band's hash
link_range     a range of chunks     →  links between rows that share a band
join_links     all links             →  clusters, by chunk and unit

Sketches stay for the next selection; the rest lies below the run's directory until its rows are
written. One task holds all links: some 100 bytes for each row that has a near-duplicate.
"""

from __future__ import annotations

import json
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from itertools import groupby, islice
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from jobs import pipeline
from jobs.find_copies import CHUNK_ROWS, READ_THREADS, Chunk
from jobs.select_stages import Near, ScoredUnit, bounds, consecutive
from scar_core import storage
from scar_core.pool.pairs import check_rows
from scar_core.pool.shapes import columns_read
from scar_core.pool.units import read_ranges
from scar_core.selection import near
from scar_core.selection.copies import opened_batches, write_batches
from scar_core.selection.order import NEAR_SCHEMA, values_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from scar_core.pool.rows import PairColumns
    from scar_core.selection.near import Banding, Links

logger = logging.getLogger("scar_curate")

SKETCH_VERSION = 1
UNITS_PER_READ = 8

ENTRY_SCHEMA = pa.schema([pa.field("band", pa.uint64()), pa.field("row", pa.uint64())])
LINK_SCHEMA = pa.schema([pa.field("from", pa.uint64()), pa.field("to", pa.uint64())])


@dataclass(frozen=True, kw_only=True)
class Sketching:
    """How rows are sketched, and where that is kept."""

    folder: str
    cut: Banding
    columns: PairColumns

    def path(self, unit_id: str) -> str:
        """Of a unit's sketches."""
        return storage.join(self.folder, f"{unit_id}.arrow")

    @property
    def schema(self) -> pa.Schema:
        """Offset of a row within its unit, and a hash for each band; rows with texts alone."""
        bands = [pa.field(f"band_{band}", pa.uint64()) for band in range(self.cut.bands)]
        return pa.schema([pa.field("offset", pa.uint32()), *bands])


@dataclass(frozen=True, kw_only=True)
class Bands:
    """Who gives what to whom."""

    folder: str
    sketching: Sketching
    firsts: tuple[int, ...]
    """By chunk, how many rows are before it."""
    ranges: int
    """A power of two."""

    def entries(self, chunk: int) -> str:
        """A chunk's bands; a batch for each range."""
        return storage.join(self.folder, f"near/entries-{chunk:06d}.arrow")

    def links(self, range_: int) -> str:
        """A range's links; one batch."""
        return storage.join(self.folder, f"near/links-{range_:06d}.arrow")

    def clusters(self, chunk: int) -> str:
        """A chunk's rows that are in clusters; a batch for each unit."""
        return storage.join(self.folder, f"near/clusters-{chunk:06d}.arrow")


def cluster_near(
    units: Sequence[ScoredUnit],
    *,
    columns: PairColumns,
    jaccard: float,
    scores: str,
    folder: str,
) -> list[ScoredUnit]:
    """The units with the clusters that their rows are in.

    Args:
        units: of the pool, in (path, row) order.
        columns: where a row's texts are.
        jaccard: similarity from which rows are taken for near-duplicates, most likely.
        scores: where sketches are kept, the sidecars' directory.
        folder: for what tasks pass on.

    Raises:
        InputError: the library is not installed.
        PoolFileError: a file changed since it was scored.
    """
    sketching = Sketching(
        folder=storage.join(scores, f"sketches/{_sketch_id(columns, jaccard)}"),
        cut=near.banding(jaccard),
        columns=columns,
    )
    _sketch(units, sketching)
    shares = list(consecutive(units, rows=CHUNK_ROWS))
    chunks = [Chunk(number=n, units=tuple(share)) for n, share in enumerate(shares)]
    sizes = [sum(scored.unit.rows for scored in chunk.units) for chunk in chunks]
    entries = sum(sizes) * sketching.cut.bands
    ranges = 1 << max(0, -(-entries // CHUNK_ROWS) - 1).bit_length()
    firsts = tuple(np.cumsum([0, *sizes]).tolist())
    bands = Bands(folder=folder, sketching=sketching, firsts=firsts, ranges=ranges)
    for _ in pipeline.run(band_chunk, chunks, bands=bands):
        pass
    for _ in pipeline.run(link_range, range(ranges), bands=bands, chunks=len(chunks)):
        pass
    (rows,) = pipeline.run(join_links, [chunks], bands=bands)
    logger.info("%s rows are near another one", f"{rows:,}")
    return [
        replace(scored, near=Near(bands.clusters(chunk.number), index))
        for chunk in chunks
        for index, scored in enumerate(chunk.units)
    ]


def _sketch_id(columns: PairColumns, jaccard: float) -> str:
    """Stands for all that a sketch depends on, beside the row."""
    told = [SKETCH_VERSION, near.method(jaccard), repr(columns)]
    return blake2b(json.dumps(told).encode(), digest_size=8).hexdigest()


def _sketch(units: Sequence[ScoredUnit], sketching: Sketching) -> None:
    """Sketch the units that are not; copies of a file share what one of them has."""
    there = {info.path.rpartition("/")[2] for info in storage.list_files(sketching.folder)}
    missing = {scored.unit.id: scored for scored in units if f"{scored.unit.id}.arrow" not in there}
    if not missing:
        return
    logger.info("sketching %s of %s units", f"{len(missing):,}", f"{len(units):,}")
    tasks = []
    for _, of_file in groupby(missing.values(), key=lambda scored: scored.file):
        while task := tuple(islice(of_file, UNITS_PER_READ)):
            tasks.append(task)
    for _ in pipeline.run(sketch_units, tasks, sketching=sketching):
        pass


def sketch_units(units: Sequence[ScoredUnit], *, sketching: Sketching) -> None:
    """Store the sketches of consecutive units of one file."""
    columns = sketching.columns
    names = columns_read(columns, units[0].file.schema)
    tables = read_ranges(units[0].file, [bounds(scored.unit) for scored in units], columns=names)
    for scored, table in zip(units, tables, strict=True):
        pairs = check_rows(table, columns)
        texts = [f"{instruction}\n{response}" for instruction, response in pairs.last_pairs()]
        bands_NB = near.sketch(texts, sketching.cut)
        offsets = pa.array(pairs.kept_rows, pa.uint32())
        batch = [offsets, *(pa.array(bands_N) for bands_N in bands_NB.T)]
        write_batches(sketching.path(scored.unit.id), sketching.schema, [batch])


def band_chunk(chunk: Chunk, *, bands: Bands) -> None:
    """Give each range a chunk's bands whose hashes lie there."""
    hashes: list[NDArray[np.uint64]] = []
    rows: list[NDArray[np.uint64]] = []
    first = bands.firsts[chunk.number]
    for scored in chunk.units:
        with opened_batches(bands.sketching.path(scored.unit.id)) as reader:
            offsets, *columns = reader.get_batch(0).columns
            rows_M = values_of(offsets, np.uint32).astype(np.uint64) + np.uint64(first)
            for column in columns:
                hashes.append(values_of(column, np.uint64).copy())
                rows.append(rows_M)
        first += scored.unit.rows
    all_hashes, all_rows = np.concatenate(hashes), np.concatenate(rows)
    order = np.argsort(all_hashes, kind="stable")
    edges = [range_ * (2**64 // bands.ranges) for range_ in range(1, bands.ranges)]
    cuts = np.searchsorted(all_hashes[order], np.array(edges, np.uint64))
    parts = zip(np.split(all_hashes[order], cuts), np.split(all_rows[order], cuts), strict=True)
    write_batches(
        bands.entries(chunk.number), ENTRY_SCHEMA, ([pa.array(h), pa.array(r)] for h, r in parts)
    )


def link_range(range_: int, *, bands: Bands, chunks: int) -> None:
    """Link the rows of all chunks that share a band of a range."""
    read = partial(_read_pair, index=range_)
    with ThreadPoolExecutor(READ_THREADS) as threads:
        parts = list(threads.map(read, [bands.entries(chunk) for chunk in range(chunks)]))
    hashes, rows = zip(*parts, strict=True)
    links = near.links_of(np.concatenate(hashes), np.concatenate(rows))
    write_batches(bands.links(range_), LINK_SCHEMA, [[pa.array(ends) for ends in links]])


def join_links(chunks: Sequence[Chunk], *, bands: Bands) -> int:
    """Store each chunk's rows that are in clusters of two and more; how many there are."""
    links = near.forest(_links(bands))
    heads = np.unique(links.from_E)
    rows = np.concatenate([heads, links.to_E])
    high, low = near.cluster_ids(np.concatenate([heads, links.from_E]))
    order = np.argsort(rows)
    rows, high, low = rows[order], high[order], low[order]
    for chunk in chunks:
        batches = _batches_of(chunk, bands.firsts[chunk.number], rows, high, low)
        write_batches(bands.clusters(chunk.number), NEAR_SCHEMA, batches)
    return len(rows)


def _links(bands: Bands) -> Iterator[Links]:
    """The links of one range after the other."""
    for range_ in range(bands.ranges):
        yield near.Links(*_read_pair(bands.links(range_), index=0))


def _batches_of(
    chunk: Chunk,
    first: int,
    rows: NDArray[np.uint64],
    high: NDArray[np.uint64],
    low: NDArray[np.uint64],
) -> Iterable[list[pa.Array]]:
    """Offset and cluster of each unit's rows; `rows` ascends."""
    for scored in chunk.units:
        start, stop = np.searchsorted(rows, [first, first + scored.unit.rows])
        offsets = (rows[start:stop] - np.uint64(first)).astype(np.uint32)
        yield [pa.array(offsets), pa.array(high[start:stop]), pa.array(low[start:stop])]
        first += scored.unit.rows


def _read_pair(path: str, *, index: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Two columns of one batch."""
    with opened_batches(path) as reader:
        one, other = reader.get_batch(index).columns
        return values_of(one, np.uint64).copy(), values_of(other, np.uint64).copy()
