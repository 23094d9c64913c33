"""Rows that repeat a benchmark: they share a run of n words with one of its texts.

As for GPT-3 (Brown et al. 2020, arXiv 2005.14165, appendix C) n is 13 by default, and words are
compared in lower case without punctuation. A text of a benchmark that is shorter counts whole, if
it has at least 8 words; shorter ones are too common to accuse anybody.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa

from scar_core import storage
from scar_core.pool.words import ngram_hashes, words_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

LEAST_WORDS = 8


class Built(NamedTuple):
    """An index, and what went into it."""

    benchmarks: BenchmarkIndex
    texts: int
    too_short: int
    """Texts of fewer than 8 words, which are not in it."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkIndex:
    """The runs of words that rows must not share, as 64-bit hashes."""

    hashes: Mapping[int, NDArray[np.uint64]]
    """By words of a run: n, and less for shorter texts; each ascending."""

    @classmethod
    def build(cls, texts: Iterable[str], *, n: int) -> Built:
        """Index texts of benchmarks.

        Args:
            texts: of benchmarks, each by itself.
            n: words of a run, at least 8.
        """
        found: dict[int, list[NDArray[np.uint64]]] = {}
        count = too_short = 0
        for text in texts:
            count += 1
            words = words_of(text)
            if len(words) < LEAST_WORDS:
                too_short += 1
                continue
            length = min(n, len(words))
            found.setdefault(length, []).append(ngram_hashes(words, length))
        hashes = {n: np.unique(np.concatenate(parts)) for n, parts in sorted(found.items())}
        return Built(cls(hashes=hashes), count, too_short)

    @cached_property
    def runs(self) -> int:
        """Different runs in all."""
        return sum(map(len, self.hashes.values()))

    @cached_property
    def id(self) -> str:
        """Hex digits that stand for what is in it."""
        digest = blake2b(digest_size=8)
        for n, known in self.hashes.items():
            digest.update(n.to_bytes(8, "little") + known.astype("<u8").tobytes())
        return digest.hexdigest()

    def shared_run(self, *texts: str) -> str | None:
        """The first run that one of the texts shares with a benchmark, as words; None if none."""
        for text in texts:
            words = words_of(text)
            for n, known in self.hashes.items():
                mine = ngram_hashes(words, n)
                places = np.minimum(np.searchsorted(known, mine), len(known) - 1)
                shared = np.flatnonzero(known[places] == mine)
                if len(shared):
                    first = int(shared[0])
                    return " ".join(words[first : first + n])
        return None

    def write(self, path: str) -> None:
        """Store it, whole or not at all."""
        lengths = np.repeat(list(self.hashes), [len(known) for known in self.hashes.values()])
        nothing = np.zeros(0, np.uint64)
        table = pa.table(
            {
                "words": pa.array(lengths, pa.int32()),
                "hash": pa.array(np.concatenate([nothing, *self.hashes.values()]), pa.uint64()),
            }
        )
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        storage.write_bytes(path, sink.getvalue().to_pybytes())

    @classmethod
    def read(cls, path: str) -> BenchmarkIndex:
        """What `write` stored."""
        with pa.ipc.open_file(pa.BufferReader(storage.read_bytes(path))) as reader:
            table = reader.read_all()
        words, hashes = table["words"].to_numpy(), table["hash"].to_numpy()
        return cls(hashes={int(n): hashes[words == n] for n in np.unique(words)})
