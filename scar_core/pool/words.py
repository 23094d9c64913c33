"""Texts as words in a plain spelling, and runs of n of them as hashes: the measure of overlap."""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

import numpy as np
import xxhash

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

# Scripts that are written without spaces: each character is a word there, else a sentence is one.
_ALONE = (
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f\u1780-\u17ff"  # Myanmar, Khmer
    "\u3040-\u30ff"  # Hiragana, Katakana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
)
_WORD = re.compile(f"[{_ALONE}]|[^\\W_{_ALONE}]+")


def words_of(text: str) -> list[str]:
    """Runs of letters and digits, in lower case and NFKC; what is between them is dropped."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).lower())


def ngram_hashes(words: Sequence[str], n: int) -> NDArray[np.uint64]:
    """[len(words) - n + 1] XXH3 (64 bits) of each run of n words, in order; none in fewer words."""
    joined = " ".join(words).encode()
    # In the bytes of the whole, so that no run is put together again.
    starts = [0]
    for word in words:
        starts.append(starts[-1] + len(word.encode()) + 1)
    runs = zip(starts, starts[n:], strict=False)
    hashes = [xxhash.xxh3_64_intdigest(joined[start : stop - 1]) for start, stop in runs]
    return np.array(hashes, np.uint64)
