"""The model card of a ranker: what it was trained on and how well it does, in Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scar_core.training.accuracy import accuracy_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scar_core.training.accuracy import AccuracyRow


def model_card(
    *,
    config: Mapping[str, Any],
    counts: Mapping[str, Any],
    measured_on: str,
    accuracy: Sequence[AccuracyRow],
    best_epoch: int,
    epochs: int,
) -> str:
    """A README.md that says what the ranker is for, its data, gate, recipe and accuracies.

    `config` and `counts` are those of the manifest; places of data are not repeated here.
    """
    pairs = "\n".join(
        f"| {kind} | {n['pairs']:,} | {n['kept']:,} | {n['equal_texts']:,} | {n['unjudged']:,} "
        f"| {n['quality']:,} |"
        for kind, n in counts["pairs"].items()
    )
    dropped = ", ".join(f"{n:,} {reason}" for reason, n in counts["quarantined"].items()) or "none"
    unjudged = "kept" if config["keep_unjudged"] else "left out"
    table = accuracy_table(accuracy) if accuracy else "Nothing was kept back to measure on."
    return f"""---
tags: [style-ranker, data-selection]
pipeline_tag: text-classification
---

# Style ranker

Scores an (instruction, response) pair; higher means closer in style to what an LLM answers by
itself, and of better quality (SCAR, arXiv 2406.10882). Load it with SCAR Curate:
`Scorer.load(folder).score([(instruction, response)])`.

## Data

{counts["rows_in"]:,} quadruples read; dropped: {dropped}; {counts["gated_out"]:,} without a pair
that passed the quality gate; {counts["not_sampled"]:,} not sampled;
{counts["over_source_cap"]:,} over the cap of their source. Split by instruction:
{counts["train"]:,} to train, with {counts["cut_copies"]:,} copies cut short beside them,
{counts["validation"]:,} to validate, {counts["test"]:,} to test.

The gate keeps a pair when both qualities, the mean of helpfulness and correctness, lie strictly
between {config["quality_above"]:g} and {config["quality_below"]:g} and the texts differ. Pairs
without judge scores were {unjudged}.

| pair kind | pairs | kept | equal texts | unjudged | quality |
|---|---|---|---|---|---|
{pairs}

## Recipe

AdamW at {config["learning_rate"]:g}, batches of {config["batch_size"]} quadruples, texts of at
most {config["max_tokens"]} tokens, seed {config["seed"]}; epoch {best_epoch} of {epochs} was the
best. The whole configuration is in `manifest.json`, every step's loss in `training.json`.

## Accuracy on the {measured_on} rows

How often the better response of a pair has the higher score. "longer wins" is what the length in
characters alone achieves; pairs are matched when their lengths differ by at most a tenth of the
longer one.

```
{table}
```
"""
