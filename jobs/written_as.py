"""What selected rows are written as: in which form, in which kind of file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import pyarrow as pa

from scar_core.errors import SchemaError
from scar_core.pool.forms import written, written_schema
from scar_core.tables import write_lines, write_table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from scar_core.manifest import PublishedFile
    from scar_core.pool.files import PoolFile
    from scar_core.pool.layouts import Form, Layout


@dataclass(frozen=True, kw_only=True)
class WriteOptions:
    """How selected rows are written."""

    write_as: Literal["rows", "alpaca", "sharegpt", "messages", "prompt-completion"] = "rows"
    """rows: as they came. Else their texts in this form, and all other columns as they came; a row
    that the form has no place for stops the run."""
    write_format: Literal["parquet", "jsonl"] = "parquet"
    """Kind of the output files. jsonl: a JSON object a line."""
    push_to_hub: str | None = None
    """Dataset repository on the Hugging Face Hub, OWNER/NAME, to commit the selection to when it is
    published; made, private, if it is not there. The token is taken from HF_TOKEN."""


@dataclass(frozen=True, kw_only=True)
class Output:
    """What the rows of a selection become."""

    layout: Layout
    """Of the pool's rows."""
    options: WriteOptions
    score_column: str

    @property
    def form(self) -> Form:
        """Of the output rows."""
        as_they_came = self.options.write_as == "rows"
        return self.layout.form if as_they_came else self.options.write_as  # type: ignore[return-value]

    @property
    def written_layout(self) -> Layout:
        """Where in an output row its texts are."""
        return self.layout if self.form == self.layout.form else type(self.layout)(form=self.form)

    def check(self, files: Iterable[PoolFile]) -> None:
        """Raise SchemaError for a file of the pool with a column that an output row has anew."""
        for file in files:
            schema = written_schema(file.schema, self.layout, self.form, where=file.shown)
            if self.score_column in schema.names:
                raise SchemaError(
                    f"{file.shown}: has a column {self.score_column!r} already; selected rows "
                    "would have two. Pass another name with --score-column."
                )

    def schema(self, pool: pa.Schema) -> pa.Schema:
        """Of output rows, by the schema of a file of the pool."""
        schema = written_schema(pool, self.layout, self.form, where="the pool")
        return schema.append(pa.field(self.score_column, pa.float32()))

    def rows(self, table: pa.Table, scores: pa.Array, *, where: Callable[[int], str]) -> pa.Table:
        """Output rows of rows of the pool and their scores.

        Raises:
            InputError: the form has no place for what a row holds; `where` names it.
        """
        schema = self.schema(table.schema)
        found = written(table, self.layout, self.form, where=where)
        field = schema.field(len(schema) - 1)
        return found.append_column(field, scores).replace_schema_metadata(schema.metadata)

    def path(self, index: int) -> str:
        """Where an output file lies, relative to the run's directory."""
        return f"data/part-{index:05d}.{self.options.write_format}"

    def write(
        self, folder: str, path: str, tables: Iterator[pa.Table], *, pool: pa.Schema
    ) -> PublishedFile:
        """Write output rows as one file below a folder, whole or not at all."""
        if self.options.write_format == "jsonl":
            return write_lines(folder, path, tables)
        return write_table(folder, path, tables, schema=self.schema(pool))
