"""Filters: rows that are left out before they are scored, because somebody asked for it.

A row that a filter takes is quarantined with a reason that starts with `filtered_`: counted and
listed as any other, but no fault of the pool. It takes a chat for one of the turns to be scored.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple

from scar_core.pool.language import language_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from scar_core.pool.contamination import BenchmarkIndex
    from scar_core.pool.rows import CheckedPairs

FILTERED = "filtered_"
LEAST_RUN_WORDS = 8


@dataclass(frozen=True, kw_only=True)
class FilterConfig:
    """Which rows are left out before scoring; none by default."""

    language: list[str] = field(default_factory=list)
    """Leave out rows whose response is in none of these languages (ISO 639-1: en de); rows too
    short to tell, or mixed, stay."""
    min_response_tokens: int = 0
    """Leave out rows with fewer tokens in the response, as the ranker counts before it cuts."""
    max_response_tokens: int | None = None
    """Leave out rows with more tokens in the response; at least 1."""
    max_instruction_tokens: int | None = None
    """Leave out rows with more tokens in the instruction; at least 1."""
    benchmarks: list[str] = field(default_factory=list)
    """Leave out rows that repeat texts of these files (any format of a pool, or .txt with a text a
    line): they share a run of --benchmark-words words, or all of a shorter text."""
    benchmark_words: int = 13
    """Words of a run that a row must not share with a benchmark, at least 8."""

    def __post_init__(self) -> None:
        """Refuse bounds that no row meets, and runs so short that every row shares one."""
        for name in ("max_response_tokens", "max_instruction_tokens"):
            most = getattr(self, name)
            if most is not None and most < 1:
                raise ValueError(f"{name} must be at least 1, got {most}")
        if self.min_response_tokens < 0:
            raise ValueError(
                f"min_response_tokens must be at least 0, got {self.min_response_tokens}"
            )
        if (self.max_response_tokens or self.min_response_tokens) < self.min_response_tokens:
            raise ValueError(
                f"max_response_tokens {self.max_response_tokens} is below min_response_tokens "
                f"{self.min_response_tokens}: no row would be left"
            )
        if self.benchmark_words < LEAST_RUN_WORDS:
            raise ValueError(
                f"benchmark_words must be at least {LEAST_RUN_WORDS}, got {self.benchmark_words}"
            )


class Filtered(NamedTuple):
    """Pairs that are left, and why others are not."""

    pairs: CheckedPairs
    messages: Mapping[int, str]
    """By position among all rows, what a filter found."""


@dataclass(frozen=True, kw_only=True)
class Filters:
    """Filters, ready to be used on any worker."""

    languages: tuple[str, ...] = ()
    min_response_tokens: int = 0
    max_response_tokens: int | None = None
    max_instruction_tokens: int | None = None
    benchmarks_path: str | None = None
    """Where the index of benchmarks lies."""
    benchmarks_id: str = ""
    """Stands for what is in it."""

    @property
    def id(self) -> str:
        """Hex digits that stand for what they take; empty where they take nothing."""
        told = asdict(replace(self, benchmarks_path=None))
        if told == asdict(Filters()):
            return ""
        return blake2b(json.dumps(told).encode(), digest_size=8).hexdigest()

    def on_texts(self, pairs: CheckedPairs, benchmarks: BenchmarkIndex | None) -> Filtered:
        """The pairs less those in other languages, and those that repeat a benchmark."""
        found: dict[int, tuple[str, str]] = {}
        for index, instruction, response in zip(
            pairs.rows_of_pairs(), pairs.instructions, pairs.responses, strict=True
        ):
            if (language := self._other_language(instruction, response)) is not None:
                found[index] = ("language", f"the response is in {language!r}")
            elif benchmarks and (run := benchmarks.shared_run(instruction, response)) is not None:
                found[index] = ("benchmark", f"shares with a benchmark: {run!r}")
        return _without(pairs, found)

    def _other_language(self, instruction: str, response: str) -> str | None:
        """The language of a row that is in none of those asked for; None where it may stay."""
        if not self.languages:
            return None
        # A response too short to tell is judged with its instruction.
        language = language_of(response) or language_of(f"{instruction}\n{response}")
        return None if language in self.languages else language

    def on_lengths(
        self,
        pairs: CheckedPairs,
        *,
        instruction_tokens_J: NDArray[np.integer],
        response_tokens_J: NDArray[np.integer],
    ) -> Filtered:
        """The pairs less those that are too short or too long, in tokens before any cut."""
        found: dict[int, tuple[str, str]] = {}
        lengths = zip(instruction_tokens_J.tolist(), response_tokens_J.tolist(), strict=True)
        for index, (instruction, response) in zip(pairs.rows_of_pairs(), lengths, strict=True):
            if response < self.min_response_tokens:
                found[index] = ("short", f"the response has {response:,} tokens")
            elif self.max_response_tokens is not None and response > self.max_response_tokens:
                found[index] = ("long", f"the response has {response:,} tokens")
            elif (
                self.max_instruction_tokens is not None
                and instruction > self.max_instruction_tokens
            ):
                found[index] = ("long", f"the instruction has {instruction:,} tokens")
        return _without(pairs, found)


def bad_rows(quarantined: Mapping[str, int]) -> int:
    """Of rows by reason, those that nobody asked to leave out."""
    return sum(rows for reason, rows in quarantined.items() if not reason.startswith(FILTERED))


def _without(pairs: CheckedPairs, found: Mapping[int, tuple[str, str]]) -> Filtered:
    """Pairs less some of them, by index among the kept ones, with (reason, message)."""
    if not found:
        return Filtered(pairs, {})
    hashes, reasons = list(pairs.hashes), list(pairs.reasons)
    messages = {}
    for index, (reason, message) in found.items():
        row = pairs.kept_rows[index]
        hashes[row], reasons[row], messages[row] = None, FILTERED + reason, message
    left = [index for index in range(len(pairs.kept_rows)) if index not in found]
    return Filtered(pairs.only(left)._replace(hashes=hashes, reasons=reasons), messages)
