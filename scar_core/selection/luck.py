"""Soft sampling: rows drawn without replacement, each in proportion to exp(score / temperature).

Gumbel-top-k (Kool, van Hoof and Welling, 2019, arXiv 1903.06059): the k rows with the highest
score + temperature * G, where G is Gumbel noise of each row's own, are such a sample. So a sample
is the beginning of an order, and is found as any other.

The noise follows from the seed and from what is drawn. Where copies are left out that is a
content, and all its copies have one luck: none is drawn because it has many. Elsewhere it is a row,
by its content, the path of its file and its number there: copies have luck of their own.

The logarithm is made of additions, multiplications and divisions, which every processor rounds
alike; numpy's own differs between processors in the last bit, and with it, once in a while, would
the selection.

Array suffixes: N rows of a sidecar.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scar_core.selection.order import SidecarColumns, Worth

GOLDEN = 0x9E3779B97F4A7C15
# The powers of a series of the logarithm; the next term is below 2**-56 for s**2 <= 0.0295.
TERMS = 11


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """Rows ordered by score, or another worth, and luck."""

    temperature: float
    """Above 0, finite; in units of the score."""
    seed: int
    """At least 0."""
    drawn: Literal["content", "row"]
    """What has luck."""
    base: Worth | None = None
    """What is drawn by; the score where None."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Those of what is drawn by."""
        return () if self.base is None else self.base.columns

    def of(self, rows: SidecarColumns) -> NDArray[np.float32]:
        """[N] worth + temperature * noise, in float64, rounded to float32."""
        base_N = rows.scores_N if self.base is None else self.base.of(rows)
        noise_N = gumbel(self._luck(rows))
        with np.errstate(all="ignore"):  # rows without a score hold anything
            return (base_N.astype(np.float64) + self.temperature * noise_N).astype(np.float32)

    def _luck(self, rows: SidecarColumns) -> NDArray[np.uint64]:
        """[N] 64 bits for each row."""
        high_N, low_N = rows.hashes.view(">u8").T.astype(np.uint64)
        bits_N = _mixed(_mixed(high_N ^ np.uint64(_number(f"seed {self.seed}"))) ^ low_N)
        if self.drawn == "row":
            path, first = rows.place
            numbers_N = np.arange(first, first + len(bits_N), dtype=np.uint64)
            bits_N = _mixed(_mixed(bits_N ^ np.uint64(_number(path))) ^ numbers_N)
        return bits_N


def _number(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(errors="surrogateescape"), digest_size=8).digest())


def _mixed(bits_N: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """One step of SplitMix64 (Steele, Lea and Flood, 2014): each bit depends on all."""
    bits_N = bits_N + np.uint64(GOLDEN)
    bits_N = (bits_N ^ bits_N >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    bits_N = (bits_N ^ bits_N >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return bits_N ^ bits_N >> np.uint64(31)


def gumbel(bits_N: NDArray[np.uint64]) -> NDArray[np.float64]:
    """[N] standard Gumbel noise of 64 bits each: -log(-log u), u strictly between 0 and 1."""
    uniform_N = ((bits_N >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    return -logarithm(-logarithm(uniform_N))


def logarithm(values_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """[N] natural logarithms of positive numbers, the same on every processor.

    x = m * 2**e with m in [sqrt(1/2), sqrt(2)): log x = e * log 2 + 2 * artanh((m - 1) / (m + 1)).
    """
    mantissas_N, exponents_N = np.frexp(values_N)
    small_N = mantissas_N < math.sqrt(0.5)
    mantissas_N = np.where(small_N, 2 * mantissas_N, mantissas_N)
    exponents_N = exponents_N - small_N
    s_N = (mantissas_N - 1) / (mantissas_N + 1)
    square_N = s_N * s_N
    sum_N = np.zeros_like(s_N)
    for power in range(2 * TERMS - 1, 0, -2):
        sum_N = sum_N * square_N + 1 / power
    result_N: NDArray[np.float64] = exponents_N * math.log(2) + 2 * s_N * sum_N
    return result_N
