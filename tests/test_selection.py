"""Selecting: exactly the right rows, whatever the ties, the layout and the workers.

The references know nothing of keys or digits: SQL's ORDER BY in DuckDB, and Python's `sorted`.
"""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from dataclasses import dataclass, replace
from fractions import Fraction
from hashlib import blake2b
from typing import TYPE_CHECKING

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scar_core.errors import IncompleteError, SchemaError
from scar_core.pool.rows import SIDECAR_SCHEMA
from scar_core.selection.extremes import Extremes, extremes, merge_extremes
from scar_core.selection.keep import (
    Decision,
    Keep,
    KeepAbove,
    KeepCount,
    KeepShare,
    decide,
    parse_keep,
)
from scar_core.selection.order import (
    BEST_SCORE_KEY,
    DIGIT_VALUES,
    WORST_SCORE_KEY,
    SidecarColumns,
    score_keys,
    score_of,
)
from scar_core.selection.radix import (
    Counts,
    Cut,
    Survey,
    histograms,
    merge_surveys,
    survey,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from decimal import Decimal
    from pathlib import Path

    from numpy.typing import NDArray

    from scar_core.selection.order import Prefix

INF, NAN = math.inf, math.nan


@dataclass(frozen=True)
class Row:
    """One row of a pool as a sidecar tells of it; no score: quarantined."""

    path: str
    row: int
    score: float | None
    content_hash: bytes


Unit = list[Row]


def make_hash(content: int) -> bytes:
    """16 bytes, up to 15 leading ones zero, so that ties are broken at every depth."""
    digest = blake2b(content.to_bytes(8), digest_size=16).digest()
    zeros = digest[15] % 16
    return bytes(zeros) + digest[zeros:]


def make_units(
    scores: Sequence[float | None], *, unit_rows: int = 7, hashes: int = 1 << 40, seed: int = 0
) -> list[Unit]:
    """Units in (path, row) order over three files; few `hashes` make many rows of one content."""
    draw = np.random.default_rng(seed)
    edges = sorted(draw.integers(0, len(scores) + 1, 2).tolist())
    units = []
    for path, (start, stop) in zip(
        "abc", itertools.pairwise([0, *edges, len(scores)]), strict=True
    ):
        rows = [
            Row(
                path=path,
                row=number,
                score=None if score is None else float(np.float32(score)),
                content_hash=make_hash(int(draw.integers(hashes))),
            )
            for number, score in enumerate(scores[start:stop])
        ]
        units += [rows[first : first + unit_rows] for first in range(0, len(rows), unit_rows)]
    return units


def sidecar(rows: Unit) -> pa.Table:
    count = len(rows)
    columns = {
        "row": [row.row for row in rows],
        "score": [row.score for row in rows],
        "content_hash": [None if row.score is None else row.content_hash for row in rows],
        "reason": ["too_large" if row.score is None else None for row in rows],
    }
    zeros = dict.fromkeys(("instruction_tokens", "response_tokens", "cut_tokens"), [0] * count)
    return pa.table({**columns, **zeros}, schema=SIDECAR_SCHEMA)


class Tasks:
    """Passes over sidecars as a cluster runs them: in groups, in any order, merged by adding."""

    def __init__(self, units: Sequence[Unit], *, groups: int = 2, seed: int = 0) -> None:
        columns = [
            SidecarColumns.from_table(sidecar(unit), ordinal=ordinal)
            for ordinal, unit in enumerate(units)
        ]
        arrived = [columns[at] for at in np.random.default_rng(seed).permutation(len(columns))]
        self.groups = [arrived[start::groups] for start in range(groups)]
        self.passes = 0

    def survey(self) -> Survey:
        """The first pass."""
        self.passes += 1
        return merge_surveys(survey(group) for group in self.groups)

    def scan(self, prefixes: Sequence[Prefix]) -> NDArray[np.int64]:
        """One more pass."""
        self.passes += 1
        return sum(
            (histograms(group, prefixes) for group in self.groups),
            np.zeros((len(prefixes), DIGIT_VALUES), np.int64),
        )

    def decide(self, keep: Keep, probabilities: Sequence[float] = ()) -> Decision:
        """Survey and as many passes as it takes."""
        return decide(self.survey(), self.scan, keep, probabilities=probabilities)

    def extremes(self, cut: Cut, *, n: int = 3) -> Extremes:
        """One pass after the cut."""
        return merge_extremes([extremes(group, cut, n=n) for group in self.groups], n=n)

    def selected(self, cut: Cut) -> list[tuple[int, int]]:
        """(ordinal, offset) of the selected rows, sorted."""
        return sorted(
            (columns.ordinal, int(offset))
            for group in self.groups
            for columns in group
            for offset in np.flatnonzero(cut.mask(columns))
        )


def ranked(units: Sequence[Unit]) -> list[tuple[float, bytes, int, int]]:
    """(score, hash, ordinal, offset) of the eligible rows in selection order, by `sorted`."""
    rows = [
        (row.score, row.content_hash, row.path, row.row, ordinal, offset)
        for ordinal, unit in enumerate(units)
        for offset, row in enumerate(unit)
        if row.score is not None and not math.isnan(row.score)
    ]
    rows.sort(key=lambda row: (-row[0], *row[1:4]))
    return [(row[0], row[1], row[4], row[5]) for row in rows]


def by_sorting(units: Sequence[Unit], k: int) -> list[tuple[int, int]]:
    return sorted((ordinal, offset) for _, _, ordinal, offset in ranked(units)[:k])


def by_duckdb(units: Sequence[Unit], k: int) -> list[tuple[int, int]]:
    pool = pa.concat_tables(
        sidecar(unit)
        .select(["row", "score"])
        .append_column("hash", pa.array([row.content_hash for row in unit], pa.binary()))
        .append_column("path", pa.array([row.path for row in unit], pa.string()))
        .append_column("ordinal", pa.array([ordinal] * len(unit), pa.int64()))
        .append_column("position", pa.array(range(len(unit)), pa.int64()))
        for ordinal, unit in enumerate([[], *units], start=-1)
    )
    with duckdb.connect() as connection:
        connection.register("pool", pool)
        found = connection.execute(
            "SELECT ordinal, position FROM (SELECT * FROM pool WHERE score IS NOT NULL AND NOT "
            "isnan(score) ORDER BY score DESC, hash, path, row LIMIT ?) ORDER BY ALL",
            [k],
        ).fetchall()
    return [(ordinal, position) for ordinal, position in found]


RNG = np.random.default_rng(20261123)
POOLS: dict[str, list[Unit]] = {
    "random scores": make_units(RNG.normal(size=900).tolist(), unit_rows=64),
    "rounded scores": make_units(RNG.normal(size=900).round(1).tolist(), unit_rows=64),
    "equal scores": make_units([0.5] * 600, unit_rows=50),
    "equal rows": make_units([-2.0] * 300, unit_rows=11, hashes=1),
    "equal hashes, other rows": make_units(RNG.normal(size=300).round(0).tolist(), hashes=3),
    "NaN": make_units([NAN, 1.0, NAN, -1.0, NAN] * 40, unit_rows=16),
    "only NaN": make_units([NAN] * 20),
    "both zeros": make_units([0.0, -0.0, 0.0, -0.0, 1e-45, -1e-45] * 40),
    "infinities": make_units([INF, -INF, 3e38, -3e38, 0.0, NAN] * 40),
    "quarantined": make_units([None, 1.0, None, 2.0, NAN] * 40),
    "only quarantined": make_units([None] * 20),
    "one row": make_units([0.25]),
    "no rows": [],
    "sidecars without rows": [[], [], []],
    "many tiny sidecars": make_units(RNG.normal(size=500).round(1).tolist(), unit_rows=1),
}


@pytest.fixture(params=POOLS, ids=str)
def units(request: pytest.FixtureRequest) -> list[Unit]:
    return POOLS[request.param]


def test_selected_are_the_rows_that_duckdb_and_sorted_put_first(units: list[Unit]) -> None:
    """For every kind of pool and several counts; more than there are selects all."""
    tasks, eligible = Tasks(units), len(ranked(units))
    for k in sorted({1, 2, eligible // 10, eligible // 2, eligible - 1, eligible, eligible + 5}):
        if k < 1:
            continue
        cut = tasks.decide(KeepCount(k)).cut
        selected = tasks.selected(cut)
        assert selected == by_sorting(units, k)
        assert selected == by_duckdb(units, k)
        assert cut.selected == len(selected) == min(k, eligible)


def test_counts_close(units: list[Unit]) -> None:
    """Rows in = selected + not selected + quarantined by reason, NaN among the reasons."""
    tasks = Tasks(units)
    counts = tasks.survey().counts
    scores = [row.score for unit in units for row in unit]
    reasons = {
        "score_nan": sum(score is not None and math.isnan(score) for score in scores),
        "too_large": scores.count(None),
    }
    assert counts.quarantined == {reason: n for reason, n in reasons.items() if n}
    selected = len(tasks.selected(tasks.decide(KeepShare(Fraction(1, 3))).cut))
    not_selected = counts.eligible - selected
    assert selected == counts.eligible // 3
    assert len(scores) == counts.rows == selected + not_selected + sum(reasons.values())


def test_the_threshold_is_the_lowest_selected_score(units: list[Unit]) -> None:
    """A score that a row has, not the edge of a bin; None where nothing is selected."""
    order = ranked(units)
    for k in {1, len(order) // 3, len(order)} - {0}:
        threshold = Tasks(units).decide(KeepCount(k)).cut.threshold
        assert threshold == (order[:k][-1][0] if order else None)


def test_a_threshold_keeps_every_row_at_or_above_it(units: list[Unit]) -> None:
    """Also between scores, at both zeros, and where no row or every row passes."""
    for least in (-4e5, -1.0, -0.0, 0.0, 0.05, 0.5, 1.0, 3e38):
        keep = parse_keep(f"score>={least}")
        assert isinstance(keep, KeepAbove)
        tasks = Tasks(units)
        cut = tasks.decide(keep).cut
        passing = [row for row in ranked(units) if row[0] >= np.float32(least)]
        assert tasks.selected(cut) == by_sorting(units, len(passing))
        assert tasks.passes <= 4


def test_quantiles_are_order_statistics_of_the_eligible_scores(units: list[Unit]) -> None:
    """The nearest rank, exactly, all in the survey and one pass beside the cut's."""
    probabilities = (0.0, 0.01, 0.07, 0.25, 0.5, 0.75, 0.9, 0.999, 1.0)
    tasks = Tasks(units)
    found = tasks.decide(KeepAbove(3e38), probabilities).quantiles
    ascending = sorted(row[0] for row in ranked(units))
    ranks = [math.ceil(Fraction(str(p)) * len(ascending)) for p in probabilities]
    assert found == tuple(ascending[max(rank, 1) - 1] for rank in ranks if ascending)
    assert tasks.passes <= 3


def test_extremes_are_those_of_the_whole_order(units: list[Unit]) -> None:
    """Best, worst and both sides of the cut, from parts that hold a few sidecars each."""
    order = ranked(units)
    for k, n in ((1, 3), (max(1, len(order) // 3), 2), (len(order) + 1, 3)):
        tasks = Tasks(units, groups=3)
        cut = tasks.decide(KeepCount(k)).cut
        found = tasks.extremes(cut, n=n)
        wanted = (order[:n], order[:k][-n:], order[k:][:n], order[-n:])
        assert [[(row.score, *row[1:4]) for row in rows] for rows in found] == list(
            map(list, wanted)
        )
        chosen = {row[2:] for row in order[:k]}
        assert all(row.selected == (row[2:4] in chosen) for rows in found for row in rows)


SCORES = st.one_of(
    st.none(),
    st.floats(width=32),
    st.sampled_from([0.0, -0.0, 1.0, 1.0000001, -1.0, INF, -INF, NAN, 1e-45, 3.4e38]),
)


@settings(max_examples=150, deadline=None)
@given(
    scores=st.lists(SCORES, max_size=60),
    unit_rows=st.integers(1, 20),
    hashes=st.sampled_from([1, 2, 1 << 60]),
    percent=st.decimals("0.1", "100", places=1),
    groups=st.integers(1, 5),
    seed=st.integers(0, 1000),
)
def test_the_selection_does_not_depend_on_layout_workers_or_order_of_arrival(
    *,
    scores: list[float | None],
    unit_rows: int,
    hashes: int,
    percent: Decimal,
    groups: int,
    seed: int,
) -> None:
    """Any pool, units, groups of sidecars and shuffle: the reference's rows, and the same cut."""
    units = make_units(scores, unit_rows=unit_rows, hashes=hashes, seed=seed)
    keep = parse_keep(f"{percent}%")
    tasks = Tasks(units, groups=groups, seed=seed)
    cut = tasks.decide(keep).cut
    k = math.floor(Fraction(percent) * len(ranked(units)) / 100)
    assert tasks.selected(cut) == by_sorting(units, k)
    other = Tasks(units, groups=1, seed=seed + 1)
    assert other.decide(keep).cut == cut
    assert other.extremes(cut, n=2) == tasks.extremes(cut, n=2)


def test_the_first_digits_of_a_hand_worked_cut() -> None:
    """1.0 is 0x3f800000, so its key is 0x407fffff; -1.0 is 0xbf800000, so 0xbf7fffff."""
    scores = [1.0, -1.0, NAN, 1.0]
    rows = [Row("a", number, score, b"\x01\x02" * 8) for number, score in enumerate(scores)]
    tasks = Tasks([rows[:2], rows[2:]])
    assert tasks.decide(KeepCount(2)).cut.digits == (0x407F, 0xFFFF)
    assert tasks.decide(KeepCount(3)).cut.digits == (0xBF7F, 0xFFFF)
    # Rows 0 and 3 differ by their units only: 0 and 1, the last of the ordinal's digits.
    assert tasks.decide(KeepCount(1)).cut.digits == (0x407F, 0xFFFF, *[0x0102] * 8, 0, 0)


def test_score_keys_order_all_floats() -> None:
    """Random bit patterns, denormals and both ends: descending scores, NaN outside, and back."""
    bits = np.random.default_rng(1).integers(0, 1 << 32, 100_000, np.uint32)
    special = np.array([0.0, -0.0, INF, -INF, 1e-45, -1e-45, 3.4e38, NAN], np.float32)
    scores = np.concatenate([bits.view(np.float32), special, -special])
    keys = score_keys(scores)
    inside = (keys >= BEST_SCORE_KEY) & (keys <= WORST_SCORE_KEY)
    assert np.array_equal(inside, ~np.isnan(scores))
    by_key = scores[inside][np.argsort(keys[inside], kind="stable")]
    assert np.all(by_key[:-1] >= by_key[1:])
    assert len(np.unique(keys[inside])) == len(np.unique(scores[inside]))
    assert [score_of(int(key)) for key in score_keys(special)[:7]] == special[:7].tolist()


def test_distinct_scores_take_three_passes_and_equal_rows_fourteen() -> None:
    """A survey and one pass per further digit, never more than there are digits."""
    distinct = Tasks(make_units([float(score) for score in range(5000)], unit_rows=1000))
    distinct.decide(KeepCount(321), (0.1, 0.5, 0.9))
    assert distinct.passes <= 3
    equal = Tasks(make_units([1.0] * 50, hashes=1))
    equal.decide(KeepCount(13), (0.1, 0.5, 0.9))
    assert equal.passes == 14


def test_units_and_rows_beyond_sixteen_bits_are_told_apart() -> None:
    """Equal rows in units around ordinal 65,536 and beyond offset 65,536."""
    size = 66_000
    hashes = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(16), size, [None, pa.py_buffer(bytes(16 * size))]
    )
    table = pa.table({"score": np.ones(size, np.float32), "content_hash": hashes})
    ordinals = [65_537, 0, 65_536, 65_535]
    columns = [SidecarColumns.from_table(table, ordinal=ordinal) for ordinal in ordinals]
    keep = KeepCount(2 * size + 65_540)
    cut = decide(survey(columns), lambda prefixes: histograms(columns, prefixes), keep).cut
    masks = {sidecar.ordinal: cut.mask(sidecar) for sidecar in columns}
    assert masks[0].all()
    assert masks[65_535].all()
    assert masks[65_536][:65_540].all()
    assert not masks[65_536][65_540:].any()
    assert not masks[65_537].any()
    last = extremes(columns, cut, n=1).above[0]
    assert (last.ordinal, last.offset) == (65_536, 65_539)


def watched(units: list[list[float]]) -> tuple[list[SidecarColumns], list[tuple[int, str]]]:
    """Sidecars of these scores, and a list that fills with (ordinal, column) as they are read."""
    reads: list[tuple[int, str]] = []

    def columns(ordinal: int, scores: list[float]) -> SidecarColumns:
        rows = [
            Row("a", row, score, bytes([*[7] * 15, 9 - ordinal]))
            for row, score in enumerate(scores)
        ]
        table = sidecar(rows)

        def read(name: str) -> pa.ChunkedArray:
            reads.append((ordinal, name))
            return table.column(name)

        return SidecarColumns(read, ordinal=ordinal, where="test")

    return list(itertools.starmap(columns, enumerate(units))), reads


def test_passes_read_hashes_only_where_scores_tie() -> None:
    """Scores once; hashes only of the sidecars that hold the threshold's score."""
    sidecars, reads = watched([[1.0, 2.0, 3.0], [4.0, 2.0, 5.0], [6.0, 7.0, 8.0]])
    cut = decide(survey(sidecars), lambda p: histograms(sidecars, p), KeepCount(7)).cut
    assert [int(cut.mask(columns).sum()) for columns in sidecars] == [1, 3, 3]
    hashes, scores = [(0, "content_hash"), (1, "content_hash")], [(0, "score"), (1, "score")]
    assert sorted(reads) == sorted([*hashes, *scores, (2, "score")])


def test_extremes_read_hashes_only_of_sidecars_with_a_candidate() -> None:
    """A sidecar whose scores lie between those found already is not read any further."""
    sidecars, reads = watched([[5.0, 1.0, 0.0, -5.0], [3.0, -3.0]])
    cut = decide(survey(sidecars), lambda p: histograms(sidecars, p), KeepCount(3)).cut
    found = extremes(sidecars, cut, n=1)
    assert [row.score for rows in found for row in rows] == [5.0, 1.0, 0.0, -5.0]
    assert (0, "content_hash") in reads
    assert (1, "content_hash") not in reads


@pytest.mark.parametrize("unit_rows", [5, 1000])
def test_a_sidecar_on_disk_is_the_table_that_was_written(tmp_path: Path, unit_rows: int) -> None:
    """Several row groups, dictionary-encoded scores and nulls read back as they were."""
    units = make_units([0.5, None, NAN, -0.0, 2.0] * 30, unit_rows=unit_rows, hashes=4)
    columns = []
    for ordinal, unit in enumerate(units):
        path = str(tmp_path / f"{ordinal}.parquet")
        pq.write_table(sidecar(unit), path, row_group_size=3, compression="zstd")
        columns.append(SidecarColumns.open(path, ordinal=ordinal))
    found = survey(columns)
    memory = Tasks(units)
    assert found.counts == memory.survey().counts
    cut = decide(found, lambda prefixes: histograms(columns, prefixes), KeepCount(40)).cut
    assert cut == memory.decide(KeepCount(40)).cut
    assert extremes(columns, cut) == memory.extremes(cut)
    assert sum(cut.mask(sidecar).sum() for sidecar in columns) == 40


def test_a_slice_of_a_larger_table_is_read_in_its_place() -> None:
    """Arrow slices share buffers with an offset; keys follow the slice."""
    units = make_units([1.0, 2.0, 2.0, None, 3.0, 1.0], hashes=9)
    whole = sidecar([row for unit in units for row in unit])
    part, copy = whole.slice(2, 3), pa.Table.from_pylist(whole.to_pylist()[2:5], SIDECAR_SCHEMA)
    cuts = []
    for table in (part, copy):
        columns = [SidecarColumns.from_table(table, ordinal=0)]
        cuts.append(extremes(columns, Cut(selected=1, digits=(0x7FFF, 0xFFFF))))
    assert cuts[0] == cuts[1]
    assert len(cuts[0].best) == 2


@pytest.mark.parametrize(
    ("selected", "digits"),
    [(0, (1, 2)), (1, ()), (1, (1,)), (-1, ()), (1, (1, 70_000)), (1, (-1, 2)), (1, (0,) * 15)],
)
def test_an_impossible_cut_is_refused(selected: int, digits: Prefix) -> None:
    """None that a search would not find selects by accident."""
    with pytest.raises(ValueError, match="not a cut"):
        Cut(selected=selected, digits=digits)


def test_29_percent_of_100_rows_is_29_rows() -> None:
    """In binary 0.29 * 100 is 28.999999999999996."""
    units = make_units([float(score) for score in range(100)])
    assert Tasks(units).decide(parse_keep("29%")).cut.selected == 29
    assert Tasks(units[:0]).decide(parse_keep("29%")).cut.selected == 0


def test_a_share_of_few_rows_may_be_no_row() -> None:
    """10% of nine rows is rounded down to none, and the cut says so."""
    tasks = Tasks(make_units([1.0] * 9))
    cut = tasks.decide(parse_keep("10%")).cut
    assert cut == Cut(selected=0, digits=())
    assert cut.threshold is None
    assert tasks.selected(cut) == []


def test_the_reported_threshold_keeps_the_same_rows_again() -> None:
    """`score>=` with the threshold of a run without ties, as a report prints it."""
    units = make_units(np.random.default_rng(3).normal(size=300).tolist(), unit_rows=32)
    tasks = Tasks(units)
    cut = tasks.decide(parse_keep("10%")).cut
    for text in (f"score>={cut.threshold}", f"score>={np.float32(cut.threshold or 0)!s}"):
        assert tasks.decide(parse_keep(text)).cut == cut


ROWS = [Row("a", number, score, bytes(16)) for number, score in enumerate([1.0, None, 2.0])]


@pytest.mark.parametrize(
    ("column", "values", "says"),
    [
        ("score", pa.array([1.0, None, 2.0], pa.float64()), "'score' holds double; wanted float"),
        ("reason", pa.nulls(3, pa.dictionary(pa.int8(), pa.string())), "1 rows have no score, 0"),
        ("content_hash", pa.array([b"1" * 16, None, None], pa.binary(16)), "no content_hash"),
        ("content_hash", pa.array(["1", "2", "3"]), "'content_hash' holds string"),
    ],
)
def test_a_sidecar_that_is_none_is_refused(column: str, values: pa.Array, says: str) -> None:
    """Another type, a missing hash or reason: named with the file, before anything is selected."""
    table = sidecar(ROWS)
    table = table.set_column(table.schema.get_field_index(column), column, values)
    columns = [SidecarColumns.from_table(table, ordinal=0, where="scores/x.parquet")]
    with pytest.raises(SchemaError, match=says) as caught:
        extremes(columns, Tasks([ROWS]).decide(KeepCount(1)).cut, n=survey(columns).counts.rows)
    assert "scores/x.parquet" in str(caught.value)


def test_a_file_without_scores_is_refused(tmp_path: Path) -> None:
    """A Parquet file that is no sidecar is named."""
    path = str(tmp_path / "x.parquet")
    pq.write_table(pa.table({"x": [1]}), path)
    with pytest.raises(SchemaError, match=r"x\.parquet: no column 'score'"):
        survey([SidecarColumns.open(path, ordinal=0)])


def test_sidecars_that_change_between_passes_stop_the_selection() -> None:
    """Counts of two passes that do not agree are an error, not a wrong cut."""
    before = Tasks(make_units([1.0, 2.0, 3.0]))
    after = Tasks(make_units([1.0, 2.0]))
    with pytest.raises(IncompleteError, match="sidecars changed"):
        decide(before.survey(), after.scan, KeepCount(1), probabilities=(0.5, 1.0))


def test_nonsense_arguments_are_refused() -> None:
    """What only a programmer can get wrong is a ValueError."""
    tasks = Tasks(make_units([1.0]))
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        tasks.decide(KeepCount(1), (1.5,))
    with pytest.raises(ValueError, match="at least 1"):
        tasks.extremes(Cut(selected=0, digits=()), n=0)
    with pytest.raises(ValueError, match="ordinal"):
        SidecarColumns.from_table(sidecar(ROWS), ordinal=1 << 32)


def test_counts_add_up() -> None:
    """Reasons are added by name, in one order."""
    one = Counts(rows=3, eligible=1, quarantined={"too_large": 2})
    two = Counts(rows=4, eligible=1, quarantined={"score_nan": 1, "too_large": 2})
    both = replace(one, rows=7, eligible=2, quarantined={"score_nan": 1, "too_large": 4})
    assert one + two == two + one == both
    assert list((one + two).quarantined) == ["score_nan", "too_large"]


def test_selecting_needs_neither_torch_nor_ray() -> None:
    """Importing selection must stay light: it runs in seconds on a driver without a GPU stack."""
    check = (
        "import sys, scar_core.selection.keep; "
        "sys.exit(' '.join({'torch', 'ray', 'transformers'} & sys.modules.keys()))"
    )
    result = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, check=False
    )
    assert result.stderr.strip() == ""
