"""What to keep of scored rows, and the selection that their scores lead to, settled in fp32."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from jobs.find_copies import mark
from jobs.find_near import cluster_near
from jobs.ordering import ordered
from jobs.passes import Judged, judge
from jobs.rescore import Rescorer, score_repeated, settle
from jobs.written_as import Output, WriteOptions
from scar_core import storage
from scar_core.errors import IncompleteError, InputError
from scar_core.pool.shapes import layout_of
from scar_core.selection.bands import BandRule, band_rule
from scar_core.selection.keep import parse_keep
from scar_core.selection.policies import OrderRule, order_rule
from scar_core.selection.quotas import GroupRule, group_rule

if TYPE_CHECKING:
    from jobs.actors import ActorConfig
    from jobs.scored_pool import Scores
    from jobs.select_stages import ScoredUnit
    from scar_core.pool.rows import PairColumns


@dataclass(frozen=True, kw_only=True)
class SelectOptions(WriteOptions):
    """What to keep, and how it is written."""

    keep: str
    """What to keep: a share (10%), a number of rows (2500) or a threshold ('score>=1.5')."""
    per: str | None = None
    """Column of the pool whose values are groups; each keeps its part of --keep, by its own
    threshold: in proportion to its eligible rows, by largest remainder. At most 100,000 groups."""
    min_per_group: str | None = None
    """With --per, the least that a group keeps: rows (100), or a share of the rows to keep (1%,
    rounded up). A group with fewer eligible rows keeps them all."""
    max_per_group: str | None = None
    """With --per, the most that a group keeps: rows, or a share of the rows to keep (rounded
    down)."""
    max_per_cluster: int | None = None
    """Of rows with the same instruction and response at most so many can be kept, the best ones;
    --dedup exact is 1."""
    length_bands: str | None = None
    """Lengths in tokens at which a band begins (128,512,2048), or bands of about equally many rows
    (q10). A length is what the ranker counts for both texts, with what it cuts off."""
    max_per_length_band: str | None = None
    """With --length-bands, the most that a band keeps: rows, or a share of the rows to keep."""
    combine: str | None = None
    """Order by a weighted sum of z-scores: 'score:1 + quality:0.5', where quality is a column of
    numbers. A row without one of them cannot be kept and is counted as quarantined."""
    pareto: list[str] = field(default_factory=list)
    """Order by Pareto fronts of two of: score, columns of numbers. At most 2,097,152 different
    pairs."""
    sample_temperature: float | None = None
    """Draw rows without replacement, in proportion to exp(score / temperature); above 0. The
    lower, the nearer to the plain order."""
    seed: int = 0
    """Of --sample-temperature: the same seed draws the same rows; at least 0."""
    dedup: Literal["none", "exact", "near"] = "none"
    """exact: of rows with the same instruction and response only the best-scored one can be kept,
    and shares count distinct rows. near: the same for rows that are nearly the same, as MinHash of
    runs of five words finds them."""
    near_jaccard: float = 0.8
    """With --dedup near, the share of their five-word runs that two rows have in common, of all
    that either has, around which they come to be taken for the same: of rows at 0.8 40 % are, at
    0.9 93 %; lower finds more. Above 0, below 1."""
    source_column: str = "source"
    """Column by which the report breaks the selection down, where the pool has it."""
    score_column: str = "scar_score"
    """Name of the column that is added to the selected rows."""
    file_megabytes: int = 256
    """Uncompressed size of an output file, about, at least 1."""

    def __post_init__(self) -> None:
        """Refuse what selects nothing."""
        self.group_rule()
        self.band_rule()
        self.order_rule()
        if self.max_per_cluster is not None and self.max_per_cluster < 1:
            raise ValueError(f"max_per_cluster must be at least 1, got {self.max_per_cluster}")
        if self.dedup != "none" and self.max_per_cluster not in (None, 1):
            raise ValueError(
                f"--dedup {self.dedup} keeps one row of a content; drop --max-per-cluster"
            )
        if not 0 < self.near_jaccard < 1:
            raise ValueError(f"near_jaccard must be above 0 and below 1, got {self.near_jaccard}")
        if self.file_megabytes < 1:
            raise ValueError(f"file_megabytes must be at least 1, got {self.file_megabytes}")

    @property
    def most_copies(self) -> int | None:
        """Rows of one content that can be kept; None: all."""
        return 1 if self.dedup != "none" else self.max_per_cluster

    def band_rule(self) -> BandRule | None:
        """The cap of length bands; None where there is none."""
        return band_rule(
            parse_keep(self.keep), bands=self.length_bands, most=self.max_per_length_band
        )

    def order_rule(self) -> OrderRule:
        """What rows are ordered by."""
        return order_rule(
            parse_keep(self.keep),
            combine=self.combine,
            pareto=self.pareto,
            temperature=self.sample_temperature,
            seed=self.seed,
            drawn="content" if self.most_copies == 1 else "row",
        )

    def group_rule(self) -> GroupRule | None:
        """How groups share the selection; None where nothing is asked per group."""
        return group_rule(
            parse_keep(self.keep),
            per=self.per,
            least=self.min_per_group,
            most=self.max_per_group,
        )


def output_of(columns: PairColumns, options: SelectOptions) -> Output:
    """What selected rows of a pool are written as."""
    return Output(layout=layout_of(columns), options=options, score_column=options.score_column)


def rescorer_of(scores: Scores, actors: ActorConfig, *, ranker: str | None = None) -> Rescorer:
    """What scores rows again in fp32, should the scores be bf16 ones.

    The ranker is the one that the scores' manifest names, unless another place is given.

    Raises:
        InputError: it is not the ranker that scored.
    """
    key = scores.manifest["key"]
    named = scores.manifest["config"]["ranker"]
    place = ranker
    if place is None:
        there = storage.locate(named, base=scores.folder)
        place = there if storage.is_folder(there) else named
    if key["precision"] != "fp32":
        from scar_core.ranker.checkpoint import ranker_fingerprint  # noqa: PLC0415 - torch

        if ranker_fingerprint(place) != key["ranker"]:
            raise InputError(
                f"{place}: is not the ranker of these bf16 scores; rows near the threshold cannot "
                "be scored again. Pass it with --ranker."
            )
    return Rescorer(
        scores=storage.locate(scores.manifest["files_below"], base=scores.folder),
        key_id=scores.manifest["key_id"],
        ranker=place,
        columns=scores.columns,
        max_tokens=key["max_tokens"],
        actors=actors,
    )


def settled(
    scores: Scores, options: SelectOptions, rescorer: Rescorer, *, exchange: str
) -> tuple[list[ScoredUnit], Judged, dict[str, Any]]:
    """The units, the selection that their scores lead to, and how precise those are.

    Args:
        scores: what to select from.
        options: what to keep.
        rescorer: for bf16 scores.
        exchange: a folder for what tasks pass on, which the caller removes.

    Raises:
        IncompleteError: the sidecars hold other rows than the manifest says.
    """
    keep, rule = parse_keep(options.keep), options.group_rule()
    rough = scores.manifest["key"]["precision"] != "fp32"
    units, worth = ordered(scores.units, options.order_rule(), rough=rough)
    already = 0
    if options.dedup == "near":
        units = cluster_near(
            units,
            columns=scores.columns,
            jaccard=options.near_jaccard,
            scores=storage.locate(scores.manifest["files_below"], base=scores.folder),
            folder=exchange,
        )
    if options.most_copies is not None:
        if rough:
            units, already = score_repeated(rescorer, units, exchange)
        units = mark(units, folder=exchange, which="copies", most=options.most_copies)
    by = partial(judge, keep=keep, rule=rule, bands=options.band_rule(), worth=worth)
    if rough:
        units, judged, precision = settle(rescorer, units, by, already=already)
    else:
        judged, precision = by(units), {"scores": "fp32"}
    units = [replace(scored, cap=judged.cap) for scored in units]
    if judged.counts.rows != scores.manifest["counts"]["rows_in"]:
        raise IncompleteError(
            f"{scores.folder}: sidecars hold {judged.counts.rows:,} rows, the manifest says "
            f"{scores.manifest['counts']['rows_in']:,}. Score again."
        )
    return units, judged, precision
