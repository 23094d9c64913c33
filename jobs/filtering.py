"""The filters of a run: languages checked, benchmarks read and indexed, before anything starts."""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from scar_core import storage
from scar_core.errors import InputError
from scar_core.pool.benchmark_files import benchmark_texts
from scar_core.pool.contamination import BenchmarkIndex
from scar_core.pool.filters import Filters
from scar_core.pool.language import check_languages

if TYPE_CHECKING:
    from scar_core.pool.filters import FilterConfig

logger = logging.getLogger("scar_curate")


class MadeFilters(NamedTuple):
    """Filters, and the index of benchmarks that they read on workers once it is stored."""

    filters: Filters
    benchmarks: BenchmarkIndex | None

    def store(self) -> None:
        """Put the index where the filters look for it, unless it is there; a few bytes a word."""
        path = self.filters.benchmarks_path
        if self.benchmarks is not None and path is not None and not storage.exists(path):
            self.benchmarks.write(path)


def make_filters(config: FilterConfig, *, scores: str) -> MadeFilters:
    """Make ready what a config asks for; nothing is written yet.

    Args:
        config: which rows are left out.
        scores: the scores directory, where an index will lie in `benchmarks/`.

    Raises:
        InputError: a language is not known, a benchmark cannot be read or is too short to count,
            or a library is not installed.
    """
    if config.language:
        check_languages(config.language)
    benchmarks = _indexed(config)
    known = "" if benchmarks is None else benchmarks.id
    filters = Filters(
        languages=tuple(sorted(set(config.language))),
        min_response_tokens=config.min_response_tokens,
        max_response_tokens=config.max_response_tokens,
        max_instruction_tokens=config.max_instruction_tokens,
        benchmarks_path=storage.join(scores, f"benchmarks/{known}.arrow") if known else None,
        benchmarks_id=known,
    )
    return MadeFilters(filters, benchmarks)


def _indexed(config: FilterConfig) -> BenchmarkIndex | None:
    if not config.benchmarks:
        return None
    texts = benchmark_texts(config.benchmarks)
    benchmarks, count, too_short = BenchmarkIndex.build(texts, n=config.benchmark_words)
    told = f"{count:,} texts, {too_short:,} of them too short to count"
    if not benchmarks.runs:
        raise InputError(f"--benchmarks {' '.join(config.benchmarks)}: {told}; none is left.")
    logger.info("benchmarks: %s; %s runs of words", told, f"{benchmarks.runs:,}")
    return benchmarks


@lru_cache(maxsize=1)
def stored_benchmarks(path: str) -> BenchmarkIndex:
    """The index that a run stored; read once per worker process."""
    return BenchmarkIndex.read(path)
