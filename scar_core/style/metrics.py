"""What each form metric means: name, definition, source, unit, and when it is undefined."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

MTLD_WORDS = 50
"""Words below which MTLD says nothing: Koizumi & In'nami (2012) find it stable from 100 on."""

PUNCTUATION = {
    "full_stops": ".。．",  # noqa: RUF001
    "commas": ",，、",  # noqa: RUF001
    "question_marks": "?？",  # noqa: RUF001
    "exclamation_marks": "!！",  # noqa: RUF001
    "colons": ":：",  # noqa: RUF001
    "semicolons": ";；",  # noqa: RUF001
    "dashes": "–—",  # noqa: RUF001
    "quotes": "\"'“”‘’«»「」『』",  # noqa: RUF001
    "brackets": "()[]（）【】",  # noqa: RUF001
}


@dataclass(frozen=True, kw_only=True)
class Metric:
    """What a column of form metrics holds."""

    name: str
    what: str
    """One sentence for a person."""
    source: str
    """Where it is defined."""
    unit: str
    undefined: str
    """When it is null, beside for a null text; "never" if it is not."""
    group: Literal["size", "words", "sentences", "punctuation", "layout"]
    """Sizes describe how much there is; all others are style."""


def _rate(name: str, signs: str) -> Metric:
    return Metric(
        name=name,
        what=f"How often the prose has {signs}.",
        source="count over characters of the prose that are not white space",
        unit="per 1,000 characters",
        undefined="no prose",
        group="punctuation",
    )


def _count(name: str, what: str) -> Metric:
    return Metric(
        name=name,
        what=what,
        source="CommonMark 0.31 with GitHub's tables; indented text is no code",
        unit="count",
        undefined="never",
        group="layout",
    )


_ENGLISH = (
    "no words, or fewer than half of them in the Latin alphabet; other languages are not told"
)
METRICS: tuple[Metric, ...] = (
    Metric(
        name="characters",
        what="Characters of the whole text.",
        source="Unicode code points",
        unit="characters",
        undefined="never",
        group="size",
    ),
    Metric(
        name="examined_ratio",
        what="Share of the characters that were examined; all other columns speak of that part.",
        source="max_characters over characters, at most 1; 1 for an empty text",
        unit="share",
        undefined="never",
        group="size",
    ),
    Metric(
        name="words",
        what="Words of the prose.",
        source="scar_core.style.words; a Chinese or Japanese character is a word",
        unit="words",
        undefined="never",
        group="size",
    ),
    Metric(
        name="sentences",
        what="Sentences of the prose that hold a word.",
        source="sentencex, within paragraphs, list items and cells",
        unit="sentences",
        undefined="never",
        group="size",
    ),
    Metric(
        name="lines",
        what="Lines that are not blank.",
        source="line feeds",
        unit="lines",
        undefined="never",
        group="size",
    ),
    Metric(
        name="function_word_ratio",
        what="Share of the words that are English function words.",
        source="FUNCTION_WORDS, after Quirk et al. 1985",
        unit="share",
        undefined=_ENGLISH,
        group="words",
    ),
    Metric(
        name="transitions_per_sentence",
        what="English transition words and phrases (however, for example) to a sentence.",
        source="TRANSITIONS, after Quirk et al. 1985",
        unit="per sentence",
        undefined=_ENGLISH,
        group="words",
    ),
    Metric(
        name="type_token_ratio",
        what="Different words over words; falls with length.",
        source="Templin 1957; case is folded, words are not lemmatized",
        unit="share",
        undefined="no words",
        group="words",
    ),
    Metric(
        name="mtld",
        what="Lexical diversity: words for which the type-token ratio stays at 0.72 or above.",
        source="McCarthy & Jarvis 2010, both directions",
        unit="words",
        undefined=f"fewer than {MTLD_WORDS} words, or no word twice",
        group="words",
    ),
    Metric(
        name="flesch_reading_ease",
        what="How easy English prose reads; about 60 is plain, 30 academic.",
        source="Flesch 1948: 206.835 - 1.015 words/sentence - 84.6 syllables/word, by rule",
        unit="points",
        undefined=_ENGLISH,
        group="sentences",
    ),
    Metric(
        name="sentence_words_mean",
        what="Mean length of the sentences.",
        source="words over sentences",
        unit="words",
        undefined="no sentences",
        group="sentences",
    ),
    Metric(
        name="sentence_words_sd",
        what="How much the length of sentences varies within the text.",
        source="standard deviation with n - 1",
        unit="words",
        undefined="fewer than two sentences",
        group="sentences",
    ),
    _rate("punctuation", "any sign of Unicode's categories P"),
    *(_rate(name, f"any of {' '.join(signs)}") for name, signs in PUNCTUATION.items()),
    _count("paragraphs", "Paragraphs outside of lists and quotes."),
    _count("headings", "Headings."),
    _count("list_items", "Items of lists, nested ones too."),
    _count("code_blocks", "Fenced code blocks."),
    _count("tables", "Tables."),
    _count("bold", "Spans in bold."),
    Metric(
        name="list_line_ratio",
        what="Share of the lines that lie in lists.",
        source="lines that are not blank",
        unit="share",
        undefined="no lines",
        group="layout",
    ),
    Metric(
        name="code_line_ratio",
        what="Share of the lines that lie in fenced code blocks, fences included.",
        source="lines that are not blank",
        unit="share",
        undefined="no lines",
        group="layout",
    ),
    Metric(
        name="line_characters_mean",
        what="Mean length of the lines.",
        source="lines that are not blank, without white space around them",
        unit="characters",
        undefined="no lines",
        group="layout",
    ),
)
METRIC_NAMES = tuple(metric.name for metric in METRICS)
STYLE_METRICS = tuple(metric.name for metric in METRICS if metric.group != "size")
"""Those that say how a text is written, not how much there is."""
FORM_SCHEMA = pa.schema([pa.field(name, pa.float64()) for name in METRIC_NAMES])
