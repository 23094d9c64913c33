"""What a training needs, checked on the driver before any worker starts."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,  # noqa: F401 - jsonargparse looks for the types of inherited fields here
)

import numpy as np

from scar_core import storage
from scar_core.errors import InputError
from scar_core.manifest import check_unpublished
from scar_core.ranker.checkpoint import new_ranker
from scar_core.ranker.encoding import TextTokenizer
from scar_core.ranker.packing import longest_text
from scar_core.store_checks import check_readable, check_writable
from scar_core.training.batches import gate_quadruples
from scar_core.training.deal import DealConfig, deal
from scar_core.training.losses import Gate, LossConfig  # noqa: F401 - Gate: as above
from scar_core.training.quadruple_files import QuadrupleInput, read_quadruples
from scar_core.training.quadruples import CheckedQuadruples, Quadruple, QuadrupleColumns
from scar_core.training.split import sample
from scar_core.training.trainer import TrainingConfig

if TYPE_CHECKING:
    from scar_core.ranker.model import Ranker
    from scar_core.training.batches import GatedQuadruples, TokenizedQuadruples
    from scar_core.training.deal import Sides

logger = logging.getLogger("scar_curate")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(QuadrupleColumns, DealConfig, LossConfig, TrainingConfig):
    """Train a ranker on quadruples."""

    quads: list[str]
    """Quadruples: .jsonl, .json (both also .gz) or .parquet files, folders, globs, or the name of
    a data set of the `datasets` library; one or several."""
    encoder: str
    """Encoder to start from: folder or hub name of a transformers model."""
    out: str
    """Directory for the ranker, a path or URL; it must not hold a published one."""
    push_to_hub: str | None = None
    """Model repository on the Hugging Face Hub, OWNER/NAME, to commit the ranker to when it is
    published; made, private, if it is not there. The token is taken from HF_TOKEN."""
    linear_dim: int = 512
    """Width of the hidden layer of both heads, at least 1."""
    max_tokens: int = 512
    """Tokens of a text that the encoder sees, special tokens included, at least 3."""
    limit_quads: int | None = None
    """Train and measure on a seeded sample of so many quadruples, at least 1; for quick runs."""
    workers: int = 1
    """Training processes, at least 1; each takes its share of every batch."""
    gpus_per_worker: int = 0
    """GPUs of one worker, 0 or 1; 0 trains on CPUs."""
    cpus_per_worker: int | None = None
    """CPUs, and threads, of one worker, at least 1; by default workers share this machine's cores
    where the command starts its own Ray, and have 1 each on a cluster."""

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        for part in (QuadrupleColumns, DealConfig, LossConfig, TrainingConfig):
            part.__post_init__(self)
        if not self.quads:
            raise ValueError("quads must name at least one file or data set")
        for name, least in (("linear_dim", 1), ("max_tokens", 3), ("workers", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name in ("limit_quads", "cpus_per_worker"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.gpus_per_worker not in (0, 1):
            raise ValueError(f"gpus_per_worker must be 0 or 1, got {self.gpus_per_worker}")


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """All that workers are given, and what a manifest says of it."""

    ranker: Ranker
    """The encoder under fresh heads."""
    tokenizer: Any
    data: TokenizedQuadruples
    sides: Sides
    inputs: list[QuadrupleInput]
    counts: dict[str, Any]
    """rows_in = quarantined + gated_out + not_sampled + over_source_cap + train + validation +
    test; cut_copies are trained on beside `train`."""


def prepare(config: TrainConfig) -> Prepared:
    """Read, check, gate, sample, split and tokenize the quadruples; load the encoder.

    Raises:
        InputError: data, encoder or flags need fixing; nothing was started or written.
    """
    check_readable([*config.quads, config.encoder])
    check_writable(storage.absolute(config.out))
    check_unpublished(storage.absolute(config.out))
    _check_gpus(config)
    checked, inputs = read_quadruples(config.quads, config)
    gated = gate_quadruples(checked.quadruples, config)
    passed = [checked.quadruples[row] for row in np.flatnonzero(gated.kept_QK.any(axis=1))]
    logger.info("%s", _describe(checked, gated, passed, gate=config.gate))
    if not passed:
        raise InputError(_nothing_passed(config, checked, gated))
    limit = len(passed) if config.limit_quads is None else config.limit_quads
    kept = sample(passed, limit=limit, seed=config.seed)
    ranker, tokenizer = new_ranker(config.encoder, linear_dim=config.linear_dim, seed=config.seed)
    _check_max_tokens(config, ranker)
    data, sides, split, over_cap = deal(
        kept, config, TextTokenizer(tokenizer, max_tokens=config.max_tokens)
    )
    if not split.train:
        raise InputError(
            f"{', '.join(config.quads)}: all {len(kept):,} quadruples fell to validation and test. "
            "Bring more, or lower --validation-share and --test-share."
        )
    return Prepared(
        ranker=ranker,
        tokenizer=tokenizer,
        data=data,
        sides=sides,
        inputs=inputs,
        counts={
            "rows_in": checked.rows_in,
            "quarantined": checked.dropped,
            "gated_out": len(checked.quadruples) - len(passed),
            "not_sampled": len(passed) - len(kept),
            "over_source_cap": over_cap,
            **{side: len(rows) for side, rows in split._asdict().items()},
            "cut_copies": len(sides.train) - len(split.train),
            "responses_set_aside": checked.set_aside,
            "pairs": gated.counts,
            "kept_by_gate": gated.kept_by_gate,
            "cut_tokens": int(data.texts.cut_N.sum()),
        },
    )


def _check_gpus(config: TrainConfig) -> None:
    """A Ray of this machine alone would wait for ever for a GPU that is not there."""
    if config.gpus_per_worker == 0 or "RAY_ADDRESS" in os.environ:
        return
    import torch  # noqa: PLC0415 - only to count GPUs

    found = torch.cuda.device_count()
    if found < config.workers:
        raise InputError(
            f"--gpus-per-worker 1 for --workers {config.workers}: this machine has {found} GPUs. "
            "Lower --workers, pass --gpus-per-worker 0, or submit the job to a cluster."
        )


def _check_max_tokens(config: TrainConfig, ranker: Ranker) -> None:
    most = longest_text(ranker.encoder)
    if config.max_tokens > most:
        raise InputError(
            f"--max-tokens {config.max_tokens}: the encoder {config.encoder} has positions for "
            f"{most} tokens. Lower it."
        )


def _describe(
    checked: CheckedQuadruples, gated: GatedQuadruples, passed: list[Quadruple], *, gate: str
) -> str:
    """Rows and pairs, and what became of those that are not used, by reason."""
    left_out = {**checked.dropped, "no pair passed": len(checked.quadruples) - len(passed)}
    text = f"{checked.rows_in:,} rows, {len(passed):,} to use{_reasons('left out', left_out)}"
    text += _reasons("single responses set aside", checked.set_aside)
    pairs = gated.totals()
    total, kept = pairs.pop("pairs"), pairs.pop("kept")
    text += f". Quality gate {gate}: {kept:,} of {total:,} pairs kept{_reasons('left out', pairs)}"
    hint = ". Pairs without judge scores are used with --keep-unjudged"
    return text + (hint if pairs["unjudged"] else "")


def _reasons(heading: str, counts: dict[str, int]) -> str:
    """'; heading: 3 reason, 1 other', or nothing where nothing was counted."""
    named = [f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items() if count]
    return f"; {heading}: {', '.join(named)}" if named else ""


def _nothing_passed(config: TrainConfig, checked: CheckedQuadruples, gated: GatedQuadruples) -> str:
    """Why there is nothing to train on, and the flag that helps."""
    where = ", ".join(config.quads)
    if not checked.quadruples:
        found = _reasons("left out", checked.dropped)
        return (
            f"{where}: {checked.rows_in:,} rows, none with an instruction and two responses{found}."
        )
    pairs = gated.totals()
    found = f"{where}: none of {pairs['pairs']:,} pairs passes the quality gate"
    if not pairs["unjudged"]:
        return (
            f"{found}{_reasons('left out', pairs | {'pairs': 0})}. "
            "Check the judge scores, or move --quality-above and --quality-below."
        )
    names = " and ".join(
        name.replace("{role}", "human")
        for name in (config.helpfulness_column, config.correctness_column)
    )
    return (
        f"{found}: {pairs['unjudged']:,} have no judge scores (columns such as {names}). "
        "Pass --keep-unjudged to train on them unjudged, or add the scores."
    )
