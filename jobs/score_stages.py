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
from scar_core.pool.rows import SIDECAR_SCHEMA
from scar_core.pool.sidecars import ScoringKey, Sidecar, write_sidecar
from scar_core.pool.units import Unit
from scar_core.ranker.encoding import TokenRows
from scar_core.selection.precision import Rescored, write_rescored

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from jobs.guarded import Fault, Load
    from scar_core.scoring import Scorer


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
    """Ray's view of a guarded scorer: token ids go, scores come."""

    def __init__(self, *, load: Load, stall_seconds: float) -> None:
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
        scores_K, faults = self.scorer.score_tokens(instructions, responses)
        good_K = np.setdiff1d(np.arange(len(scores_K)), list(faults))
        scored = _with_faults(table, faults, good_K)
        for name, values_K in (
            ("scores", scores_K),
            ("instruction_tokens", instructions.lengths_N.astype(np.int32)),
            ("response_tokens", responses.lengths_N.astype(np.int32)),
            ("cut_tokens", instructions.cut_N + responses.cut_N),
        ):
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
        table=sidecar_table(row, unit),
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


def _flat(row: pa.Table, name: str) -> pa.Array:
    """The inverse of `one_row`."""
    return row[name].combine_chunks().flatten()


def _token_rows(row: pa.Table, role: str) -> TokenRows:
    return TokenRows.from_arrow(_flat(row, f"{role}_ids"), cut=_flat(row, f"{role}_cut").to_numpy())
