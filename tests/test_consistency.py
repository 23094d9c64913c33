"""How far metrics spread over a set, against SciPy; and rows drawn by length."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from scar_core.style.consistency import SPREADS, BootstrapConfig, consistency, spread_ratio
from scar_core.style.matching import length_matched_sample

RNG = np.random.default_rng(7)
VALUES = RNG.lognormal(size=400)
FEW = BootstrapConfig(resamples=400)


def test_spreads_are_those_of_scipy() -> None:
    """Standard deviation, interquartile range, median absolute deviation; nulls left out."""
    table = pa.table({"a": VALUES, "b": pa.array([None, *VALUES[1:]], pa.float64())})
    found = consistency(table, config=FEW)
    for name, values in (("a", VALUES), ("b", VALUES[1:])):
        assert [found[name].spreads[kind].value for kind in SPREADS] == pytest.approx(
            [stats.tstd(values), stats.iqr(values), stats.median_abs_deviation(values)]
        )
        assert found[name].mean == pytest.approx(values.mean())
    assert (found["b"].rows, found["b"].undefined_rows) == (399, 1)


def test_intervals_are_those_of_scipy() -> None:
    """Percentile intervals of SciPy's bootstrap, which draws other resamples."""
    mine = consistency(pa.table({"a": VALUES}), config=BootstrapConfig(resamples=4000))["a"]
    functions = {"sd": stats.tstd, "iqr": stats.iqr, "mad": stats.median_abs_deviation}
    for kind in SPREADS:
        theirs = stats.bootstrap(
            (VALUES,), functions[kind], n_resamples=4000, method="percentile", rng=1
        ).confidence_interval
        width = theirs.high - theirs.low
        assert mine.spreads[kind].low == pytest.approx(theirs.low, abs=0.1 * width)
        assert mine.spreads[kind].high == pytest.approx(theirs.high, abs=0.1 * width)


def test_the_same_seed_gives_the_same_intervals() -> None:
    """And another one others."""
    table = pa.table({"a": VALUES})
    first, again = (consistency(table, config=FEW)["a"].spreads for _ in range(2))
    other = consistency(table, config=BootstrapConfig(resamples=400, seed=1))["a"].spreads
    assert first == again
    assert first["sd"].low != other["sd"].low


def test_what_has_no_spread_is_nan() -> None:
    """No rows, one row, nulls alone; equal values spread by nothing."""
    values = pa.array([None, None, 3.0], pa.float64())
    lonely = consistency(pa.table({"a": values}), config=FEW)["a"]
    assert np.isnan(lonely.spreads["sd"]).all()
    assert (lonely.mean, lonely.rows, lonely.undefined_rows) == (3, 1, 2)
    empty = consistency(pa.table({"a": values[:0]}), config=FEW)["a"]
    assert np.isnan(empty.spreads["iqr"].value)
    equal = consistency(pa.table({"a": [2.0] * 5}), config=FEW)["a"]
    assert equal.spreads["sd"] == (0, 0, 0)


def test_a_ratio_of_spreads_tells_the_more_consistent_set() -> None:
    """Half the spread is half, outliers or not; the overall figure is the geometric mean."""
    wide = pa.table({"a": RNG.normal(size=600), "b": RNG.normal(size=600), "c": [1.0] * 600})
    narrow = pa.table({"a": RNG.normal(size=500) / 2, "b": RNG.normal(size=500), "c": [1.0] * 500})
    of = consistency(narrow, config=BootstrapConfig(resamples=400, seed=1))
    to = consistency(wide, config=FEW)
    found = spread_ratio(of, to)
    ratios = [np.std(narrow[n].to_numpy(), ddof=1) / np.std(wide[n], ddof=1) for n in "ab"]
    assert [found.by_metric[name].value for name in "ab"] == pytest.approx(ratios)
    assert np.isnan(found.by_metric["c"].value)
    assert found.overall.value == pytest.approx(stats.gmean(ratios))
    assert (found.metrics, found.by_metric["a"].high < 1) == (2, True)
    assert found.by_metric["b"].low < 1 < found.by_metric["b"].high


def test_a_matched_sample_has_the_wanted_lengths() -> None:
    """Short rows are many in the pool, long ones are wanted."""
    pool = RNG.integers(1, 500, size=20_000)
    wanted = RNG.integers(300, 500, size=700)
    sample = length_matched_sample(wanted, pool, seed=3)
    assert (len(sample.rows), sample.short_rows) == (700, 0)
    assert len(set(sample.rows.tolist())) == 700
    drawn = pool[sample.rows]
    assert stats.ks_2samp(drawn, wanted).statistic < 0.03
    assert drawn.min() >= wanted.min()
    assert drawn.max() <= wanted.max()
    assert sample.rows.tolist() == length_matched_sample(wanted, pool, seed=3).rows.tolist()
    assert sample.rows.tolist() != length_matched_sample(wanted, pool, seed=4).rows.tolist()


def test_a_pool_that_lacks_a_length_is_told_of() -> None:
    """Three of five wanted rows have a counterpart; what is short is counted."""
    sample = length_matched_sample([10, 10, 20, 20, 30], [20, 10, 20, 20, 99, 1, 15], bins=5)
    assert sample.short_rows == 2
    assert sorted(np.array([20, 10, 20, 20, 99, 1, 15])[sample.rows].tolist()) == [10, 20, 20]
    assert [len(length_matched_sample([], [1, 2]).rows), len(sample.rows)] == [0, 3]
    assert length_matched_sample([1, 2], []).short_rows == 2
    with pytest.raises(ValueError, match="not a number"):
        length_matched_sample([float("nan")], [1])


def test_a_bootstrap_that_says_nothing_is_refused() -> None:
    """Ten resamples make no interval."""
    with pytest.raises(ValueError, match="at least 100"):
        BootstrapConfig(resamples=10)
    with pytest.raises(ValueError, match="confidence"):
        BootstrapConfig(confidence=1)
