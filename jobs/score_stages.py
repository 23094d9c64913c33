"""What runs on the workers of the scoring pipeline; one Ray Data row is one unit throughout.

ScoreUnits          a unit       →  the same with scores in place of token ids, or what went wrong
write_sidecars      a unit       →  a sidecar in storage, and what is in it
write_rescored_rows some rows    →  their fp32 scores beside the sidecars
"""

from __future__ import annotations

import logging
import pickle
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from jobs import pipeline
from jobs.guarded import GuardedScorer
from jobs.read_stage import one_row
from scar_core.errors import IncompleteError, ScarError
from scar_core.pool.pieces import Pieces, Reduced, reduce_pieces
from scar_core.pool.rows import TURN_SCORES, sidecar_schema
from scar_core.pool.sidecars import TOKEN_COLUMNS, ScoringKey, Sidecar, write_sidecar
from scar_core.pool.units import Unit
from scar_core.ranker.encoding import TokenRows
from scar_core.selection.precision import Rescored, write_rescored

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from jobs.guarded import Fault, Guarded, Load
    from scar_core.pool.rows import Turns
    from scar_core.scoring import Scorer

PIECE_COLUMNS = ("piece_rows", "piece_turns", "piece_weights")


@dataclass(frozen=True, kw_only=True)
class ScoredSidecar:
    """A sidecar that was just written, and what it took its actor."""

    sidecar: Sidecar
    waited_seconds: float
    worked_seconds: float
    encoded_tokens: int = 0
    """Real tokens that went through the encoder; 0 where the scorer does not count them."""
    computed_tokens: int = 0
    """Those and padding."""


def load_scorer(
    *, ranker: str, max_tokens: int, precision: Literal["fp32", "bf16"], threads: int | None
) -> Scorer:
    """What the scoring actors' children run."""
    import torch  # noqa: PLC0415 - only the children need it

    from scar_core.scoring import Scorer, ScoringConfig  # noqa: PLC0415

    if threads is not None:
        torch.set_num_threads(threads)
    logging.basicConfig(level=logging.INFO)
    return Scorer.load(ranker, config=ScoringConfig(precision=precision, max_tokens=max_tokens))


class ScoreUnits:
    """Ray's view of a guarded scorer: token ids of pieces go, scores of rows come."""

    def __init__(self, *, load: Load, stall_seconds: float, turns: Turns) -> None:
        self.turns = turns
        self.fault: ScarError | None = None
        try:
            self.scorer = GuardedScorer(load, stall_seconds=stall_seconds)
        except ScarError as error:
            # Raised by the first unit: Ray takes what a constructor raises for a dead actor.
            self.fault = error
        self.idle_since = time.perf_counter()

    def __call__(self, table: pa.Table) -> pa.Table:
        """Score the one unit of a table of one row; rows at fault join those not kept."""
        if self.fault is not None:
            raise self.fault
        arrived = time.perf_counter()
        instructions = _token_rows(table, "instruction")
        responses = _token_rows(table, "response")
        before = self.scorer.work
        pieces = Pieces(*(_flat(table, name).to_numpy() for name in PIECE_COLUMNS))
        guarded = self.scorer.score_tokens(instructions, responses)
        faults, good_K, reduced = _of_rows(guarded, pieces, turns=self.turns)
        scored = _with_faults(table, faults, good_K)
        scored = scored.append_column("scores", one_row(pa.array(reduced.scores_K)))
        scored = scored.append_column("turn_scores", one_row(_by_row(reduced)))
        for name in TOKEN_COLUMNS:
            values_K = _flat(table, name).to_numpy()
            scored = scored.append_column(name, one_row(pa.array(values_K[good_K])))
        waited, self.idle_since = arrived - self.idle_since, time.perf_counter()
        for name, value in (
            ("waited_seconds", waited),
            ("worked_seconds", self.idle_since - arrived),
            ("encoded_tokens", self.scorer.work.encoded_tokens - before.encoded_tokens),
            ("computed_tokens", self.scorer.work.computed_tokens - before.computed_tokens),
        ):
            scored = scored.append_column(name, pa.array([value]))
        return scored


def _of_rows(
    guarded: Guarded, pieces: Pieces, *, turns: Turns
) -> tuple[dict[int, Fault], NDArray[np.int64], Reduced]:
    """Faults of rows, those without, and their scores: a fault of a piece is its row's."""
    rows_P = pieces.rows_P
    # Of several the first: told as of the row, so it must not depend on how they were found.
    faults: dict[int, Fault] = {}
    for position, fault in sorted(guarded.faults.items()):
        faults.setdefault(int(rows_P[position]), fault)
    good_K = np.setdiff1d(rows_P, list(faults))
    good_P = np.isin(rows_P, good_K)
    kept = Pieces(*(values_P[good_P] for values_P in pieces))
    return faults, good_K, reduce_pieces(guarded.scores_K[good_P], kept, turns=turns)


def _by_row(reduced: Reduced) -> pa.ListArray:
    """Scores of turns as a list a row."""
    offsets = np.concatenate(([0], np.cumsum(reduced.turns_K))).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(reduced.turn_scores_T))


def _with_faults(table: pa.Table, faults: dict[int, Fault], good_K: NDArray[np.int64]) -> pa.Table:
    """The columns of a unit that go on, and a column of what happened to rows at fault."""
    kept_K = _flat(table, "kept_rows").to_numpy()
    hashes, reasons, messages = (
        _flat(table, name).to_pylist() for name in ("hashes", "reasons", "messages")
    )
    for position, fault in faults.items():
        row = int(kept_K[position])
        hashes[row], reasons[row], messages[row] = None, fault.reason, fault.message
    return pa.Table.from_arrays(
        [
            *(table[name] for name in ("unit", "bad_file", "offsets")),
            one_row(pa.array(kept_K[good_K])),
            pa.array([hashes], pa.list_(pa.binary())),
            pa.array([reasons], pa.list_(pa.string())),
            pa.array([messages], pa.list_(pa.string())),
        ],
        names=["unit", "bad_file", "offsets", "kept_rows", "hashes", "reasons", "messages"],
    )


def write_sidecars(row: pa.Table, *, scores: str, key: ScoringKey) -> dict[str, Any]:
    """Store the sidecar of the one unit of a table of one row.

    A ScoredSidecar comes back; or the BadFile, where the row speaks of one.
    """
    bad = row["bad_file"][0].as_py()
    if bad is not None:
        return pipeline.packed([pickle.loads(bad)])  # noqa: S301 - this job's own bytes
    unit = Unit(**row["unit"][0].as_py())
    told = enumerate(_flat(row, "messages").to_pylist(), start=unit.row_start)
    sidecar = write_sidecar(
        scores,
        unit=unit,
        key=key,
        table=sidecar_table(row, unit, turns=key.turns),
        messages={number: message for number, message in told if message is not None},
    )
    names = ("waited_seconds", "worked_seconds", "encoded_tokens", "computed_tokens")
    effort = {name: row[name][0].as_py() for name in names}
    return pipeline.packed([ScoredSidecar(sidecar=sidecar, **effort)])


def write_rescored_rows(row: pa.Table, *, scores: str, key_id: str) -> dict[str, Any]:
    """Store the fp32 scores of some rows of the one unit of a table of one row; how many."""
    unit = Unit(**row["unit"][0].as_py())
    again = Rescored(_flat(row, "offsets").to_numpy(), _flat(row, "scores").to_numpy())
    if len(again.offsets_M) != len(again.scores_M):
        faults = [message for message in _flat(row, "messages").to_pylist() if message is not None]
        raise IncompleteError(
            f"{unit.path}: {len(again.offsets_M):,} rows were to be scored again from row "
            f"{unit.row_start:,} on, {len(again.scores_M):,} were "
            f"({faults[0] if faults else 'the file changed'}). Score again."
        )
    write_rescored(scores, key_id=key_id, unit_id=unit.id, rescored=again)
    return pipeline.packed([len(again.offsets_M)])


def sidecar_table(row: pa.Table, unit: Unit, *, turns: Turns) -> pa.Table:
    """A scored unit as a sidecar: rows that could not be scored take their places again."""
    kept_K = _flat(row, "kept_rows").to_numpy()
    places_N = np.full(unit.rows, -1)
    places_N[kept_K] = np.arange(len(kept_K))
    places = pa.array(places_N, mask=places_N < 0)
    reasons = _flat(row, "reasons").dictionary_encode()
    by_name = {
        "row": pa.array(np.arange(unit.row_start, unit.row_start + unit.rows)),
        "score": _flat(row, "scores").take(places),
        "content_hash": _flat(row, "hashes").cast(pa.binary(16)),
        "reason": pa.DictionaryArray.from_arrays(
            reasons.indices.cast(pa.int8()), reasons.dictionary
        ),
        **{name: _flat(row, name).take(places).fill_null(0) for name in TOKEN_COLUMNS},
    }
    schema = sidecar_schema(turns)
    if TURN_SCORES.name in schema.names:
        by_name[TURN_SCORES.name] = _flat(row, TURN_SCORES.name).take(places)
    return pa.Table.from_arrays(list(by_name.values()), schema=schema)


def _flat(row: pa.Table, name: str) -> pa.Array:
    """The inverse of `one_row`."""
    return row[name].combine_chunks().flatten()


def _token_rows(row: pa.Table, role: str) -> TokenRows:
    ids = _flat(row, f"{role}_ids")
    return TokenRows.from_arrow(ids, cut=np.zeros(len(ids), np.int32))  # counted by row
