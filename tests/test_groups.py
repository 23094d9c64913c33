"""Groups, quotas and copies: exactly the rows of a plain sort, for any layout, workers and ties."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scar_core.errors import IncompleteError, InputError
from scar_core.selection import copies, groups
from scar_core.selection.extremes import extremes, merge_extremes
from scar_core.selection.groups import GroupCuts, GroupSearch, fetch, merge_fetched, merge_tallies
from scar_core.selection.keep import KeepAbove, KeepCount, KeepShare, decide, parse_keep
from scar_core.selection.labels import as_labels, count_groups, merge_groups
from scar_core.selection.order import SidecarColumns
from scar_core.selection.quotas import GroupRule, apportion, group_rule, parse_bound, quotas
from scar_core.selection.radix import histograms, merge_surveys, survey
from tests.test_selection import INF, NAN, Row, make_units, sidecar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scar_core.selection.radix import Cut
    from tests.test_selection import Unit

Place = tuple[int, int]
"""(ordinal, offset)."""


@dataclass(frozen=True)
class Pool:
    """Units, and the group of each row."""

    units: list[Unit]
    groups: list[list[int]]

    @property
    def ranked(self) -> list[tuple[Row, Place, int]]:
        """(row, place, group) of all rows with a score in selection order, by `sorted`."""
        rows = [
            (row, (ordinal, offset), self.groups[ordinal][offset])
            for ordinal, unit in enumerate(self.units)
            for offset, row in enumerate(unit)
            if row.score is not None and not math.isnan(row.score)
        ]
        return sorted(rows, key=lambda r: (-(r[0].score or 0.0), r[0].content_hash, r[1]))

    @property
    def distinct(self) -> list[tuple[Row, Place, int]]:
        """The first of each content."""
        seen: dict[bytes, tuple[Row, Place, int]] = {}
        for entry in self.ranked:
            seen.setdefault(entry[0].content_hash, entry)
        return list(seen.values())


@st.composite
def pools(draw: st.DrawFn) -> Pool:
    """Few scores, few contents, few groups: ties of every kind."""
    number = st.one_of(
        st.none(),
        st.sampled_from([0.0, -0.0, 1.0, 1.0000001, -1.0, INF, -INF, NAN, 1e-45]),
        st.floats(width=32),
    )
    units = make_units(
        draw(st.lists(number, max_size=60)),
        unit_rows=draw(st.integers(1, 20)),
        hashes=draw(st.sampled_from([1, 3, 12, 1 << 60])),
        seed=draw(st.integers(0, 1000)),
    )
    group = st.integers(0, draw(st.integers(0, 6)))
    return Pool(units, [draw(st.lists(group, min_size=len(u), max_size=len(u))) for u in units])


def columns_of(pool: Pool, marks: Sequence[np.ndarray] | None = None) -> list[SidecarColumns]:
    return [
        SidecarColumns(
            sidecar(unit).column,
            ordinal=ordinal,
            where="test",
            groups_N=np.array(pool.groups[ordinal], np.int32),
            copies_N=None if marks is None else marks[ordinal],
        )
        for ordinal, unit in enumerate(pool.units)
    ]


def dealt(items: list[Any], shares: int, *, seed: int) -> list[list[Any]]:
    """In shares, in any order, as tasks of a cluster get them."""
    order = np.random.default_rng(seed).permutation(len(items))
    return [[items[at] for at in order[start::shares]] for start in range(shares)]


def find_marks(pool: Pool, which: copies.Which, *, chunks: int, ranges: int) -> list[np.ndarray]:
    """Marks of each unit, as tasks find them: chunks of units, ranges of hashes."""
    columns = columns_of(pool)
    edges = np.linspace(0, len(columns), chunks + 1).astype(int).tolist()
    held = [columns[low:high] for low, high in pairwise(edges)]
    found = [copies.contents_of(chunk, which=which) for chunk in held]
    split = [copies.split(contents, ranges=ranges) for contents, _ in found]
    compared = [copies.compare([s[r] for s in split], which=which) for r in range(ranges)]
    marks = []
    for number, chunk in enumerate(held):
        sizes = [len(c) for c in chunk]
        marked_N = np.zeros(sum(sizes), np.bool_)
        for positions in (found[number][1], *(part[number] for part in compared)):
            assert not marked_N[positions].any() or which == "repeated"
            marked_N[positions] = True
        marks += np.split(marked_N, np.cumsum(sizes)[:-1]) if sizes else []
    return marks


def search(
    columns: list[SidecarColumns], eligible: list[int], wanted: list[int], *, shares: int, seed: int
) -> tuple[GroupCuts, int]:
    """The cuts, and the passes that they took."""
    tasks = dealt(columns, shares, seed=seed)
    found = GroupSearch(eligible=eligible, wanted=wanted)
    passes = 0
    while probe := found.probe():
        passes += 1
        if probe.width:
            found.take(probe, merge_tallies(groups.tally(task, probe) for task in tasks))
        else:
            found.take(probe, merge_fetched(fetch(task, probe) for task in tasks))
    return found.cuts, passes


def selected(columns: list[SidecarColumns], cut: Cut | GroupCuts) -> set[Place]:
    return {(c.ordinal, int(o)) for c in columns for o in np.flatnonzero(cut.mask(c))}


def plain_quotas(total: int, eligible: list[int]) -> list[int]:
    """Largest remainder with fractions."""
    exact = [Fraction(total * n, max(sum(eligible), 1)) for n in eligible]
    result = [math.floor(part) for part in exact]
    order = sorted(range(len(exact)), key=lambda i: (result[i] - exact[i], i))
    for at in order[: total - sum(result)]:
        result[at] += 1
    return result


@settings(max_examples=150, deadline=None)
@given(
    pool=pools(),
    percent=st.decimals("0.1", "100", places=1),
    dedup=st.booleans(),
    fetched=st.sampled_from([0, 5, 1 << 18]),
    bins=st.sampled_from([1, 40, 1 << 21]),
    shares=st.integers(1, 4),
    ranges=st.sampled_from([1, 2, 8]),
    seed=st.integers(0, 99),
)
def test_each_group_keeps_the_rows_that_a_plain_sort_puts_first(
    *,
    pool: Pool,
    percent: Any,  # noqa: ANN401 - a Decimal
    dedup: bool,
    fetched: int,
    bins: int,
    shares: int,
    ranges: int,
    seed: int,
) -> None:
    """Any pool, units, workers, ties, group sizes, with copies or without; quotas to the row."""
    marks = find_marks(pool, "copies", chunks=shares, ranges=ranges) if dedup else None
    columns = columns_of(pool, marks)
    ranked = pool.distinct if dedup else pool.ranked
    size = 1 + max((g for unit in pool.groups for g in unit), default=0)
    eligible = [sum(group == g for _, _, group in ranked) for g in range(size)]
    keep, rule = parse_keep(f"{percent}%"), GroupRule(column="source")
    names = [f"g{g}" for g in range(size)]
    wanted = quotas(keep, rule, names=names, eligible=eligible)
    assert wanted == plain_quotas(math.floor(Fraction(percent) * len(ranked) / 100), eligible)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(groups, "FETCHED_ROWS", fetched)
        patch.setattr(groups, "BINS", bins)
        cuts, _ = search(columns, eligible, wanted, shares=shares, seed=seed)
    expected: set[Place] = set()
    for group, quota in enumerate(wanted):
        best = [entry for entry in ranked if entry[2] == group][:quota]
        expected |= {place for _, place, _ in best}
        assert cuts.thresholds[group] == (best[-1][0].score if best else None)
    assert selected(columns, cuts) == expected
    assert cuts.selected == len(expected)
    parts = [extremes(task, cuts, n=2) for task in dealt(columns, shares, seed=seed)]
    found = merge_extremes(parts, n=2)
    inside = [place for _, place, _ in ranked if place in expected]
    outside = [place for _, place, _ in ranked if place not in expected]
    assert [row[2:4] for row in found.above] == inside[-2:]
    assert [row[2:4] for row in found.below] == outside[:2]


@settings(max_examples=150, deadline=None)
@given(
    pool=pools(),
    percent=st.decimals("0.1", "100", places=1),
    chunks=st.integers(1, 5),
    ranges=st.sampled_from([1, 2, 4, 16]),
)
def test_without_copies_the_first_of_each_content_takes_part(
    *,
    pool: Pool,
    percent: Any,  # noqa: ANN401 - a Decimal
    chunks: int,
    ranges: int,
) -> None:
    """The best-scored, ties by place; shares count distinct rows; counts close."""
    marks = find_marks(pool, "copies", chunks=chunks, ranges=ranges)
    columns = columns_of(pool, marks)
    first = merge_surveys([survey(columns)])
    assert first.counts.eligible == len(pool.distinct)
    assert first.counts.scored == len(pool.ranked)
    total = first.counts.scored + sum(first.counts.quarantined.values())
    assert total == first.counts.rows == sum(map(len, pool.units))
    cut = decide(first, lambda prefixes: histograms(columns, prefixes), parse_keep(f"{percent}%"))[
        0
    ]
    k = math.floor(Fraction(percent) * len(pool.distinct) / 100)
    assert selected(columns, cut) == {place for _, place, _ in pool.distinct[:k]}


@settings(max_examples=100, deadline=None)
@given(pool=pools(), chunks=st.integers(1, 5), ranges=st.sampled_from([1, 2, 4]))
def test_repeated_are_all_rows_whose_content_comes_again(
    pool: Pool, chunks: int, ranges: int
) -> None:
    """The first ones too: only together is it decided which is the best."""
    marks = find_marks(pool, "repeated", chunks=chunks, ranges=ranges)
    times = Counter(row.content_hash for row, _, _ in pool.ranked)
    expected = {place for row, place, _ in pool.ranked if times[row.content_hash] > 1}
    assert {
        (ordinal, int(offset))
        for ordinal, mark in enumerate(marks)
        for offset in np.flatnonzero(mark)
    } == expected


def test_duckdb_keeps_the_same_rows_per_group_and_content() -> None:
    """Window functions over 3,000 rows of 7 groups with many copies."""
    draw = np.random.default_rng(5)
    units = make_units(draw.normal(size=3000).round(1).tolist(), unit_rows=97, hashes=900, seed=3)
    pool = Pool(units, [draw.integers(0, 7, len(unit)).tolist() for unit in units])
    columns = columns_of(pool, find_marks(pool, "copies", chunks=4, ranges=8))
    table = pa.table(
        {
            "score": [row.score for unit in units for row in unit],
            "hash": [row.content_hash for unit in units for row in unit],
            "grp": [group for unit in pool.groups for group in unit],
            "ordinal": [ordinal for ordinal, unit in enumerate(units) for _ in unit],
            "place": [offset for unit in units for offset in range(len(unit))],
        }
    )
    with duckdb.connect() as connection:
        connection.register("pool", table)
        connection.execute(
            "CREATE TABLE kept AS SELECT * FROM pool QUALIFY row_number() OVER "
            "(PARTITION BY hash ORDER BY score DESC, ordinal, place) = 1"
        )
        counted = connection.execute("SELECT count(*) FROM kept GROUP BY grp ORDER BY grp")
        eligible = [n for (n,) in counted.fetchall()]
        wanted = quotas(
            KeepShare(Fraction(1, 10)),
            GroupRule(column="source"),
            names=list("abcdefg"),
            eligible=eligible,
        )
        cuts, _ = search(columns, eligible, wanted, shares=3, seed=1)
        limits = pa.table({"grp": range(7), "quota": wanted})
        connection.register("limits", limits)
        rows = connection.execute(
            "SELECT ordinal, place FROM kept JOIN limits USING (grp) QUALIFY row_number() OVER "
            "(PARTITION BY grp ORDER BY score DESC, hash, ordinal, place) <= quota"
        ).fetchall()
    assert sum(wanted) == len(rows) == sum(eligible) // 10
    assert selected(columns, cuts) == set(rows)


def test_many_groups_take_few_passes_and_few_bins() -> None:
    """5,000 groups of distinct scores: some bits a pass, then the few rows that are left."""
    draw = np.random.default_rng(2)
    units = make_units(draw.normal(size=40_000).tolist(), unit_rows=4000)
    pool = Pool(units, [draw.integers(0, 5000, len(unit)).tolist() for unit in units])
    columns = columns_of(pool)
    eligible = np.bincount(np.concatenate(pool.groups), minlength=5000).tolist()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(groups, "FETCHED_ROWS", 6000)
        patch.setattr(groups, "BINS", 1 << 16)
        cuts, passes = search(columns, eligible, [n // 2 for n in eligible], shares=3, seed=0)
    assert passes <= 11
    assert cuts.selected == sum(n // 2 for n in eligible)
    masks = [cuts.mask(c) for c in columns]
    per_group = np.bincount(
        np.concatenate([np.array(g)[m] for g, m in zip(pool.groups, masks, strict=True)]),
        minlength=5000,
    )
    assert per_group.tolist() == [n // 2 for n in eligible]


def test_sidecars_that_change_between_passes_stop_the_search() -> None:
    """Counts of two passes that do not agree are an error, not a wrong cut."""
    units = make_units([1.0, 2.0, 3.0])
    pool = Pool(units, [[0] * len(unit) for unit in units])
    columns = [
        SidecarColumns.from_table(sidecar(unit), ordinal=n) for n, unit in enumerate(pool.units)
    ]
    for fetched in (0, 9):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(groups, "FETCHED_ROWS", fetched)
            with pytest.raises(IncompleteError, match="changed while they were read"):
                search(columns, [4], [2], shares=1, seed=0)


# Quotas.


def test_quotas_of_a_hand_worked_pool() -> None:
    """10% of 45 rows is 4: exact parts 2.22, 1.33, 0.44; the largest remainder gets the fourth."""
    keep, rule = KeepShare(Fraction(1, 10)), GroupRule(column="s")
    assert quotas(keep, rule, names=["a", "b", "c"], eligible=[25, 15, 5]) == [2, 1, 1]
    assert quotas(KeepCount(4), rule, names=["a", "b", "c"], eligible=[25, 15, 5]) == [2, 1, 1]
    # Equal remainders: by name.
    assert quotas(KeepCount(2), rule, names=["a", "b", "c"], eligible=[5, 5, 5]) == [1, 1, 0]
    assert quotas(KeepCount(99), rule, names=["a", "b", "c"], eligible=[5, 0, 2]) == [5, 0, 2]
    assert quotas(keep, rule, names=[], eligible=[]) == []


def test_a_minimum_and_a_maximum_move_the_other_quotas_in_proportion() -> None:
    """Hand-worked: of 100 rows, at least 10 and at most half; the rest share what is left 2 : 1."""
    rule = GroupRule(column="s", least=KeepCount(10), most=KeepShare(Fraction(1, 2)))
    names = ["big", "middle", "little", "tiny"]
    eligible = [800, 120, 60, 4]
    # big 81.3 → 50; tiny 0.4 → all its 4; 46 left for middle and little, 30.7 and 15.3.
    assert quotas(KeepCount(100), rule, names=names, eligible=eligible) == [50, 31, 15, 4]


@settings(max_examples=300, deadline=None)
@given(
    eligible=st.lists(st.integers(0, 50), min_size=1, max_size=8),
    percent=st.integers(1, 100),
    least=st.integers(0, 12),
    most=st.integers(1, 60),
)
def test_quotas_add_up_within_bounds_and_are_as_even_as_they_can_be(
    eligible: list[int], percent: int, least: int, most: int
) -> None:
    """Or the rule is refused, and then no quotas could meet it."""
    keep = KeepShare(Fraction(percent, 100))
    rule = GroupRule(column="s", least=KeepCount(least) if least else None, most=KeepCount(most))
    names = [str(n) for n in range(len(eligible))]
    total = percent * sum(eligible) // 100
    lows, highs = [min(least, n) for n in eligible], [min(most, n) for n in eligible]
    if least > most or sum(lows) > total or sum(highs) < total:
        with pytest.raises(InputError, match="per-group"):
            quotas(keep, rule, names=names, eligible=eligible)
        return
    found = quotas(keep, rule, names=names, eligible=eligible)
    assert sum(found) == total
    for low, quota, high in zip(lows, found, highs, strict=True):
        assert low <= quota <= high
    # No row could go from a group that has more per eligible row to one that has less, by a row.
    for a, quota in enumerate(found):
        for b, other in enumerate(found):
            if quota > lows[a] and other < highs[b]:
                assert (quota - 1) * eligible[b] <= (other + 1) * eligible[a]


def test_the_group_that_is_short_is_named() -> None:
    """With what it lacks and what to do."""
    rule = GroupRule(column="s", least=KeepCount(10))
    with pytest.raises(
        InputError, match=r"30 rows of 3 groups, 25 are to be kept: group 'c'.*5 of"
    ):
        quotas(KeepCount(25), rule, names=["a", "b", "c"], eligible=[90, 90, 90])
    with pytest.raises(InputError, match="group 'a' is short, 5 of its 10 rows"):
        quotas(KeepCount(5), rule, names=["a", "b"], eligible=[90, 90])
    crossed = GroupRule(column="s", least=KeepCount(10), most=KeepCount(9))
    with pytest.raises(InputError, match="--min-per-group is 10 rows of 25, --max-per-group 9"):
        quotas(KeepCount(25), crossed, names=["a"], eligible=[90])
    most = GroupRule(column="s", most=KeepShare(Fraction(1, 10)))
    with pytest.raises(InputError, match="--max-per-group of 2 rows leaves 6 rows"):
        quotas(KeepCount(25), most, names=["a", "b", "c"], eligible=[90, 90, 90])


def test_apportion_with_nothing_to_share() -> None:
    """No weights, no parts."""
    assert apportion(0, [0, 0], lows=[0, 0], highs=[0, 0]) == [0, 0]


def test_bounds_are_read_as_written() -> None:
    """Rows or a share; anything else is refused with the flag's name."""
    assert parse_bound("100", flag="--x") == KeepCount(100)
    assert parse_bound(" 2.5% ", flag="--x") == KeepShare(Fraction(1, 40))
    for text in ("0", "0%", "101%", "-1", "score>=1", "0.5", ""):
        with pytest.raises(InputError, match="--x"):
            parse_bound(text, flag="--x")


def test_rules_that_do_not_go_together_are_refused() -> None:
    """Before anything is read."""
    assert group_rule(KeepCount(1), per=None, least=None, most=None) is None
    with pytest.raises(InputError, match="need --per"):
        group_rule(KeepCount(1), per=None, least="1", most=None)
    with pytest.raises(InputError, match="a least score names none"):
        group_rule(KeepAbove(1.0), per="source", least=None, most=None)


# Labels.


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (pa.array(["a", None, "b", "a"]), ["a", "(none)", "b", "a"]),
        (pa.array(["a", None, "b", "a"]).dictionary_encode(), ["a", "(none)", "b", "a"]),
        (pa.array([b"a", b"\xff", None]), ["a", "\\xff", "(none)"]),
        (pa.array([3, None, 3], pa.int8()), ["3", "(none)", "3"]),
        (pa.array([True, False]), ["True", "False"]),
        (pa.nulls(2), ["(none)", "(none)"]),
        (pa.array([], pa.string()), []),
    ],
)
def test_labels_are_the_values_as_text(values: pa.Array, names: list[str]) -> None:
    """Of any type that can be one; no value is a label too."""
    labels = as_labels(pa.chunked_array([values[:1], values[1:]]))
    assert [labels.names[code] for code in labels.codes_N] == names


def test_too_many_or_too_long_labels_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A column of texts is named as such, not held in memory."""
    monkeypatch.setattr("scar_core.selection.labels.MOST_GROUPS", 2)
    unit = [Row("a", n, 1.0, bytes(16)) for n in range(3)]
    columns = SidecarColumns.from_table(sidecar(unit), ordinal=0)
    found = count_groups(columns, as_labels(pa.chunked_array([["a", "b", "c"]])), column="s")
    with pytest.raises(InputError, match="--per s: more than 2 different values"):
        merge_groups([found], column="s")
    long = as_labels(pa.chunked_array([["é" * 200, "b", "c"]]))
    with pytest.raises(InputError, match="a value has 400 bytes, the limit is 256"):
        count_groups(columns, long, column="s")
