"""A judge's verdict: one JSON object with one whole number from 0 to 9, or unknown and why.

Strictly, because a score that was guessed at would train a ranker like any other: a number as a
string ("7"), a fraction (7.5), a value that is there twice, words around the object, are unknown.
A code fence around the whole answer is taken off. 7.0 is 7: JSON knows one kind of number.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, NoReturn

from scar_core.training.quadruples import BEST_QUALITY

if TYPE_CHECKING:
    from jobs.endpoint import Outcome

ASPECTS = ("helpfulness", "correctness")

_FENCE = re.compile(r"\A```(?:json)?\s*\n(.*?)\n?```\Z", re.DOTALL)


def verdict_of(outcome: Outcome, aspect: str) -> tuple[int | None, str]:
    """The score and "", or None and why it is unknown.

    A reason is that of the outcome (`cut`, `no_answer`, `refused_by_filter`), or `not_json`,
    `no_verdict` (another object), `not_a_number`, `not_whole`, `out_of_range`.
    """
    if outcome.reason != "answered":
        return None, outcome.reason
    text = outcome.text.strip()
    if fenced := _FENCE.match(text):
        text = fenced[1]
    try:
        # JSON's own NaN-likes and values given twice would be settled silently.
        answer = json.loads(text, parse_constant=_refuse, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        return None, "not_json"
    if not isinstance(answer, dict) or aspect not in answer:
        return None, "no_verdict"
    return _score(answer[aspect])


def _score(value: object) -> tuple[int | None, str]:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None, "not_a_number"
    if not 0 <= value <= BEST_QUALITY:
        return None, "out_of_range"
    return (int(value), "") if value == int(value) else (None, "not_whole")


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a field is there twice")
    return found


def formats_of(aspect: str) -> tuple[dict[str, Any] | None, ...]:
    """What to ask an endpoint for, the strictest first: a schema, any JSON object, nothing."""
    number = {"type": "integer", "minimum": 0, "maximum": BEST_QUALITY}
    schema = {
        "type": "object",
        "properties": {aspect: number},
        "required": [aspect],
        "additionalProperties": False,
    }
    return (
        {"type": "json_schema", "json_schema": {"name": aspect, "strict": True, "schema": schema}},
        {"type": "json_object"},
        None,
    )
