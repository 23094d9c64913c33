"""What runs on the workers when responses are measured: form metrics, on CPUs.

measure_form   some rows  →  the same with FORM_SCHEMA's columns beside them
with_form      a dataset  →  the same, measured by tasks
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobs import pipeline
from scar_core.errors import SchemaError
from scar_core.pool.rows import is_text
from scar_core.style.form import MAX_CHARACTERS, form_metrics

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset

PREFIX = "form_"
"""Before the name of each metric, so that no column of the rows is hidden."""
ROWS_PER_TASK = 256


def measure_form(
    table: pa.Table,
    *,
    response_column: str = "response",
    prefix: str = PREFIX,
    max_characters: int = MAX_CHARACTERS,
) -> pa.Table:
    """The rows with a column for each form metric of their response; null where undefined.

    Raises:
        SchemaError: there is no such column, it holds no text, or a metric's column is there.
    """
    names = table.column_names
    if response_column not in names or not is_text(table.schema.field(response_column).type):
        raise SchemaError(
            f"no column {response_column!r} of text; found {', '.join(names) or 'no columns'}. "
            "Name the column with the responses."
        )
    texts = [
        text.decode(errors="replace") if isinstance(text, bytes) else text
        for text in table[response_column].to_pylist()
    ]
    metrics = form_metrics(texts, max_characters=max_characters)
    taken = sorted({f"{prefix}{name}" for name in metrics.column_names} & set(names))
    if taken:
        raise SchemaError(
            f"columns {', '.join(taken)} are there already. Drop them, or take another prefix."
        )
    for name in metrics.column_names:
        table = table.append_column(f"{prefix}{name}", metrics[name])
    return table


def with_form(
    rows: Dataset,
    *,
    response_column: str = "response",
    prefix: str = PREFIX,
    max_characters: int = MAX_CHARACTERS,
    cpus_per_task: float = 1.0,
) -> Dataset:
    """A dataset of rows with their form metrics, measured by tasks of some hundred rows."""
    measured = pipeline.stage(
        rows,
        measure_form,
        batch_format="pyarrow",
        batch_size=ROWS_PER_TASK,
        zero_copy_batch=True,
        num_cpus=cpus_per_task,
        fn_kwargs={
            "response_column": response_column,
            "prefix": prefix,
            "max_characters": max_characters,
        },
    )
    measured.set_name("measure_form")  # what Ray's dashboard shows
    return measured
