"""The form metrics of texts, a column each.

Words, sentences and punctuation are those of the prose: code blocks and Markdown's marks are left
out. What a text does not have is null, never a made-up 0. Only the first `max_characters` of a text
are examined, which `examined_ratio` says.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from itertools import chain
from statistics import fmean, stdev
from typing import TYPE_CHECKING

import pyarrow as pa

from scar_core.style.layout import Layout, layout_of
from scar_core.style.metrics import FORM_SCHEMA, MTLD_WORDS, PUNCTUATION
from scar_core.style.words import (
    FUNCTION_WORDS,
    is_latin,
    mtld,
    sentences_of,
    syllables_in,
    transitions_in,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    Values = Iterator[tuple[str, float | None]]

MAX_CHARACTERS = 100_000


def form_metrics(texts: Sequence[str | None], *, max_characters: int = MAX_CHARACTERS) -> pa.Table:
    """Give FORM_SCHEMA's columns of N texts, in input order; null where undefined.

    Linear in a text's length: at most its first `max_characters` are examined.

    Raises:
        InputError: the extra `style` is not installed.
    """
    if max_characters < 1:
        raise ValueError(f"max_characters must be at least 1, got {max_characters}")
    rows = [{} if text is None else dict(_values(text, max_characters)) for text in texts]
    return pa.Table.from_pylist(rows, schema=FORM_SCHEMA)


def _values(text: str, max_characters: int) -> Values:
    yield "characters", len(text)
    yield "examined_ratio", min(1.0, max_characters / len(text)) if text else 1.0
    layout = layout_of(text[:max_characters])
    sentences = sentences_of(layout.prose)
    words = list(chain.from_iterable(sentences))
    yield from _word_values(words, sentences)
    yield from _sentence_values(words, sentences)
    yield from _punctuation_values(layout.prose)
    yield from _layout_values(layout)


def _word_values(words: list[str], sentences: list[list[str]]) -> Values:
    yield "words", len(words)
    if not words:
        return
    types = Counter(words)
    yield "type_token_ratio", len(types) / len(words)
    yield "mtld", mtld(words) if len(words) >= MTLD_WORDS else None
    if sum(map(is_latin, words)) * 2 >= len(words):
        function_words = sum(types[word] for word in types.keys() & FUNCTION_WORDS)
        yield "function_word_ratio", function_words / len(words)
        yield "transitions_per_sentence", sum(map(transitions_in, sentences)) / len(sentences)
        syllables = sum(map(syllables_in, words)) / len(words)
        ease = 206.835 - 1.015 * len(words) / len(sentences) - 84.6 * syllables
        yield "flesch_reading_ease", ease


def _sentence_values(words: list[str], sentences: list[list[str]]) -> Values:
    yield "sentences", len(sentences)
    if sentences:
        yield "sentence_words_mean", len(words) / len(sentences)
    if len(sentences) > 1:
        yield "sentence_words_sd", stdev(map(len, sentences), fmean(map(len, sentences)))


def _punctuation_values(prose: list[str]) -> Values:
    signs = Counter("".join(prose))
    thousands = sum(count for sign, count in signs.items() if not sign.isspace()) / 1000
    if thousands:
        punctuation = (count for sign, count in signs.items() if _is_punctuation(sign))
        yield "punctuation", sum(punctuation) / thousands
        for name, wanted in PUNCTUATION.items():
            yield name, sum(signs[sign] for sign in wanted) / thousands


def _is_punctuation(sign: str) -> bool:
    return unicodedata.category(sign).startswith("P")


def _layout_values(layout: Layout) -> Values:
    for name in ("paragraphs", "headings", "list_items", "code_blocks", "tables", "bold"):
        yield name, layout.marks[name]
    yield "lines", layout.lines
    if layout.lines:
        yield "list_line_ratio", layout.list_lines / layout.lines
        yield "code_line_ratio", layout.code_lines / layout.lines
        yield "line_characters_mean", layout.line_characters / layout.lines
