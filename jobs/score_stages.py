"""What runs on the workers of the scoring pipeline; one Ray Data row is one unit throughout.

read_and_tokenize   a read task  →  units: texts checked, hashed and tokenized
ScoreUnits          a unit       →  the same with scores in place of token ids
write_sidecars      a unit       →  a sidecar in storage, and what is in it
write_rescored_rows some rows    →  their fp32 scores beside the sidecars
"""

from __future__ import annotations

import logging
import os
import time
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from jobs import pipeline
from scar_core.errors import IncompleteError
from scar_core.pool.rows import SIDECAR_SCHEMA, PairColumns, check_pairs
from scar_core.pool.sidecars import ScoringKey, Sidecar, write_sidecar
from scar_core.pool.units import Unit, read_ranges
from scar_core.ranker.encoding import TextTokenizer, TokenRows
from scar_core.selection.precision import Rescored, write_rescored

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from scar_core.pool.files import PoolFile


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


@dataclass(frozen=True, kw_only=True)
class ScoredSidecar:
    """A sidecar that was just written, and how long its actor waited and worked for it."""

    sidecar: Sidecar
    waited_seconds: float
    worked_seconds: float


@lru_cache(maxsize=1)
def _tokenizer(ranker: str, max_tokens: int) -> TextTokenizer:
    """Loaded once per worker process."""
    # Read tasks run beside each other; threads of their own would take the scoring actors' cores.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    return TextTokenizer.load(ranker, max_tokens=max_tokens)


def read_and_tokenize(
    batch: dict[str, Any], *, ranker: str, columns: PairColumns, max_tokens: int
) -> Iterator[pa.Table]:
    """One table of one row per unit of the read task in a batch."""
    tokenizer = _tokenizer(ranker, max_tokens)
    for task in pipeline.objects(batch):
        tables = read_ranges(
            task.file,
            [
                (unit.row_start + int(offsets[0]), unit.row_start + int(offsets[-1]) + 1)
                for unit, offsets in task.wanted()
            ],
            columns=[columns.instruction_column, columns.response_column],
        )
        for (unit, offsets), table in zip(task.wanted(), tables, strict=True):
            pairs = check_pairs(table.take(pa.array(offsets - offsets[0])), columns)
            instructions = tokenizer.tokenize(pairs.instructions)
            responses = tokenizer.tokenize(pairs.responses)
            yield pa.table(
                {
                    "unit": [asdict(unit)],
                    "offsets": _one_row(pa.array(offsets)),
                    "kept_rows": pa.array([pairs.kept_rows], pa.list_(pa.int32())),
                    "hashes": pa.array([pairs.hashes], pa.list_(pa.binary())),
                    "reasons": pa.array([pairs.reasons], pa.list_(pa.string())),
                    "instruction_ids": _one_row(instructions.to_arrow()),
                    "instruction_cut": _one_row(pa.array(instructions.cut_N)),
                    "response_ids": _one_row(responses.to_arrow()),
                    "response_cut": _one_row(pa.array(responses.cut_N)),
                }
            )


class ScoreUnits:
    """Ray's view of a Scorer: token ids go, scores come."""

    def __init__(
        self,
        *,
        ranker: str,
        max_tokens: int,
        precision: Literal["fp32", "bf16"],
        threads: int | None,
    ) -> None:
        import torch  # noqa: PLC0415 - only actors need it

        from scar_core.scoring import Scorer, ScoringConfig  # noqa: PLC0415

        if threads is not None:
            torch.set_num_threads(threads)
        logging.basicConfig(level=logging.INFO)
        config = ScoringConfig(precision=precision, max_tokens=max_tokens)
        self.scorer = Scorer.load(ranker, config=config)
        self.idle_since = time.perf_counter()

    def __call__(self, table: pa.Table) -> pa.Table:
        """Score the one unit of a table of one row."""
        arrived = time.perf_counter()
        instructions = _token_rows(table, "instruction")
        responses = _token_rows(table, "response")
        scores_K = self.scorer.score_tokens(instructions, responses)
        cut_K = instructions.cut_N + responses.cut_N
        scored = table.select(["unit", "offsets", "kept_rows", "hashes", "reasons"])
        for name, values in (
            ("scores", scores_K),
            ("instruction_tokens", instructions.lengths_N.astype(np.int32)),
            ("response_tokens", responses.lengths_N.astype(np.int32)),
            ("cut_tokens", cut_K),
        ):
            scored = scored.append_column(name, _one_row(pa.array(values)))
        waited, self.idle_since = arrived - self.idle_since, time.perf_counter()
        return scored.append_column("waited_seconds", pa.array([waited])).append_column(
            "worked_seconds", pa.array([self.idle_since - arrived])
        )


def write_sidecars(row: pa.Table, *, scores: str, key: ScoringKey) -> dict[str, Any]:
    """Store the sidecar of the one unit of a table of one row; a ScoredSidecar comes back."""
    unit = Unit(**row["unit"][0].as_py())
    sidecar = write_sidecar(scores, unit=unit, key=key, table=sidecar_table(row, unit))
    waited, worked = (row[f"{name}_seconds"][0].as_py() for name in ("waited", "worked"))
    result = ScoredSidecar(sidecar=sidecar, waited_seconds=waited, worked_seconds=worked)
    return pipeline.packed([result])


def write_rescored_rows(row: pa.Table, *, scores: str, key_id: str) -> dict[str, Any]:
    """Store the fp32 scores of some rows of the one unit of a table of one row; how many."""
    unit = Unit(**row["unit"][0].as_py())
    again = Rescored(_flat(row, "offsets").to_numpy(), _flat(row, "scores").to_numpy())
    if len(again.offsets_M) != len(again.scores_M):
        raise IncompleteError(
            f"{unit.path}: {len(again.offsets_M):,} rows were to be scored again from row "
            f"{unit.row_start:,} on, {len(again.scores_M):,} were. The file changed; score again."
        )
    write_rescored(scores, key_id=key_id, unit_id=unit.id, rescored=again)
    return pipeline.packed([len(again.offsets_M)])


def sidecar_table(row: pa.Table, unit: Unit) -> pa.Table:
    """A scored unit as SIDECAR_SCHEMA: rows that could not be scored take their places again."""
    kept_K = _flat(row, "kept_rows").to_numpy()

    def spread(name: str) -> NDArray[np.int32]:
        values_N = np.zeros(unit.rows, np.int32)
        values_N[kept_K] = _flat(row, name).to_numpy()
        return values_N

    scores_N = np.zeros(unit.rows, np.float32)
    scores_N[kept_K] = _flat(row, "scores").to_numpy()
    missing_N = np.ones(unit.rows, bool)
    missing_N[kept_K] = False
    reasons = _flat(row, "reasons").dictionary_encode()
    columns = [
        pa.array(np.arange(unit.row_start, unit.row_start + unit.rows)),
        pa.array(scores_N, mask=missing_N),
        _flat(row, "hashes").cast(pa.binary(16)),
        pa.DictionaryArray.from_arrays(reasons.indices.cast(pa.int8()), reasons.dictionary),
        *(
            pa.array(spread(name))
            for name in ("instruction_tokens", "response_tokens", "cut_tokens")
        ),
    ]
    return pa.Table.from_arrays(columns, schema=SIDECAR_SCHEMA)


def _one_row(values: pa.Array) -> pa.Array:
    """All values as the one list of a column of one row, without a copy."""
    return pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), values)


def _flat(row: pa.Table, name: str) -> pa.Array:
    """The inverse of `_one_row`."""
    return row[name].combine_chunks().flatten()


def _token_rows(row: pa.Table, role: str) -> TokenRows:
    return TokenRows.from_arrow(_flat(row, f"{role}_ids"), cut=_flat(row, f"{role}_cut").to_numpy())
