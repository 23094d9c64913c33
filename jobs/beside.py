"""What lies beside the selected rows: a dataset card, and what trainers need to be told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scar_core.selection import trainers
from scar_core.selection.card import CARD, dataset_card

if TYPE_CHECKING:
    import pyarrow as pa

    from jobs.written_as import Output


def beside(
    output: Output, pool: pa.Schema, report: dict[str, Any], *, ranker: str
) -> dict[str, str]:
    """Texts by file name, relative to the run's directory.

    Args:
        output: what the rows are written as.
        pool: the schema of a file of the pool; trainers take rows of one schema.
        report: as `report.json` holds it.
        ranker: fingerprint of what scored the rows.
    """
    layout, schema = output.written_layout, output.schema(pool)
    made = {
        trainers.LLAMA_FACTORY: trainers.llama_factory(layout, schema),
        trainers.AXOLOTL: trainers.axolotl(layout, schema),
        trainers.TRL: trainers.trl(layout, schema),
    }
    found = {name: text for name, text in made.items() if text is not None}
    counts = report["counts"]
    card = dataset_card(
        report,
        rows=counts.get("written", counts["selected"]),
        form=output.form,
        suffix=output.options.write_format,
        score_column=output.score_column,
        ranker=ranker,
        beside=found,
    )
    return {CARD: card, **found}
