"""Consistency: how far each metric spreads over a set of responses, with bootstrap intervals.

The less it spreads, the more consistent is the style. Three spreads, because outliers carry the
first one away: the standard deviation (n - 1), the interquartile range, and the median absolute
deviation from the median (unscaled). The bootstrap draws whole rows, so that metrics stay together;
intervals are its percentiles (Efron & Tibshirani 1993, ch. 13). The same seed gives the same ones.

Shape suffixes: N rows with a value, R rows of the set, B resamples.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    Values = NDArray[np.float64]

Spread = Literal["sd", "iqr", "mad"]
SPREADS: tuple[Spread, ...] = ("sd", "iqr", "mad")
_LEAST_ROWS = 2
_CHUNK_VALUES = 4_000_000
"""Values resampled at once: 32 MB."""


class Estimate(NamedTuple):
    """A figure and its interval; NaN where it is undefined."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class BootstrapConfig:
    """How intervals are made."""

    resamples: int = 1000
    """How often the set is drawn again from itself, at least 100."""
    confidence: float = 0.95
    """Share of such intervals that cover the true value, in (0, 1)."""
    seed: int = 0
    """The same seed gives the same intervals."""

    def __post_init__(self) -> None:
        """Refuse what makes no interval."""
        if self.resamples < 100:  # noqa: PLR2004  - percentiles of fewer mean nothing
            raise ValueError(f"resamples must be at least 100, got {self.resamples}")
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence must be in (0, 1), got {self.confidence}")


@dataclass(frozen=True, kw_only=True)
class MetricSpread:
    """How far one metric spreads over a set."""

    name: str
    rows: int
    """Rows with a value."""
    undefined_rows: int
    """Null, NaN and infinite ones; they count nowhere."""
    mean: float
    median: float
    spreads: dict[Spread, Estimate]
    """NaN with fewer than two values."""
    resampled: dict[Spread, Values] = field(repr=False)
    """[B] the same of each resample, for comparisons."""


class SpreadRatio(NamedTuple):
    """How far a set spreads, compared with another; below 1 it is the more consistent one."""

    by_metric: dict[str, Estimate]
    """NaN where the other set does not spread."""
    overall: Estimate
    """Geometric mean over the metrics that have a ratio above 0."""
    metrics: int
    """How many those are."""


def consistency(
    table: pa.Table, *, metrics: Sequence[str] | None = None, config: BootstrapConfig | None = None
) -> dict[str, MetricSpread]:
    """How far these columns (by default all) of a set spread, in their order."""
    config = config or BootstrapConfig()
    names = table.column_names if metrics is None else metrics
    columns = {name: _values(table[name]) for name in names}
    spread: dict[str, MetricSpread] = {}
    for name, values_R in columns.items():
        there_N = values_R[np.isfinite(values_R)]
        resampled = _resampled(values_R, config)
        enough = len(there_N) >= _LEAST_ROWS
        spread[name] = MetricSpread(
            name=name,
            rows=len(there_N),
            undefined_rows=len(values_R) - len(there_N),
            mean=float(there_N.mean()) if len(there_N) else np.nan,
            median=float(np.median(there_N)) if len(there_N) else np.nan,
            spreads={
                kind: _estimate(
                    float(_SPREAD[kind](there_N[None])[0]) if enough else np.nan,
                    resampled[kind],
                    config,
                )
                for kind in SPREADS
            },
            resampled=resampled,
        )
    return spread


def spread_ratio(
    of: dict[str, MetricSpread],
    to: dict[str, MetricSpread],
    *,
    kind: Spread = "sd",
    config: BootstrapConfig | None = None,
) -> SpreadRatio:
    """How far one set spreads over how far another does, metric by metric and overall.

    Both must have been measured apart and with equally many resamples, best with different seeds.
    """
    config = config or BootstrapConfig()
    by_metric: dict[str, Estimate] = {}
    logs: list[Values] = []
    value_logs: list[float] = []
    for name in [name for name in of if name in to]:
        value = _over(np.array([of[name].spreads[kind].value]), to[name].spreads[kind].value)[0]
        ratio_B = _over(of[name].resampled[kind], to[name].resampled[kind])
        by_metric[name] = _estimate(float(value), ratio_B, config)
        if value > 0:
            value_logs.append(float(np.log(value)))
            logs.append(np.log(np.where(ratio_B > 0, ratio_B, np.nan)))
    if not logs:
        return SpreadRatio(by_metric, Estimate(np.nan, np.nan, np.nan), 0)
    together_B = np.exp(np.mean(logs, axis=0))
    overall = _estimate(float(np.exp(np.mean(value_logs))), together_B, config)
    return SpreadRatio(by_metric, overall, len(logs))


def _values(column: pa.ChunkedArray) -> Values:
    """[R] in float64; NaN where null."""
    values_R: Values = column.cast(pa.float64()).to_numpy()
    return values_R


def _sd(values: Values) -> Values:
    spread: Values = np.std(values, axis=1, ddof=1)
    return spread


def _iqr(values: Values) -> Values:
    low, high = np.quantile(values, [0.25, 0.75], axis=1)
    spread: Values = high - low
    return spread


def _mad(values: Values) -> Values:
    middle = np.median(values, axis=1, keepdims=True)
    spread: Values = np.median(np.abs(values - middle), axis=1)
    return spread


_SPREAD: dict[Spread, Callable[[Values], Values]] = {"sd": _sd, "iqr": _iqr, "mad": _mad}


def _resampled(values_R: Values, config: BootstrapConfig) -> dict[Spread, Values]:
    """[B] each spread of resamples of whole rows: every metric of a set gets the same rows."""
    found = {kind: np.full(config.resamples, np.nan) for kind in SPREADS}
    there_R = np.isfinite(values_R)
    if there_R.sum() < _LEAST_ROWS:
        return found
    rng = np.random.default_rng(config.seed)
    step = max(1, _CHUNK_VALUES // len(values_R))
    for first in range(0, config.resamples, step):
        last = min(first + step, config.resamples)
        rows = rng.integers(len(values_R), size=(last - first, len(values_R)))
        drawn = values_R[rows]
        if there_R.all():
            for kind in SPREADS:
                found[kind][first:last] = _SPREAD[kind](drawn)
            continue
        for place, (values, there) in enumerate(zip(drawn, there_R[rows], strict=True), first):
            if there.sum() >= _LEAST_ROWS:
                for kind in SPREADS:
                    found[kind][place] = _SPREAD[kind](values[there][None])[0]
    return found


def _over(of_B: Values, to_B: Values | float) -> Values:
    """Ratios; NaN where there is nothing to divide by."""
    ratio_B: Values = of_B / np.where(np.asarray(to_B) > 0, to_B, np.nan)
    return ratio_B


def _estimate(value: float, resampled_B: Values, config: BootstrapConfig) -> Estimate:
    """Percentiles of the resamples that have a value."""
    there_B = resampled_B[np.isfinite(resampled_B)]
    if np.isnan(value) or not len(there_B):
        return Estimate(value, np.nan, np.nan)
    tail = (1 - config.confidence) / 2
    low, high = np.quantile(there_B, [tail, 1 - tail])
    return Estimate(value, float(low), float(high))
