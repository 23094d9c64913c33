"""Two runs held against each other, from hand-made sidecars: against plain sets and sorts."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.compare_stages import Changes, Cuts, ScoredRows, compare_chunk
from jobs.news_stages import find_new, split_chunk
from scar_core.pool.changes import Segment, match_files, segments
from scar_core.pool.rows import HASH_BYTES, SIDECAR_SCHEMA
from scar_core.pool.units import Unit
from scar_core.selection.drift import drift, grid, histogram
from scar_core.selection.keep import KeepCount, decide
from scar_core.selection.precision import Rescored, open_columns, write_rescored
from scar_core.selection.radix import Cut, histograms, survey

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class Row(NamedTuple):
    """One row of a file."""

    score: float | None
    content: int


Files = dict[str, tuple[str, list[Row]]]
"""By path fingerprint and rows."""


# Files


def test_files_are_matched_by_path_then_by_fingerprint() -> None:
    """A move keeps a file; another content under its path is a change."""
    before = {"a": "1", "b": "2", "c": "3", "d": "4", "e": "5"}
    now = {"a": "1", "b": "9", "x/c": "3", "d": "5", "f": "6"}
    found = match_files(before, now)
    assert found.same == {"a": "a", "x/c": "c", "d": "e"}
    assert [sorted(paths) for paths in (found.changed, found.new, found.removed)] == [
        ["b"],
        ["f"],
        ["d"],
    ]
    assert found.moved == 2


def test_of_several_copies_each_counts_once() -> None:
    """Two files with one fingerprint, one of which is left."""
    assert match_files({"a": "1", "b": "1"}, {"c": "1"}).removed == {"b"}
    assert match_files({"c": "1"}, {"a": "1", "b": "1"}).new == {"b"}


def cut_at(path: str, edges: Sequence[int], *, first: int = 0) -> list[ScoredRows]:
    """Units of a file, with these edges."""
    return [
        ScoredRows(
            ordinal=first + index,
            unit=Unit(path=path, row_start=start, rows=stop - start, fingerprint="f"),
            sidecar="",
        )
        for index, (start, stop) in enumerate(zip([0, *edges], edges, strict=False))
    ]


@given(st.data())
def test_segments_hold_every_unit_once_and_the_same_rows_on_both_sides(data: st.DataObject) -> None:
    """Also where the file is cut otherwise than before; as finely as the edges allow."""
    rows = data.draw(st.integers(1, 30))
    inner = st.lists(st.integers(1, rows), unique=True).map(lambda cuts: sorted({*cuts, rows}))
    before, now = cut_at("old", data.draw(inner)), cut_at("new", data.draw(inner))
    found = list(segments(match_files({"old": "f"}, {"new": "f"}), before, now))
    assert [item for segment in found for item in segment.before] == before
    assert [item for segment in found for item in segment.now] == now
    ends = []
    for segment in found:
        assert segment.fate == "same"
        assert sum(item.unit.rows for item in segment.before) == segment.rows
        assert sum(item.unit.rows for item in segment.now) == segment.rows
        ends.append(segment.now[-1].unit.row_start + segment.now[-1].unit.rows)
    old_ends = {item.unit.row_start + item.unit.rows for item in before}
    new_ends = {item.unit.row_start + item.unit.rows for item in now}
    assert ends == sorted(old_ends & new_ends)


# Rows


def content_hash(content: int) -> bytes:
    """Sixteen bytes, some of which end in zeros."""
    return content.to_bytes(2, "big") + bytes(HASH_BYTES - 3) + bytes([content % 2])


def store(folder: Path, files: Files, *, unit_rows: int) -> list[ScoredRows]:
    """Sidecars of a run over these files; one of a unit that is there is shared."""
    found: list[ScoredRows] = []
    for path, (fingerprint, rows) in sorted(files.items()):
        for start in range(0, len(rows), unit_rows):
            part = rows[start : start + unit_rows]
            unit = Unit(path=path, row_start=start, rows=len(part), fingerprint=fingerprint)
            sidecar = folder / f"{unit.id}.parquet"
            table = pa.table(
                {
                    "row": range(start, start + len(part)),
                    "score": [row.score for row in part],
                    "content_hash": [
                        None if row.score is None else content_hash(row.content) for row in part
                    ],
                    "reason": ["response_null" if row.score is None else None for row in part],
                    **dict.fromkeys(SIDECAR_SCHEMA.names[4:], [1] * len(part)),
                },
                schema=SIDECAR_SCHEMA,
            )
            pq.write_table(table, sidecar)
            found.append(ScoredRows(ordinal=len(found), unit=unit, sidecar=str(sidecar)))
    return found


def cut_of(units: Sequence[ScoredRows], keep: int) -> Cut:
    """What keeping so many rows selects."""
    columns = [open_columns(u.sidecar, ordinal=u.ordinal, rescored=u.rescored) for u in units]
    return decide(survey(columns), lambda p: histograms(columns, p), KeepCount(keep)).cut


def best(files: Files, keep: int) -> list[tuple[str, int]]:
    """Places of the best rows: by score, content hash, place."""
    ranked = sorted(
        (-row.score, content_hash(row.content), path, number)
        for path, (_, rows) in files.items()
        for number, row in enumerate(rows)
        if row.score is not None
    )
    return [(path, number) for _, _, path, number in ranked[:keep]]


def random_rows(rng: random.Random, rows: int) -> list[Row]:
    """Few scores and few contents: ties everywhere; equal contents have equal scores."""
    contents = [rng.randrange(12) for _ in range(rows)]
    return [Row(None if rng.random() < 0.1 else content // 3 / 4, content) for content in contents]


def random_change(rng: random.Random) -> tuple[Files, Files]:
    """A pool, and the same after files were added, removed, changed and moved."""
    before = {f"{n}": (f"f{n}", random_rows(rng, rng.randint(1, 12))) for n in range(4)}
    now: Files = {}
    for path, (fingerprint, rows) in before.items():
        fate = rng.choice(["same", "same", "moved", "changed", "removed"])
        if fate == "changed":
            now[path] = (f"{fingerprint}'", random_rows(rng, rng.randint(1, 12)))
        elif fate != "removed":
            now[f"z{path}" if fate == "moved" else path] = (fingerprint, rows)
    for n in range(rng.randint(0, 2)):
        now[f"new{n}"] = (f"g{n}", random_rows(rng, rng.randint(1, 12)))
    return before, now or {"last": ("h", random_rows(rng, 5))}


def places_before(before: Files, now: Files) -> dict[tuple[str, int], tuple[str, int]]:
    """By place now the place before, of rows in files with one fingerprint."""
    paths = {fingerprint: path for path, (fingerprint, _) in before.items()}
    return {
        (path, number): (paths[fingerprint], number)
        for path, (fingerprint, rows) in now.items()
        if fingerprint in paths
        for number in range(len(rows))
    }


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    seed=st.integers(0, 10_000),
    keeps=st.tuples(st.integers(0, 25), st.integers(0, 25)),
    unit_rows=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    shares=st.integers(1, 3),
)
def test_a_comparison_is_that_of_plain_sets(
    tmp_path: Path,
    seed: int,
    keeps: tuple[int, int],
    unit_rows: tuple[int, int],
    shares: int,
) -> None:
    """Entered, left, stayed and new by content, with ties and copies, for any cut into units."""
    before, now = random_change(random.Random(seed))
    old = store(tmp_path, before, unit_rows=unit_rows[0])
    new = store(tmp_path, now, unit_rows=unit_rows[1])
    cuts = Cuts(before=cut_of(old, keeps[0]), now=cut_of(new, keeps[1]))
    files = match_files(
        {path: fingerprint for path, (fingerprint, _) in before.items()},
        {path: fingerprint for path, (fingerprint, _) in now.items()},
    )
    every = list(segments(files, old, new))
    changes = compare_chunk(every, cuts=cuts, edges_E=grid([0.0, 0.5, 1.0]))

    had, has = set(best(before, keeps[0])), set(best(now, keeps[1]))
    origin = places_before(before, now)
    stayed = {place for place in has if origin.get(place) in had}
    assert changes.stayed == len(stayed)
    assert sum(changes.entered.values()) == len(has - stayed)
    assert changes.entered.get("same", 0) == len({p for p in has - stayed if p in origin})
    assert changes.entered.get("changed", 0) == len({p for p in has if p[0] in files.changed})
    assert changes.left.get("removed", 0) == len({p for p in had if p[0] in files.removed})
    assert sum(changes.left.values()) == len(had) - len(stayed)
    scores = [r.score for _, rows in now.values() for r in rows if r.score is not None]
    assert np.sum(changes.now_B) == len(scores)

    known = {before[path][1][number].content for path, number in had}
    wanted = {place for place in has if now[place[0]][1][place[1]].content not in known}
    parts = [split_chunk([segment], cuts=cuts, shares=shares) for segment in every]
    dealt = [part if isinstance(part, list) else [part] for part in parts]
    found = [find_new(*(part[share] for part in dealt)) for share in range(shares)]
    assert sum(share.rows_before for share in found) == len(had)
    places = [place for share in found for place in share.places_M.tolist()]
    assert len(places) == len(wanted)
    assert wanted == {
        (new[ordinal].unit.path, new[ordinal].unit.row_start + offset) for ordinal, offset in places
    }


def test_rows_scored_again_since_do_not_change_what_was_selected_before(tmp_path: Path) -> None:
    """A later run scores rows near its own threshold again, far from the old one."""
    files: Files = {"a": ("f", [Row(score / 10, score) for score in range(10)])}
    old = store(tmp_path, files, unit_rows=5)
    cut = cut_of(old, 3)
    again = Rescored(np.array([1, 2], np.int32), np.array([0.12, 0.19], np.float32))
    path = write_rescored(str(tmp_path), key_id="k", unit_id="u", rescored=again)
    rescored = (str(tmp_path / path),)
    new = [
        ScoredRows(ordinal=u.ordinal, unit=u.unit, sidecar=u.sidecar, rescored=rescored)
        if u.ordinal == 0
        else u
        for u in old
    ]
    cuts = Cuts(before=cut, now=cut_of(new, 8))
    every = list(segments(match_files({"a": "f"}, {"a": "f"}), old, new))
    changes = compare_chunk(every, cuts=cuts, edges_E=np.array([0.0]))
    assert (changes.stayed, changes.entered, changes.left) == (3, {"same": 5}, {})


@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_an_unreadable_sidecar_of_the_run_before_is_named(tmp_path: Path, damage: str) -> None:
    """It is no crash: the run itself does not need it."""
    old = store(tmp_path, {"a": ("f", [Row(1.0, 1)] * 3)}, unit_rows=3)
    cuts = Cuts(before=cut_of(old, 1), now=Cut(selected=0, digits=()))
    victim = tmp_path / f"{old[0].unit.id}.parquet"
    whole = victim.read_bytes()
    victim.unlink()
    if damage == "cut":
        victim.write_bytes(whole[: len(whole) // 2])
    chunk = [Segment(fate="removed", before=tuple(old), now=())]
    changes = Changes() + compare_chunk(chunk, cuts=cuts, edges_E=np.array([0.0]))
    assert changes.unreadable


# Drift


def spread(values: np.ndarray, edges_E: np.ndarray) -> np.ndarray:
    return histogram(values.astype(np.float32), edges_E)


def test_drift_is_that_of_the_textbook() -> None:
    """KS against a plain walk over all rows; PSI against a sum by hand."""
    rng = np.random.default_rng(0)
    before = rng.normal(0, 1, 5000).astype(np.float32)
    now = rng.normal(0.3, 1.2, 4000).astype(np.float32)
    edges_E = grid([float(q) for q in np.quantile(now, [0, 0.01, 0.1, 0.5, 0.9, 0.99, 1])])
    found = drift(spread(before, edges_E), spread(now, edges_E))
    assert found is not None
    every = np.sort(np.concatenate([before, now]))
    below = [
        np.searchsorted(np.sort(side), every, side="right") / len(side) for side in (before, now)
    ]
    exact = float(np.abs(below[0] - below[1]).max())
    assert exact - 0.005 <= found.ks <= exact
    deciles = np.quantile(before, np.arange(1, 10) / 10)
    shares = [
        np.bincount(np.searchsorted(deciles, side), minlength=10) / len(side)
        for side in (before, now)
    ]
    psi = sum((n - b) * math.log(n / b) for b, n in zip(*shares, strict=True))
    assert found.psi == pytest.approx(psi, rel=0.05)


def test_the_same_scores_do_not_drift_and_a_shift_does() -> None:
    """Half a standard deviation is large among many rows; among few it may be chance."""
    values = np.random.default_rng(1).normal(0, 1, 20_000)
    edges_E = grid([-4.0, -2.3, -1.3, 0.0, 1.3, 2.3, 4.0])
    before_B = spread(values, edges_E)
    same = drift(before_B, before_B)
    assert same is not None
    assert (same.psi, same.ks, same.is_large) == (0.0, 0.0, False)
    shifted = drift(before_B, spread(values + 0.55, edges_E))
    assert shifted is not None
    assert shifted.is_large
    few = drift(before_B, spread(values[:12], edges_E))
    assert few is not None
    assert few.psi > 0.25
    assert not few.is_large
    assert drift(before_B, 0 * before_B) is None


@pytest.mark.parametrize("quantiles", [[], [2.0], [2.0] * 5, [-math.inf, 0.0, 1.0, math.inf]])
def test_any_quantiles_give_a_grid(quantiles: list[float]) -> None:
    """No score, one, equal ones, infinite ones; every score falls into one bin."""
    edges_E = grid(quantiles)
    scores = np.array([-math.inf, -1, 0, 2, 3, math.inf], np.float32)
    assert spread(scores, edges_E).sum() == 6
    assert np.all(np.diff(edges_E) > 0)
    found = drift(spread(scores, edges_E), spread(scores[3:], edges_E))
    assert found is not None
    assert math.isfinite(found.psi)
