"""The model card of a ranker: what it was trained on and how well it does, in Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scar_core.training.accuracy import accuracy_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scar_core.training.accuracy import AccuracyRow

_BOTH = "both qualities lie strictly between {quality_above:g} and {quality_below:g}"
_NEAR = "the qualities differ by less than {quality_below:g}"
_PASSES = {
    "abs": _BOTH,
    "abs_pos": _BOTH.replace("both qualities lie", "the better response's quality lies"),
    "diff": _NEAR,
    "abs_diff": _NEAR + ", both are above {quality_above:g}",
    "none": "it is there, whatever its quality,",
}
"""What each gate asks for, filled in from the config."""


def model_card(
    *,
    config: Mapping[str, Any],
    counts: Mapping[str, Any],
    measured_on: str,
    accuracy: Sequence[AccuracyRow],
    correlations: Mapping[str, float | None],
    software: Mapping[str, str],
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
    passes = _PASSES[config["gate"]].format(**config)
    kinds = list(counts["pairs"])
    by_gate = "\n".join(
        f"| {gate} | " + " | ".join(f"{kept[kind]:,}" for kind in kinds) + " |"
        for gate, kept in counts["kept_by_gate"].items()
    )
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

The gate `{config["gate"]}` keeps a pair when {passes} and the texts differ. A quality is
the mean of helpfulness and correctness. Pairs without the judge scores it needs were {unjudged}.

| pair kind | pairs | kept | equal texts | unjudged | quality |
|---|---|---|---|---|---|
{pairs}

Pairs that each gate would keep, all else equal:

| gate | {" | ".join(kinds)} |
|---|{"---|" * len(kinds)}
{by_gate}

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

95 % intervals are Wilson's and take pairs for independent; those of one quadruple are not.

{correlation_line(correlations)}

## Software

{", ".join(f"{name} {version}" for name, version in software.items())}
"""


def correlation_line(correlations: Mapping[str, float | None]) -> str:
    """How far scores go with length and with lists, in a sentence."""
    length, lists = (
        "not known" if value is None else f"{value:+.2f}"
        for value in (correlations["characters"], correlations["list_lines"])
    )
    return (
        f"Rank correlation (Spearman) of a response's score with its characters: {length}; with "
        f"its lines that are items of lists: {lists}."
    )
