"""The language of a text, by a library that brings its model along: nothing is downloaded."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from scar_core.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Collection

LEAST_LETTERS = 24
"""Fewer say too little: py3langid names a language for `ok` and `print(x)`, too."""
LEAST_CONFIDENCE = 0.9
"""Of the library's probability, below which a text counts as undecided."""
MOST_CHARACTERS = 4000
"""Read of a text: more changes nothing, and the library's time grows with them."""

_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|https?://\S+", re.DOTALL)


def language_of(text: str) -> str | None:
    """ISO 639-1 code of a text's language; None where it is too short or too mixed to tell.

    Code in backticks and addresses are left out; the first 4,000 characters count.

    Raises:
        InputError: the library is not installed.
    """
    prose = _CODE.sub(" ", text[:MOST_CHARACTERS])
    if sum(map(str.isalpha, prose)) < LEAST_LETTERS and prose.isascii():
        return None
    language, confidence = _identifier().classify(prose)
    return str(language) if confidence >= LEAST_CONFIDENCE else None


def check_languages(languages: Collection[str]) -> None:
    """Raise InputError for codes that the library does not know, or where it is not installed."""
    known = set(_identifier().labels)
    unknown = sorted(set(languages) - known)
    if unknown:
        raise InputError(
            f"--language {' '.join(unknown)}: not known. Known: {' '.join(sorted(known))}."
        )


@lru_cache(maxsize=1)
def _identifier() -> Any:  # noqa: ANN401 - the library ships no types
    """Loaded once per process."""
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise InputError(
            "--language needs py3langid. Install it: pip install 'scar-curate[filters]'."
        ) from error
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
