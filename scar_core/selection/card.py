"""The dataset card of a selection: how it is loaded, and how it was chosen, in Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

from scar_core.selection import trainers

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

CARD = "README.md"

# As the hub has them: "n<1K", "1K<n<10K", …
_SIZES = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")
_SMALLEST = 1000


def size_category(rows: int) -> str:
    """The hub's word for so many rows."""
    if rows < _SMALLEST:
        return f"n<{_SIZES[0]}"
    power = min(len(str(rows)) - len(str(_SMALLEST)), len(_SIZES) - 1)
    if power == len(_SIZES) - 1:
        return f"n>{_SIZES[-1]}"
    return f"{_SIZES[power]}<n<{_SIZES[power + 1]}"


def dataset_card(
    report: Mapping[str, Any],
    *,
    rows: int,
    form: str,
    suffix: str,
    score_column: str,
    ranker: str,
    beside: Collection[str],
) -> str:
    """A README.md, by which `datasets` finds the rows and people what they are.

    Args:
        report: as `report.json` holds it.
        rows: in the files.
        form: of the rows.
        suffix: of the files.
        score_column: where their scores are.
        ranker: fingerprint of what scored them.
        beside: names of the trainers' files that lie beside the card.
    """
    header = {
        "pretty_name": "A SCAR selection",
        "task_categories": ["text-generation"],
        "size_categories": [size_category(rows)],
        "tags": ["instruction-tuning", "data-selection", "scar"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": "train", "path": f"data/*.{suffix}"}],
            }
        ],
    }
    threshold = report["threshold"]
    return f"""---
{yaml.safe_dump(header, sort_keys=False)}---

# A SCAR selection

{rows:,} rows of {form} form, chosen by style and quality (SCAR, arXiv 2406.10882) with
`--keep {report["keep"]}` from {report["counts"]["rows_in"]:,} rows by SCAR Curate.
`{score_column}` is a row's score; higher is closer to the preferred style. The licence of the rows
is that of what they were chosen from.

| | |
|---|---|
{_figures(report, rows)}
| threshold | {"none" if threshold is None else f"{threshold:.6f}"} |
| ranker | `{ranker}` |

## Use

```python
from datasets import load_dataset

rows = load_dataset("PATH OR NAME OF THIS FOLDER", split="train")
```

{_use(beside)}

`manifest.json` holds the configuration, and the checksum of each file; `report.json` all figures.
"""


def _figures(report: Mapping[str, Any], rows: int) -> str:
    counts = report["counts"]
    lines = [
        ("rows in", counts["rows_in"]),
        ("scored", counts["scored"]),
        ("quarantined", sum(counts["quarantined"].values())),
        *((f"quarantined: {reason}", n) for reason, n in counts["quarantined"].items()),
        ("selected", counts["selected"]),
        ("written here", rows),
        ("not selected", counts["not_selected"]),
    ]
    return "\n".join(f"| {name} | {n:,} |" for name, n in lines)


def _use(beside: Collection[str]) -> str:
    told = {
        trainers.LLAMA_FACTORY: (
            f"- LLaMA-Factory: `dataset_dir: THIS FOLDER`, `dataset: {trainers.DATASET_NAME}` "
            f"(`{trainers.LLAMA_FACTORY}`)"
        ),
        trainers.AXOLOTL: f"- Axolotl: the `datasets` of `{trainers.AXOLOTL}`",
        trainers.TRL: f"- TRL: `python {trainers.TRL} MODEL OUT`",
    }
    without = [name for name in told if name not in beside]
    lines = [line for name, line in told.items() if name in beside]
    if without:
        lines.append(
            f"- no {', no '.join(f'`{name}`' for name in without)}: that trainer would not read "
            "such rows whole; select again with `--write-as messages`"
        )
    return "\n".join(lines)
