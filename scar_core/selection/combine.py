"""A weighted sum of the score and other numeric columns of the pool, each as a z-score.

A term is weight * (value - mean) / standard deviation, values taken as float32, over the rows that
have all of them. Mean and deviation come from sums that are exact, so neither workers nor layout
nor order move them; then all is float64, term after term, and the sum is rounded to float32.

Array suffixes: N rows of a unit, E exponents of float32 values.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from scar_core.errors import InputError, SchemaError
from scar_core.pool.units import read_ranges
from scar_core.selection.keep import NUMBER

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from scar_core.pool.files import PoolFile
    from scar_core.selection.order import SidecarColumns

SCORE = "score"
"""The name of a row's score among the terms."""

MANTISSA_BITS = 24
LEAST_EXPONENT, EXPONENTS = -149, 280


@dataclass(frozen=True, kw_only=True)
class Term:
    """A column and what it weighs."""

    name: str
    weight: float
    mean: float = 0.0
    deviation: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Combined:
    """Rows ordered by a weighted sum."""

    terms: tuple[Term, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """All but the score."""
        return tuple(term.name for term in self.terms if term.name != SCORE)

    def of(self, rows: SidecarColumns) -> NDArray[np.float32]:
        """[N] the sum; NaN where a value is missing or the score is not finite."""
        total_N = np.zeros(len(rows))
        with np.errstate(all="ignore"):  # rows without a score hold anything
            for term in self.terms:
                values_N = values_of_term(rows, term).astype(np.float64)
                total_N += term.weight * ((values_N - term.mean) / term.deviation)
            total_N[~np.isfinite(rows.scores_N)] = np.nan
            return total_N.astype(np.float32)


def values_of_term(rows: SidecarColumns, term: Term) -> NDArray[np.float32]:
    """[N] the values of a term."""
    return rows.scores_N if term.name == SCORE else rows.numbers[term.name]


def parse_combine(text: str) -> Combined:
    """What `--combine` asks for: `score:1 + quality:0.5`; `score` is the score.

    Raises:
        InputError: it cannot be read.
    """
    terms = []
    for part in text.split("+"):
        match = re.fullmatch(rf"\s*([^:]*[^:\s])\s*:\s*(-?{NUMBER})\s*", part)
        if match is None or not float(match[2]):
            raise InputError(
                f"--combine {text!r}: wanted columns with their weights, none of them 0, such as "
                "'score:1 + quality:0.5'."
            )
        terms.append(Term(name=match[1], weight=float(match[2])))
    if len({term.name for term in terms}) < len(terms):
        raise InputError(f"--combine {text!r}: a column is named twice. Add up its weights.")
    return Combined(terms=tuple(terms))


def check_number_columns(files: Iterable[PoolFile], columns: Sequence[str], *, flag: str) -> None:
    """Raise SchemaError for a file that lacks one of the columns, or where it holds no numbers."""
    for file in files:
        for name in columns:
            if name not in file.schema.names:
                raise SchemaError(
                    f"{file.shown}: no column {name!r}; found {', '.join(file.schema.names)}. "
                    f"Pass another column with {flag}."
                )
            held = file.schema.field(name).type
            if not (
                pa.types.is_integer(held)
                or pa.types.is_floating(held)
                or pa.types.is_decimal(held)
                or pa.types.is_null(held)
            ):
                raise SchemaError(
                    f"{file.shown}: column {name!r} holds {held}; wanted numbers. "
                    f"Pass another column with {flag}."
                )


def numbers_of(
    file: PoolFile, ranges: Sequence[tuple[int, int]], *, columns: Sequence[str]
) -> Iterator[dict[str, NDArray[np.float32]]]:
    """Columns of some ranges of rows as float32; NaN where null or not finite."""
    for table in read_ranges(file, ranges, columns=list(columns)):
        yield {name: as_numbers(table[name]) for name in columns}


def as_numbers(column: pa.ChunkedArray) -> NDArray[np.float32]:
    """A column as float32; NaN where null or not finite."""
    wide_N = column.cast(pa.float64(), safe=False).to_numpy()
    with np.errstate(over="ignore", invalid="ignore"):
        values_N: NDArray[np.float32] = wide_N.astype(np.float32)
    values_N[~np.isfinite(values_N)] = np.nan
    return values_N


def moments(values_N: NDArray[np.float32]) -> NDArray[np.int64]:
    """[4, E] of finite values: how many, their sum and that of their squares in two parts.

    Integers by binary exponent, so they add up exactly, in any order; up to 2**39 values.
    """
    mantissas_N, exponents_N = np.frexp(values_N.astype(np.float64))
    whole_N = np.ldexp(mantissas_N, MANTISSA_BITS).astype(np.int64)
    square_N = whole_N * whole_N
    bins_N = exponents_N - LEAST_EXPONENT
    sums = np.zeros((4, EXPONENTS), np.int64)
    for row, part_N in enumerate(
        (np.ones_like(whole_N), whole_N, square_N >> MANTISSA_BITS, square_N % 2**MANTISSA_BITS)
    ):
        np.add.at(sums[row], bins_N, part_N)
    return sums


def fitted(combined: Combined, sums: Sequence[NDArray[np.int64]]) -> Combined:
    """The same terms with mean and standard deviation, from the moments of each.

    Raises:
        InputError: all values of a column are equal, so that it orders nothing.
    """
    terms = []
    for term, (counts, ones, high, low) in zip(combined.terms, sums, strict=True):
        rows = int(counts.sum())
        if not rows:
            terms.append(term)
            continue
        total = sum((n * _power(e) for e, n in enumerate(ones.tolist()) if n), Fraction())
        squares = sum(
            (
                (upper * 2**MANTISSA_BITS + lower) * _power(e) ** 2
                for e, (upper, lower) in enumerate(zip(high.tolist(), low.tolist(), strict=True))
                if upper or lower
            ),
            Fraction(),
        )
        mean = total / rows
        variance = squares / rows - mean**2
        if not variance:
            raise InputError(
                f"--combine: all {rows:,} values of {term.name!r} are {float(mean):g}, so it "
                "orders nothing. Leave it out."
            )
        terms.append(replace(term, mean=float(mean), deviation=math.sqrt(variance)))
    return Combined(terms=tuple(terms))


def _power(bin_: int) -> Fraction:
    """What a mantissa of this bin is multiplied by."""
    return Fraction(2) ** (bin_ + LEAST_EXPONENT - MANTISSA_BITS)
