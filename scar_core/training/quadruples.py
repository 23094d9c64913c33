"""Quadruples: what a table must hold to be some, and each row checked, with a reason."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from scar_core.errors import IncompleteError, SchemaError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

ROLES = ("human", "referenced", "direct")
"""The responses of a quadruple, least preferred first; R in shape suffixes."""
HUMAN, REFERENCED, DIRECT = range(3)

BEST_QUALITY = 9
"""The judge's scale runs from 0 to this."""


class PairKind(NamedTuple):
    """Two roles, the better one first, as positions in ROLES."""

    better: int
    worse: int

    @property
    def name(self) -> str:
        """For example `direct>human`."""
        return f"{ROLES[self.better]}>{ROLES[self.worse]}"


PAIR_KINDS = (
    PairKind(DIRECT, REFERENCED),
    PairKind(REFERENCED, HUMAN),
    PairKind(DIRECT, HUMAN),
)
"""The pairs of a quadruple that a ranker learns to order; K in shape suffixes."""


class Response(NamedTuple):
    """One response and what a judge made of it."""

    text: str
    quality: float | None
    """Mean of helpfulness and correctness, 0 to 9; None unless a judge gave both."""


@dataclass(frozen=True, kw_only=True)
class Quadruple:
    """An instruction with two or three responses."""

    instruction: str
    responses: tuple[Response | None, Response | None, Response | None]
    """In the order of ROLES; at least two are there."""
    source: str
    """Where the row comes from; `unknown` where nothing says it."""
    instruction_is_own: bool = True
    """False where the row had none and `missing_instruction` stands in for it."""

    @property
    def family(self) -> str:
        """What rows of one side of a split have in common: the instruction.

        One that stands in for many says nothing of them; then it is the first response there, the
        human's text where there is one, of which there may be several rewrites.
        """
        if self.instruction_is_own:
            return self.instruction
        return next(response.text for response in self.responses if response is not None)

    def comparable(self, kind: PairKind) -> bool:
        """Whether both responses of a pair are there and their texts differ."""
        better, worse = self.responses[kind.better], self.responses[kind.worse]
        return better is not None and worse is not None and better.text != worse.text


@dataclass(frozen=True, kw_only=True)
class QuadrupleColumns:
    """Which fields hold a quadruple, and how large a text may be."""

    instruction_column: str = "instruction"
    """Field with the instruction."""
    human_column: str = "human"
    """Field with the human's response; may be null."""
    referenced_column: str = "referenced"
    """Field with an LLM's rewrite of the human's response; may be null or not there at all."""
    direct_column: str = "direct"
    """Field with an LLM's own response; may be null or not there at all."""
    source_column: str = "source"
    """Field that says where a row comes from; may be null or not there at all."""
    helpfulness_column: str = "{role}_helpfulness"
    """Field with a judge's helpfulness, 0 to 9; {role} stands for human, referenced and direct."""
    correctness_column: str = "{role}_correctness"
    """Field with a judge's correctness, 0 to 9; {role} as above."""
    missing_instruction: str | None = None
    """Stands in where a row has no instruction; by default such rows are dropped. Best a neutral
    one, such as "Write a text.": the pair teaches style, and nothing about instructions."""
    max_text_bytes: int = 1_000_000
    """A text that takes more bytes of UTF-8 is not used; at least 1."""

    def __post_init__(self) -> None:
        """Refuse limits that no text can meet, and one column for two things."""
        if self.max_text_bytes < 1:
            raise ValueError(f"max_text_bytes must be at least 1, got {self.max_text_bytes}")
        for name in ("helpfulness_column", "correctness_column"):
            if "{role}" not in getattr(self, name):
                raise ValueError(f"{name} must contain {{role}}, got {getattr(self, name)!r}")
        if self.missing_instruction is not None and not self.missing_instruction.strip():
            raise ValueError("missing_instruction must be a text, got nothing but white space")
        names = [self.instruction_column, *self.response_columns]
        if len(set(names)) < len(names):
            raise ValueError(f"one column for two things: {', '.join(names)}")

    @property
    def response_columns(self) -> tuple[str, str, str]:
        """Fields of the responses, in the order of ROLES."""
        return self.human_column, self.referenced_column, self.direct_column


@dataclass(frozen=True, kw_only=True)
class CheckedQuadruples:
    """Rows that can be trained on, and what became of the others."""

    quadruples: list[Quadruple]
    """In input order."""
    rows_in: int
    dropped: dict[str, int] = field(default_factory=dict)
    """Rows left out, by reason."""
    set_aside: dict[str, int] = field(default_factory=dict)
    """Single responses left out of rows, kept or dropped, by reason."""

    def __post_init__(self) -> None:
        """Raise IncompleteError unless rows in = kept + dropped."""
        dropped = sum(self.dropped.values())
        if self.rows_in != len(self.quadruples) + dropped:
            raise IncompleteError(
                f"{self.rows_in:,} rows went in, but {len(self.quadruples):,} kept + "
                f"{dropped:,} dropped came out. This is a bug."
            )


def check_columns(names: Sequence[str], columns: QuadrupleColumns, *, where: str) -> None:
    """Raise SchemaError unless the instruction and two responses have their columns."""
    found = [name for name in columns.response_columns if name in names]
    missing = [name for name in columns.response_columns if name not in names]
    problem = ""
    if columns.instruction_column not in names and columns.missing_instruction is None:
        problem = f"no column {columns.instruction_column!r}"
    elif len(found) < 2:  # noqa: PLR2004 - a pair
        problem = f"two columns of responses are needed, but there is no {' and no '.join(missing)}"
    if problem:
        raise SchemaError(
            f"{where}: {problem}; found {', '.join(sorted(names)) or 'no columns'}. Rename them, "
            "or pass --instruction-column, --human-column, --referenced-column, --direct-column."
        )


def check_quadruples(
    rows: Iterable[Mapping[str, Any]], columns: QuadrupleColumns
) -> CheckedQuadruples:
    """Sort rows into those with a usable instruction and two usable responses, and the rest.

    A reason is `<role>_<not_text|empty|too_large|bad_score>`, for the instruction also `_missing`.
    A row is dropped for its instruction, else for the first response set aside, else for
    `fewer_than_two_responses`. A judge's score that is no number from 0 to 9 is a `bad_score`.
    """
    kept: list[Quadruple] = []
    dropped: Counter[str] = Counter()
    set_aside: Counter[str] = Counter()
    rows_in = 0
    for row in rows:
        rows_in += 1
        instruction, reason = check_text(row.get(columns.instruction_column), columns)
        is_own = instruction is not None
        if not is_own and not reason:
            instruction = columns.missing_instruction
        if instruction is None:
            dropped[f"instruction_{reason or 'missing'}"] += 1
            continue
        responses, reasons = _responses(row, columns)
        set_aside.update(reasons)
        if sum(response is not None for response in responses) < 2:  # noqa: PLR2004 - a pair
            dropped[reasons[0] if reasons else "fewer_than_two_responses"] += 1
            continue
        source = row.get(columns.source_column)
        kept.append(
            Quadruple(
                instruction=instruction,
                responses=responses,
                source="unknown" if source is None else str(source),
                instruction_is_own=is_own,
            )
        )
    return CheckedQuadruples(
        quadruples=kept,
        rows_in=rows_in,
        dropped=dict(sorted(dropped.items())),
        set_aside=dict(sorted(set_aside.items())),
    )


def check_text(value: object, columns: QuadrupleColumns) -> tuple[str | None, str]:
    """The text, or None and a reason: not_text, empty, too_large; of a null it is empty text."""
    if value is None:
        return None, ""
    if not isinstance(value, str):
        return None, "not_text"
    try:
        size = len(value.encode())
    except UnicodeEncodeError:  # JSON can spell half of a surrogate pair
        return None, "not_text"
    if not value.strip():
        return None, "empty"
    return (value, "") if size <= columns.max_text_bytes else (None, "too_large")


def _responses(
    row: Mapping[str, Any], columns: QuadrupleColumns
) -> tuple[tuple[Response | None, Response | None, Response | None], list[str]]:
    """The responses in the order of ROLES, and a reason for each that cannot be used."""
    found: list[Response | None] = []
    reasons: list[str] = []
    for role, column in zip(ROLES, columns.response_columns, strict=True):
        text, reason = check_text(row.get(column), columns)
        if text is not None:
            aspects = (columns.helpfulness_column, columns.correctness_column)
            judged = [_judge_score(row.get(name.replace("{role}", role))) for name in aspects]
            if all(not math.isinf(score) for score in judged):
                quality = sum(judged) / len(judged)
                found.append(Response(text, None if math.isnan(quality) else quality))
                continue
            reason = "bad_score"
        found.append(None)
        if reason:
            reasons.append(f"{role}_{reason}")
    human, referenced, direct = found
    return (human, referenced, direct), reasons


def _judge_score(value: object) -> float:
    """The score; NaN where there is none, infinity where it is no number from 0 to 9."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.inf
    if isinstance(value, float) and math.isnan(value):  # how pandas writes a missing number
        return math.nan
    return float(value) if 0 <= value <= BEST_QUALITY else math.inf
