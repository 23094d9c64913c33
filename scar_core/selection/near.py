"""Rows that are nearly the same: MinHash of word 5-grams, banded, linked into clusters.

Two texts whose sets of shingles have the Jaccard similarity s share a band with the probability
1 - (1 - s^r)^b, for b bands of r values each (Leskovec, Rajaraman and Ullman, Mining of Massive
Datasets, 3.4). Rows that share one are linked, and what hangs together is a cluster: two rows of
it may be less alike than any two that are linked.

Array suffixes: N rows, B bands, E links.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy.integrate import quad
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from scar_core.errors import InputError
from scar_core.pool.words import words_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

SHINGLE_WORDS = 5
PERMUTATIONS = 128
SEED = 1
# A prime to spread cluster numbers over all ranges of 64 bits (2^64 / the golden ratio).
_SPREAD = np.uint64(0x9E3779B97F4A7C15)
_NEAR = np.uint64(0xFFFFFFFFFFFFFFFF)
_FNV_PRIME = np.uint64(0x100000001B3)


class Banding(NamedTuple):
    """How a sketch is cut."""

    bands: int
    rows: int
    """Values of a band."""


@lru_cache
def banding(jaccard: float) -> Banding:
    """The bands whose false positives and false negatives around a threshold sum to the least.

    Of all that PERMUTATIONS values allow; both errors are areas under the curve of the module's
    equation, weighed alike. 0.8 gives 9 bands of 13 values.
    """

    def error(banding: Banding) -> float:
        def shared(s: float) -> float:
            return 1 - (1 - s**banding.rows) ** banding.bands

        false_positive, _ = quad(shared, 0, jaccard)
        false_negative, _ = quad(lambda s: 1 - shared(s), jaccard, 1)
        return float(false_positive + false_negative)

    ways = [
        Banding(bands, rows)
        for bands in range(1, PERMUTATIONS + 1)
        for rows in range(1, PERMUTATIONS // bands + 1)
    ]
    return min(ways, key=error)


def method(jaccard: float) -> list[object]:
    """All that a sketch depends on, beside its text; for names of what is kept.

    Raises:
        InputError: the library is not installed.
    """
    return [banding(jaccard), SHINGLE_WORDS, PERMUTATIONS, SEED, _minhash().ALGORITHM_VERSION]


def shingles(text: str) -> list[str]:
    """Runs of five words; all words as one where there are fewer."""
    words = words_of(text)
    runs = [" ".join(words[i : i + SHINGLE_WORDS]) for i in range(len(words) - SHINGLE_WORDS + 1)]
    return runs or [" ".join(words)]


def sketch(texts: Sequence[str], cut: Banding) -> NDArray[np.uint64]:
    """[N, B] a hash of each band of each text; the same for equal texts, on any machine.

    Raises:
        InputError: the library is not installed.
    """
    minhash = _minhash()
    if not texts:
        return np.zeros((0, cut.bands), np.uint64)
    matrix = minhash.digest_matrix_from_token_sets(
        [shingles(text) for text in texts], num_perm=PERMUTATIONS, seed=SEED
    )
    digests_NP = np.array(matrix.to_rows(), np.uint64)
    used_NBR = digests_NP[:, : cut.bands * cut.rows].reshape(len(texts), cut.bands, cut.rows)
    hashes_NB = np.full((len(texts), cut.bands), 0xCBF29CE484222325, np.uint64)  # FNV-1a, 64 bits
    with np.errstate(over="ignore"):
        hashes_NB ^= np.arange(cut.bands, dtype=np.uint64)  # of a band, and of no other
        hashes_NB *= _FNV_PRIME
        for part in range(cut.rows):
            hashes_NB ^= used_NBR[:, :, part]
            hashes_NB *= _FNV_PRIME
            hashes_NB ^= hashes_NB >> np.uint64(32)
    return hashes_NB


def _minhash() -> Any:  # noqa: ANN401 - the library ships no types
    try:
        from rensa import RMinHash  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise InputError(
            "--dedup near needs rensa. Install it: pip install 'scar-curate[filters]'."
        ) from error
    return RMinHash


class Links(NamedTuple):
    """Rows that share a band, each linked to the first row of that band; at most one way twice."""

    from_E: NDArray[np.uint64]
    to_E: NDArray[np.uint64]


def links_of(bands_M: NDArray[np.uint64], rows_M: NDArray[np.uint64]) -> Links:
    """Links among rows by equal bands: as few as hold together what hangs together.

    Args:
        bands_M: hashes of bands.
        rows_M: the number of the row that each is of.
    """
    order = np.lexsort((rows_M, bands_M))
    bands_M, rows_M = bands_M[order], rows_M[order]
    first_M = np.ones(len(order), np.bool_)
    first_M[1:] = bands_M[1:] != bands_M[:-1]
    heads_M = rows_M[np.maximum.accumulate(np.where(first_M, np.arange(len(order)), 0))]
    linked = heads_M != rows_M
    return forest([Links(heads_M[linked], rows_M[linked])])


def forest(parts: Iterable[Links]) -> Links:
    """All rows of these links, each linked once to the first row of its cluster."""
    nothing = np.zeros(0, np.uint64)
    heads, tails = zip((nothing, nothing), *parts, strict=True)
    from_E, to_E = np.concatenate(heads), np.concatenate(tails)
    rows, places = np.unique(np.concatenate([from_E, to_E]), return_inverse=True)
    ones = np.ones(len(from_E), np.bool_)
    ends = (places[: len(from_E)], places[len(from_E) :])
    size = len(rows)
    _, component = connected_components(coo_array((ones, ends), shape=(size, size)), directed=False)
    # `unique` gives the first place of each component, and rows ascend.
    _, first = np.unique(component, return_index=True)
    heads_R = rows[first][component]
    linked = heads_R != rows
    return Links(heads_R[linked], rows[linked])


def cluster_ids(heads_E: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """[E] both halves of what stands for a cluster in place of a content hash, of its first row.

    No content hash is like it but by a chance of 1 in 2^64.
    """
    with np.errstate(over="ignore"):
        return (heads_E + np.uint64(1)) * _SPREAD, np.full(len(heads_E), _NEAR)
