"""The first stage of scoring, on any worker: units are read, checked, hashed and tokenized.

One Ray Data row is one unit from here to its sidecar.
"""

from __future__ import annotations

import os
import pickle
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from jobs import pipeline
from jobs.filtering import stored_benchmarks
from scar_core.errors import PoolFileError
from scar_core.pool.files import bad_file
from scar_core.pool.pairs import check_rows
from scar_core.pool.rows import CheckedPairs, PairColumns
from scar_core.pool.shapes import columns_read
from scar_core.pool.units import Unit, read_ranges, take_rows
from scar_core.ranker.cutting import tokenize_pairs
from scar_core.ranker.encoding import TextTokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from scar_core.pool.files import BadFile, PoolFile
    from scar_core.pool.filters import Filters
    from scar_core.pool.quarantine import Policy
    from scar_core.pool.rows import Long
    from scar_core.ranker.cutting import PieceTokens


@dataclass(frozen=True, kw_only=True)
class ReadTask:
    """Consecutive units of one file, read in one go."""

    file: PoolFile
    units: tuple[Unit, ...]
    offsets: tuple[NDArray[np.int32], ...] | None = None
    """Per unit the rows to score, as ascending offsets within it; None: all of them."""

    def wanted(self) -> Iterator[tuple[Unit, NDArray[np.int32]]]:
        """(unit, offsets within it) of all the rows to score."""
        for index, unit in enumerate(self.units):
            every = np.arange(unit.rows, dtype=np.int32)
            yield unit, every if self.offsets is None else self.offsets[index]


@lru_cache(maxsize=1)
def tokenizer_of(ranker: str, max_tokens: int) -> TextTokenizer:
    """Loaded once per worker process."""
    # Read tasks run beside each other; threads of their own would take the scoring actors' cores.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    return TextTokenizer.load(ranker, max_tokens=max_tokens)


def read_and_tokenize(
    batch: dict[str, Any],
    *,
    ranker: str,
    columns: PairColumns,
    max_tokens: int,
    on_bad_file: Policy,
    filters: Filters,
) -> Iterator[pa.Table]:
    """One table of one row per unit of the read task in a batch.

    Of a file that cannot be read on, and may be quarantined, the last row says so instead.
    """
    tokenizer = tokenizer_of(ranker, max_tokens)
    for task in pipeline.objects(batch):
        try:
            for unit, offsets, pairs in _read_pairs(task, columns):
                yield _tokenized(
                    unit, offsets, pairs, tokenizer, long=columns.long, filters=filters
                )
        except PoolFileError as error:
            if on_bad_file == "fail":
                raise
            bad = bad_file(task.file, error)
            nothing = CheckedPairs([], [], [], [], [])
            yield _tokenized(
                task.units[0],
                np.empty(0, np.int32),
                nothing,
                tokenizer,
                long=columns.long,
                filters=filters,
                bad=bad,
            )


def _read_pairs(
    task: ReadTask, columns: PairColumns
) -> Iterator[tuple[Unit, NDArray[np.int32], CheckedPairs]]:
    """Each unit with the offsets of the rows to score, and these rows, checked."""
    tables = read_ranges(
        task.file,
        [
            (unit.row_start + int(offsets[0]), unit.row_start + int(offsets[-1]) + 1)
            for unit, offsets in task.wanted()
        ],
        columns=columns_read(columns, task.file.schema),
    )
    for (unit, offsets), table in zip(task.wanted(), tables, strict=True):
        pairs = check_rows(take_rows(table, offsets - offsets[0]), columns)
        for position in task.file.broken_among(unit.row_start + offsets):
            pairs.reasons[position] = task.file.broken_reason
        yield unit, offsets, pairs


def _filtered(
    pairs: CheckedPairs, tokenizer: TextTokenizer, *, long: Long, filters: Filters
) -> tuple[CheckedPairs, PieceTokens, dict[int, str]]:
    """The pairs that filters leave, their tokens, and what was found in the others, by row."""
    path = filters.benchmarks_path
    pairs, told = filters.on_texts(pairs, None if path is None else stored_benchmarks(path))
    tokens = tokenize_pairs(pairs, tokenizer, long=long)
    left, told_too = filters.on_lengths(
        pairs,
        instruction_tokens_J=tokens.whole_instruction_tokens_J,
        response_tokens_J=tokens.whole_response_tokens_J,
    )
    if len(left.kept_rows) < len(pairs.kept_rows):
        tokens = tokens.only(np.flatnonzero(np.isin(pairs.kept_rows, left.kept_rows)))
    return left, tokens, {**told, **told_too}


def _tokenized(
    unit: Unit,
    offsets: NDArray[np.int32],
    pairs: CheckedPairs,
    tokenizer: TextTokenizer,
    *,
    long: Long,
    filters: Filters,
    bad: BadFile | None = None,
) -> pa.Table:
    """A unit as the one row that travels through Ray Data, less the rows that filters take.

    Lists of its N rows to score: offsets, hashes, reasons, messages; of the K of them that can be
    scored: kept_rows (positions among the N) and *_tokens; of their P pieces: piece_* (which of
    the K, which of its turns, how many tokens it stands for) and *_ids.
    """
    pairs, tokens, messages = _filtered(pairs, tokenizer, long=long, filters=filters)
    of_rows = {
        "instruction_tokens": tokens.instruction_tokens_J,
        "response_tokens": tokens.response_tokens_J,
        "cut_tokens": tokens.cut_tokens_J,
    }
    of_pieces = {
        "piece_rows": tokens.pieces.rows_P,
        "piece_turns": tokens.pieces.turns_P,
        "piece_weights": tokens.pieces.weights_P,
    }
    return pa.table(
        {
            "unit": [asdict(unit)],
            "bad_file": pa.array([bad and pickle.dumps(bad)], pa.binary()),
            "offsets": one_row(pa.array(offsets)),
            "kept_rows": pa.array([pairs.kept_rows], pa.list_(pa.int32())),
            "hashes": pa.array([pairs.hashes], pa.list_(pa.binary())),
            "reasons": pa.array([pairs.reasons], pa.list_(pa.string())),
            "messages": pa.array(
                [[messages.get(row) for row in range(len(pairs.reasons))]], pa.list_(pa.string())
            ),
            **{name: one_row(pa.array(tokens.of_rows(one))) for name, one in of_rows.items()},
            **{name: one_row(pa.array(values)) for name, values in of_pieces.items()},
            "instruction_ids": one_row(tokens.instructions.to_arrow()),
            "response_ids": one_row(tokens.responses.to_arrow()),
        }
    )


def one_row(values: pa.Array) -> pa.Array:
    """All values as the one list of a column of one row, without a copy."""
    return pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), values)
