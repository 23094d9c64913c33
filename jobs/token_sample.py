"""What the rows of units hold, from a few of them: tokens, cuts, quarantine; with intervals."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from jobs.read_stage import tokenizer_of
from scar_core.pool.pairs import check_rows
from scar_core.pool.rows import CheckedPairs
from scar_core.pool.sample import Interval, draw_rows
from scar_core.pool.shapes import columns_read
from scar_core.pool.units import read_ranges
from scar_core.ranker.cutting import tokenize_pairs
from scar_core.ranker.encoding import TokenRows
from scar_core.scoring import ScoringConfig

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from jobs.score_plan import Plan
    from scar_core.pool.rows import PairColumns
    from scar_core.pool.sample import Draw
    from scar_core.pool.units import Unit
    from scar_core.ranker.cutting import PieceTokens

WORK_ROWS = ScoringConfig().work_rows
"""Equal texts of so many consecutive rows of a unit are encoded once."""


@dataclass(frozen=True, kw_only=True)
class TokenSample:
    """Estimates for all rows of the units that are not scored yet, and the sampled token ids."""

    rows: int
    """Sampled; of `whole`, all."""
    units: int
    """That these rows were taken from."""
    whole: bool
    tokens: Interval
    """As the rows hold them, after truncation, special tokens included."""
    encoded_tokens: Interval
    """Those that go through the encoder: equal texts of a unit once."""
    cut_tokens: Interval
    cut_ratio: Interval
    """Share of the rows that lose tokens to truncation."""
    quarantined_ratio: Interval
    reasons: dict[str, int]
    """Why sampled rows would be quarantined."""
    reader_seconds: float
    """What reading, checking and tokenizing all rows would take one core of this machine."""
    instructions: TokenRows
    responses: TokenRows
    """Of the pieces of sampled rows that can be scored, at most 8 bytes per token and row."""


@dataclass
class _Spent:
    """Seconds of the sampling, and what they were spent on."""

    reading: float = 0.0
    rows: int = 0
    tokenizing: float = 0.0
    tokens: int = 0


def sample_tokens(
    plan: Plan, *, columns: PairColumns, ranker: str, rows: int, seed: int
) -> TokenSample:
    """Read some of the units without a sidecar, and tokenize some of their rows as the job does.

    One unit is held at a time. The same plan and seed give the same sample.

    Raises:
        PoolFileError: a file changed since it was planned, or is broken.
    """
    sample = draw_rows(plan.missing, rows=rows, seed=seed)
    tokenizer = tokenizer_of(ranker, plan.key.max_tokens)
    spent, reasons = _Spent(), Counter[str]()
    means = np.zeros((len(sample.draws), 5))
    nothing = CheckedPairs([], [], [], [], [])
    texts = [tokenize_pairs(nothing, tokenizer, long=columns.long)]
    drawn: dict[Unit, list[int]] = defaultdict(list)
    for index, draw in enumerate(sample.draws):
        drawn[draw.unit].append(index)
    for unit, pairs in _read(plan, list(drawn), columns, spent):
        copies = _copies(pairs)
        for index in drawn[unit]:
            draw = sample.draws[index]
            kept_K = _kept(pairs, draw)
            reasons.update(filter(None, (pairs.reasons[row] for row in draw.offsets_R)))
            started = time.perf_counter()
            found = tokenize_pairs(pairs.only(kept_K.tolist()), tokenizer, long=columns.long)
            spent.tokenizing += time.perf_counter() - started
            spent.tokens += int(found.instruction_tokens_J.sum() + found.response_tokens_J.sum())
            means[index] = _means(pairs, copies, kept_K, found, rows=len(draw.offsets_R))
            texts.append(found)
    tokens, encoded, cut, cut_rows, bad = means.T
    total = sample.total(tokens)
    return TokenSample(
        rows=sample.rows,
        units=len(drawn),
        whole=sample.whole,
        tokens=total,
        encoded_tokens=sample.total(encoded),
        cut_tokens=sample.total(cut),
        cut_ratio=sample.share(cut_rows),
        quarantined_ratio=sample.share(bad),
        reasons=dict(sorted(reasons.items())),
        reader_seconds=spent.reading / max(spent.rows, 1) * int(sample.rows_H.sum())
        + spent.tokenizing / max(spent.tokens, 1) * total.estimate,
        instructions=_together([found.instructions for found in texts]),
        responses=_together([found.responses for found in texts]),
    )


def _read(
    plan: Plan, units: Sequence[Unit], columns: PairColumns, spent: _Spent
) -> Iterator[tuple[Unit, CheckedPairs]]:
    """Each unit with its rows, checked; every file is read once."""
    files = {file.path: file for file in plan.files}
    by_path: dict[str, list[Unit]] = defaultdict(list)
    for unit in sorted(units, key=lambda unit: (unit.path, unit.row_start)):
        by_path[unit.path].append(unit)
    for path, wanted in by_path.items():
        ranges = [(unit.row_start, unit.row_start + unit.rows) for unit in wanted]
        names = columns_read(columns, files[path].schema)
        started = time.perf_counter()
        for unit, table in zip(
            wanted, read_ranges(files[path], ranges, columns=names), strict=True
        ):
            pairs, _ = plan.made.filters.on_texts(check_rows(table, columns), plan.made.benchmarks)
            spent.reading += time.perf_counter() - started
            spent.rows += unit.rows
            yield unit, pairs
            started = time.perf_counter()


def _copies(pairs: CheckedPairs) -> Counter[tuple[int, str]]:
    """How often each text occurs, as either of a pair, among rows that are encoded together."""
    copies: Counter[tuple[int, str]] = Counter()
    for side in (pairs.instructions, pairs.responses):
        copies.update((k // WORK_ROWS, text) for k, text in enumerate(side))
    return copies


def _kept(pairs: CheckedPairs, draw: Draw) -> NDArray[np.int64]:
    """Positions, among the rows that can be scored, of those that were drawn."""
    return np.flatnonzero(np.isin(np.asarray(pairs.kept_rows, np.int64), draw.offsets_R))


def _means(
    pairs: CheckedPairs,
    copies: Counter[tuple[int, str]],
    kept_K: NDArray[np.int64],
    found: PieceTokens,
    *,
    rows: int,
) -> tuple[float, ...]:
    """Over a draw's rows: tokens, encoded tokens, cut tokens, rows with such, rows without score.

    A text's tokens are shared out among its copies, so that their sum over all rows counts it once.
    """
    of_pairs = np.flatnonzero(np.isin(pairs.rows_of_pairs(), kept_K)).tolist()
    sides = (
        (found.instruction_tokens_J, pairs.instructions),
        (found.response_tokens_J, pairs.responses),
    )
    tokens = sum(int(tokens_J.sum()) for tokens_J, _ in sides)
    encoded = sum(
        float(np.sum(tokens_J / np.array([copies[j // WORK_ROWS, texts[j]] for j in of_pairs])))
        for tokens_J, texts in sides
    )
    cut_K = found.of_rows(found.cut_tokens_J)
    sums = (tokens, encoded, cut_K.sum(), np.count_nonzero(cut_K), rows - len(kept_K))
    return tuple(float(value) / rows for value in sums)


def _together(parts: Sequence[TokenRows]) -> TokenRows:
    """The texts of all parts, in order."""
    return TokenRows.from_arrow(
        pa.chunked_array([part.to_arrow() for part in parts]),
        cut=np.concatenate([part.cut_N for part in parts]),
    )
