"""Two runs held against each other, whatever selected: against plain sets."""

from __future__ import annotations

import json
import math
import random
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from jobs import score
from jobs.before import Before, Gone, open_before
from jobs.news import Against
from jobs.scored_pool import open_scores
from jobs.select_rows import select
from jobs.settled import SelectOptions, rescorer_of
from scar_core.errors import InputError
from scar_core.manifest import new_run_id, write_pointer
from scar_core.pool.changes import match_files
from scar_core.selection.drift import drift, grid, histogram
from tests.in_process import publish_drawn, run_here
from tests.jobs_harness import manifest_of, rows_of
from tests.tiny import tiny_ranker_dir

Row = dict[str, Any]


# Files


def test_files_are_matched_by_path_then_by_fingerprint() -> None:
    """A move keeps a file; another content under its path is a change."""
    before = {"a": "1", "b": "2", "c": "3", "d": "4", "e": "5"}
    now = {"a": "1", "b": "9", "x/c": "3", "d": "5", "f": "6"}
    found = match_files(before, now)
    assert found.same == {"a": "a", "c": "x/c", "e": "d"}
    assert [sorted(paths) for paths in (found.changed, found.new, found.removed)] == [
        ["b"],
        ["f"],
        ["d"],
    ]
    assert found.moved == 2
    assert [found.fate_before(path) for path in "abcde"] == [
        *("same", "changed", "same", "removed", "same"),
    ]
    assert [found.fate_now(path) for path in now] == ["same", "changed", "same", "same", "new"]


def test_of_several_copies_each_counts_once() -> None:
    """Two files with one fingerprint, one of which is left."""
    assert match_files({"a": "1", "b": "1"}, {"c": "1"}).removed == {"b"}
    assert match_files({"c": "1"}, {"a": "1", "b": "1"}).new == {"b"}


# Runs


class World:
    """A curation over a pool that changes, with scores that are drawn anew for every run."""

    def __init__(self, folder: Path, ranker: Path, seed: int) -> None:
        self.folder, self.ranker, self.out = folder, ranker, folder / "out"
        self.rng = random.Random(seed)
        self.versions = 0

    def write(self, path: str) -> None:
        """A file of few contents, some rows without text; its ids come nowhere else."""
        self.versions += 1
        rows = self.rng.randint(1, 14)
        contents = [self.rng.randrange(16) for _ in range(rows)]
        table = pa.table(
            {
                "id": [f"{self.versions}:{row}" for row in range(rows)],
                "instruction": [None if c == 0 else f"question {c}" for c in contents],
                "response": [f"answer {c}" for c in contents],
                "source": [self.rng.choice(["a", "b", None]) for _ in range(rows)],
            },
            schema=pa.schema(dict.fromkeys(["id", "instruction", "response", "source"], "string")),
        )
        place = self.folder / "pool" / path
        place.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, place, row_group_size=5)

    def change(self) -> dict[str, str]:
        """Change the pool; the fates of files, by version."""
        fates = {}
        for place in sorted((self.folder / "pool").rglob("*.parquet")):
            version = pq.read_table(place)["id"][0].as_py().partition(":")[0]
            fate = self.rng.choice(["same", "same", "moved", "changed", "removed"])
            if fate == "moved":
                moved = self.folder / f"pool/dt={self.rng.randint(3, 9)}" / place.name
                moved.parent.mkdir(exist_ok=True)
                place.rename(moved)
            elif fate == "changed":
                self.write(str(place.relative_to(self.folder / "pool")))
                fates[str(self.versions)] = "changed_file"
            elif fate == "removed":
                place.unlink()
            gone = {"changed": "changed_file", "removed": "removed_file"}
            fates[version] = gone.get(fate, "threshold_moved")
        for _ in range(self.rng.randint(1, 2)):
            self.write(f"dt=2/new-{self.versions}.parquet")
            fates[str(self.versions)] = "new_file"
        return fates

    def publish_scores(self) -> str:
        """Other scores for all rows, also of units that were scored; units of another size."""
        config = score.ScoreConfig(
            pool=[str(self.folder / "pool")],
            ranker=str(self.ranker),
            out=str(self.out / "scores"),
            unit_rows=self.rng.randint(2, 7),
        )
        seed = self.rng.randrange(1000)

        def draw(unit: Any, hashes: Any) -> np.ndarray:  # noqa: ANN401
            lot = np.random.default_rng([seed, unit.row_start, *unit.path.encode()])
            return np.round(lot.normal(0, 0.4, len(hashes)), 1).astype(np.float32)

        return publish_drawn(config, draw, tokens=lambda content: 5 + content[0] % 9)

    def run(self, options: SelectOptions, *, since: bool = False, score_anew: bool = True) -> Path:
        """Select as `curate` does."""
        scores = open_scores(self.publish_scores() if score_anew else str(self.out / "scores"))
        name = f"selected/{new_run_id(after=self.named)}"
        against = Against(before=open_before(str(self.out)), only_new=since)
        actors = score.ScoreConfig(pool=["-"], ranker="-", out="-")
        select(
            scores,
            options,
            rescorer_of(scores, actors),
            folder=str(self.out / name),
            against=against,
        )
        self.name(name)
        return self.out / name

    @property
    def named(self) -> str | None:
        """What latest.json names."""
        pointer = self.out / "latest.json"
        run: str | None = json.loads(pointer.read_bytes())["run"] if pointer.exists() else None
        return run

    def name(self, run: str) -> None:
        """Let latest.json name a run, even if there are newer ones."""
        write_pointer(str(self.out), run, kind="selection")
        (self.out / "latest.json").write_text(json.dumps({"run": run}))


POLICIES: list[dict[str, Any]] = [
    {"keep": "30%"},
    {"keep": "100%"},
    {"keep": "score>=9"},
    {"keep": "score>=0.2"},
    {"keep": "40%", "per": "source"},
    {"keep": "60%", "dedup": "exact"},
    {"keep": "50%", "per": "source", "dedup": "exact"},
    {"keep": "150-tokens", "max_per_cluster": 1},
    {"keep": "40%", "sample_temperature": 0.7, "seed": 3},
    {"keep": "30%", "length_bands": "q2", "max_per_length_band": "80%"},
]


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ranker to name; it scores nothing."""
    return tiny_ranker_dir(tmp_path_factory.mktemp("ranker"))


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs in this process; a few rows are many files, row groups, chunks and ranges."""
    run_here(monkeypatch)
    monkeypatch.setattr("jobs.select_rows.PICKED_ROWS", 9)
    monkeypatch.setattr("jobs.news.RANGE_ROWS", 6)
    monkeypatch.setattr("scar_core.selection.picked.GROUP_ROWS", 3)


def content(rows: list[Row]) -> list[tuple[str, str]]:
    return [(row["instruction"], row["response"]) for row in rows]


def report_of(run: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((run / "report.json").read_bytes())
    return report


@pytest.mark.usefixtures("here")
@settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    seed=st.integers(0, 10_000),
    policies=st.tuples(st.sampled_from(POLICIES), st.sampled_from(POLICIES)),
)
@example(
    seed=206,
    policies=({"keep": "30%"}, {"keep": "30%", "length_bands": "q2", "max_per_length_band": "80%"}),
)
def test_any_two_selections_are_compared_as_plain_sets_are(
    ranker: Path, seed: int, policies: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    """Stayed, entered, left, and new by content.

    Files are new, changed, moved and removed; all rows were scored again since, in other units; the
    policy is another.
    """
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder), ranker, seed)
        for name in ("dt=1/a", "dt=1/b", "dt=2/c", "dt=2/d"):
            world.write(f"{name}.parquet")
        options = SelectOptions(**policies[1])
        try:
            first = world.run(SelectOptions(**policies[0]))
            fates = world.change()
            second = world.run(options)
        except InputError as error:  # rows of one length alone: no cap of bands can be met
            assume("--max-per-length-band" not in str(error))
            raise
        had, has = rows_of(first), rows_of(second)
        before = report_of(second)["before"]
        told = before["selection"]
        ids = [{row["id"] for row in rows} for rows in (had, has)]

        def by_fate(some: set[str]) -> dict[str, int]:
            return dict(Counter(fates[id_.partition(":")[0]] for id_ in some))

        assert told["stayed"] == len(ids[0] & ids[1])
        assert told["entered"] == by_fate(ids[1] - ids[0])
        assert told["left"] == by_fate(ids[0] - ids[1])
        assert before["run"] == first.name
        assert manifest_of(second)["counts"]["selected"] == len(has)

        world.name(f"selected/{first.name}")
        third = world.run(options, since=True, score_anew=False)
        known = set(content(had))
        assert content(rows_of(third)) == [pair for pair in content(has) if pair not in known]
        counts = manifest_of(third)["counts"]
        assert counts["written"] + counts["known"] == counts["selected"] == len(has)
        assert report_of(third)["before"] == before


@pytest.mark.usefixtures("here")
def test_the_list_of_selected_rows_is_a_table_for_anybody(tmp_path: Path, ranker: Path) -> None:
    """Path, row, content hash and score of each, in order; its files are in the manifest."""
    world = World(tmp_path, ranker, seed=1)
    for name in "abc":
        world.write(f"dt=1/{name}.parquet")
    run = world.run(SelectOptions(keep="50%"))
    listed = pq.read_table(run / "picked").to_pylist()
    pool = [
        (path.relative_to(tmp_path / "pool").as_posix(), number, row["id"])
        for path in sorted((tmp_path / "pool").rglob("*.parquet"))
        for number, row in enumerate(pq.read_table(path).to_pylist())
    ]
    selected = {row["id"]: row["scar_score"] for row in rows_of(run)}
    places = [(path, number, selected[id_]) for path, number, id_ in pool if id_ in selected]
    assert [(row["path"], row["row"], row["score"]) for row in listed] == places != []
    entries = manifest_of(run)["picked"]
    assert len(entries) > 1
    assert sum(entry["rows"] for entry in entries) == len(listed)


@pytest.mark.usefixtures("here")
def test_drift_is_that_of_all_scores_of_both_runs(tmp_path: Path, ranker: Path) -> None:
    """Whatever is selected, and without a sidecar of the run before."""
    world = World(tmp_path, ranker, seed=2)
    scores: list[Any] = []
    for policy in ({"keep": "score>=9"}, {"keep": "50%", "per": "source", "dedup": "exact"}):
        for name in "abc":
            world.write(f"dt={len(scores)}/{name}.parquet")
        run = world.run(SelectOptions(**policy))  # type: ignore[arg-type]
        sidecars = [pq.read_table(path) for path in (world.out / "scores/sidecars").rglob("*.par*")]
        scores.append(np.concatenate([t["score"].drop_null().to_numpy() for t in sidecars]))
        shutil.rmtree(world.out / "scores/sidecars")
        if len(scores) == 1:
            before = open_before(str(world.out))
            assert isinstance(before, Before)
            edges_E, before_B = before.read_spread()
            assert before_B.tolist() == histogram(scores[0], edges_E).tolist()
    found = drift(histogram(scores[0], edges_E), histogram(scores[1], edges_E))
    assert found is not None
    told = report_of(run)["before"]["drift"]
    assert told["pool"] == {"psi": found.psi, "ks": found.ks, "large": found.is_large}


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("damage", "says"),
    [("gone", "0 are there"), ("cut", "are there"), ("rotten", "cannot be read")],
)
def test_a_run_before_whose_list_is_broken_is_not_compared(
    tmp_path: Path, ranker: Path, damage: str, says: str
) -> None:
    """It is no crash, and what is new since then is not guessed."""
    world = World(tmp_path, ranker, seed=3)
    world.write("dt=1/a.parquet")
    first = world.run(SelectOptions(keep="100%"))
    victim = next((first / "picked").iterdir())
    whole = victim.read_bytes()
    victim.unlink()
    if damage != "gone":
        half = whole[: len(whole) // 2]
        victim.write_bytes(half if damage == "cut" else half + bytes(len(whole) - len(half)))
    second = world.run(SelectOptions(keep="100%"))
    assert says in report_of(second)["before"]["not_comparable"]
    assert str(tmp_path) not in (second / "report.json").read_text()
    world.name(f"selected/{first.name}")
    with pytest.raises(InputError, match=says):
        world.run(SelectOptions(keep="100%"), since=True)


@pytest.mark.usefixtures("here")
def test_a_run_that_lists_nothing_of_its_selection_cannot_be_compared(
    tmp_path: Path, ranker: Path
) -> None:
    """Such as one of an older version."""
    world = World(tmp_path, ranker, seed=4)
    world.write("dt=1/a.parquet")
    first = world.run(SelectOptions(keep="100%"))
    manifest = manifest_of(first)
    del manifest["picked"]
    (first / "manifest.json").write_text(json.dumps(manifest))
    before = open_before(str(world.out))
    assert isinstance(before, Gone)
    assert "older version" in before


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
