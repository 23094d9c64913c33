"""Layouts: the forms of rows that trainers know, and in which columns their parts are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import pyarrow as pa

from scar_core.errors import SchemaError
from scar_core.pool.rows import is_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scar_core.pool.rows import PairColumns

Form = Literal["pair", "alpaca", "sharegpt", "messages", "prompt-completion"]

PARTS: dict[Form, tuple[str, ...]] = {
    "pair": ("instruction", "response"),
    "alpaca": ("instruction", "input", "output", "system", "history"),
    "sharegpt": ("conversations", "system"),
    "messages": ("messages",),
    "prompt-completion": ("prompt", "completion"),
}
"""What a form is made of; a part's column has its name unless a layout gives it another."""
OPTIONAL = ("input", "system", "history")
"""Parts that a row may lack."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where in a row a chat is."""

    form: Form
    columns: Mapping[str, str] = field(default_factory=dict)
    """Column by part, of those that are not named as the form names them."""

    def __post_init__(self) -> None:
        """Refuse parts that the form does not have, and one column for two of them."""
        if unknown := sorted(self.columns.keys() - set(PARTS[self.form])):
            raise ValueError(f"{self.form} has no part {', '.join(unknown)}")
        names = [self.column(part) for part in PARTS[self.form]]
        if len(set(names)) < len(names):
            raise ValueError(f"one column for two parts of {self.form}: {', '.join(names)}")

    def column(self, part: str) -> str:
        """The column of a part."""
        return self.columns.get(part, part)

    def columns_in(self, schema: pa.Schema) -> list[str]:
        """The columns of a file that hold parts, in the form's order."""
        return [name for part in PARTS[self.form] if (name := self.column(part)) in schema.names]


def pair_layout(columns: PairColumns) -> Layout:
    """That of rows whose texts are two columns."""
    return Layout(
        form="pair",
        columns={"instruction": columns.instruction_column, "response": columns.response_column},
    )


def check_layout(schema: pa.Schema, layout: Layout, *, where: str) -> None:
    """Raise SchemaError unless the columns of a layout are there and can hold what it says."""
    for part in PARTS[layout.form]:
        name = layout.column(part)
        if name not in schema.names:
            if part in OPTIONAL:
                continue
            raise SchemaError(
                f"{where}: no column {name!r}, which {layout.form} rows have; found "
                f"{', '.join(schema.names) or 'no columns'}. Rename it, or name another layout."
            )
        held, wanted = schema.field(name).type, _WANTED.get(part, "text")
        if not (_fits(held, part) or (part in OPTIONAL and pa.types.is_null(held))):
            raise SchemaError(
                f"{where}: column {name!r} holds {held}; {layout.form} rows have {wanted} there. "
                "Name another column or layout."
            )


_WANTED = {
    "history": "lists of (instruction, response)",
    "conversations": "lists of {from, value}",
    "messages": "lists of {role, content}",
    "prompt": "text, or lists of {role, content}",
    "completion": "text, or lists of {role, content}",
}


def _fits(held: pa.DataType, part: str) -> bool:
    if part == "history":
        return is_list(held) and is_list(held.value_type) and is_text(held.value_type.value_type)
    if part == "conversations":
        return has_messages(held, "from", "value")
    if part == "messages":
        return has_messages(held, "role", "content")
    if part in ("prompt", "completion") and not is_text(held):
        return has_messages(held, "role", "content")
    return is_text(held)


def is_list(held: pa.DataType) -> bool:
    """Whether a type is one of Arrow's lists."""
    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(is_kind(held) for is_kind in kinds)


def has_messages(held: pa.DataType, role: str, content: str) -> bool:
    """Whether a type is a list of structs with a text of one name and a field of another."""
    if not is_list(held) or not pa.types.is_struct(held.value_type):
        return False
    names = [one.name for one in held.value_type.fields]
    return role in names and content in names and is_text(held.value_type.field(role).type)
