"""Ray's own failures, on three nodes: a run ends right, or fails and can be resumed."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.jobs_harness import manifest_of, rows_of, write_pool
from tests.ray_cluster import Job, RayCluster, kill_process, three_nodes
from tests.tiny import tiny_ranker_dir

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ROWS = 1200
UNIT_ROWS = 16


@pytest.fixture(scope="module")
def whole_cluster() -> Iterator[RayCluster]:
    with three_nodes() as cluster:
        yield cluster


@pytest.fixture
def cluster(whole_cluster: RayCluster) -> RayCluster:
    """The cluster with all of its nodes, whatever the test before did to it."""
    whole_cluster.restore()
    return whole_cluster


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_ranker_dir(tmp_path_factory.mktemp("ranker"))


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pool(tmp_path_factory.mktemp("pools") / "pool", rows=ROWS)


class Curation:
    """Runs of `jobs.curate` into one output directory."""

    def __init__(self, cluster: RayCluster, pool: Path, ranker: Path, out: Path) -> None:
        self.cluster, self.pool, self.ranker, self.out = cluster, pool, ranker, out

    def start(self, *argv: str) -> Job:
        """Begin it, or go on with it."""
        self.out.mkdir(exist_ok=True)
        return Job(
            *("--pool", str(self.pool), "--ranker", str(self.ranker), "--keep", "10%"),
            *("--out", str(self.out), "--unit-rows", str(UNIT_ROWS), *argv),
            address=self.cluster.address,
            log=self.out / "log",
        )

    def sidecars(self) -> dict[str, int]:
        """By name, when each was written."""
        found = self.out.glob("scores/sidecars/*/*.parquet")
        return {path.name: path.stat().st_mtime_ns for path in found}

    def start_and_wait(self, *argv: str, sidecars: int = 8) -> Job:
        """A run that has finished some units."""
        job = self.start(*argv)
        job.wait_until(lambda: len(self.sidecars()) >= sidecars)
        return job

    def result(self) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Selected rows in order, and counts."""
        run = self.out / json.loads((self.out / "latest.json").read_bytes())["run"]
        return rows_of(run), manifest_of(run)["counts"]


@pytest.fixture
def curation(cluster: RayCluster, pool: Path, ranker: Path, tmp_path: Path) -> Curation:
    return Curation(cluster, pool, ranker, tmp_path / "out")


@pytest.fixture(scope="module")
def undisturbed(
    ray_session: None, pool: Path, ranker: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """What a run on one machine gives when nothing befalls it."""
    from tests.jobs_harness import curate_run  # noqa: PLC0415 - needs ray_session

    del ray_session
    out = tmp_path_factory.mktemp("undisturbed")
    arguments = ("--pool", str(pool), "--ranker", str(ranker), "--keep", "10%")
    run = curate_run(*arguments, "--out", str(out), "--unit-rows", str(UNIT_ROWS))
    return rows_of(run), manifest_of(run)["counts"]


Undisturbed = tuple[list[dict[str, Any]], dict[str, Any]]


def test_a_run_ends_right_when_a_node_is_lost(curation: Curation, undisturbed: Undisturbed) -> None:
    """The actors of the lost node start again on the one that is left, with their units."""
    job = curation.start_and_wait("--actors", "2")
    node = next(iter(curation.cluster.scorers().values()))
    curation.cluster.kill_node(node)
    assert job.wait() == 0, job.told()
    assert curation.result() == undisturbed


@pytest.mark.soak
def test_a_run_ends_right_when_actors_no_longer_find_room(
    curation: Curation, undisturbed: Undisturbed
) -> None:
    """Three actors, room for two and nobody to read for them: the units are dealt again."""
    job = curation.start_and_wait("--actors", "3")
    nodes = list(curation.cluster.scorers().values())
    curation.cluster.kill_node(max(nodes, key=nodes.count))
    assert job.wait(seconds=400) == 0, job.told()
    assert curation.result() == undisturbed


@pytest.mark.soak
def test_a_run_ends_right_when_actors_are_killed(
    curation: Curation, undisturbed: Undisturbed
) -> None:
    """Each actor once, in the middle of its work: Ray starts it again, with its units."""
    job = curation.start_and_wait("--actors", "2")
    for pid in curation.cluster.scorers():
        kill_process(pid)
        written = len(curation.sidecars())
        job.wait_until(lambda written=written: len(curation.sidecars()) > written)  # type: ignore[misc]
    assert job.wait() == 0, job.told()
    assert curation.result() == undisturbed


@pytest.mark.soak
def test_a_run_ends_right_when_a_node_is_lost_while_rows_are_written(
    curation: Curation, undisturbed: Undisturbed
) -> None:
    """The scoring is done; passes and output files are tasks that Ray starts again elsewhere."""
    job = curation.start()
    job.wait_until(lambda: any(curation.out.glob("scores/runs/*/manifest.json")))
    curation.cluster.kill_node(curation.cluster.workers[0])
    assert job.wait() == 0, job.told()
    assert curation.result() == undisturbed
    assert len(list(curation.out.glob("selected/*/manifest.json"))) == 1


@pytest.mark.soak
def test_a_node_that_joins_late_takes_its_share_and_may_leave_again(
    curation: Curation, undisturbed: Undisturbed
) -> None:
    """A pool of actors grows from its least number to its most as there is room."""
    for node in curation.cluster.workers[1:]:
        curation.cluster.kill_node(node)
    before = {node.node_id for node in curation.cluster.workers}
    # So many units that the run is not over before the node has an actor.
    job = curation.start_and_wait("--actors", "1:3", "--unit-rows", "2")
    curation.cluster.join()

    def joined() -> list[Any]:
        return [n for n in curation.cluster.scorers().values() if n.node_id not in before]

    job.wait_until(lambda: bool(joined()))
    written = len(curation.sidecars())
    job.wait_until(lambda: len(curation.sidecars()) > written + 2)
    curation.cluster.kill_node(joined()[0])
    assert job.wait() == 0, job.told()
    (rows, counts), (undisturbed_rows, undisturbed_counts) = curation.result(), undisturbed
    # Other units, other last bits of scores.
    assert [row["id"] for row in rows] == [row["id"] for row in undisturbed_rows]
    assert counts == undisturbed_counts


@pytest.mark.soak
def test_a_killed_driver_leaves_nothing_running_and_is_resubmitted(
    curation: Curation, undisturbed: Undisturbed
) -> None:
    """Its actors end with it; the next run keeps every finished unit as it is."""
    job = curation.start_and_wait()
    job.kill()
    deadline = time.monotonic() + 30
    while curation.cluster.scorers():
        assert time.monotonic() < deadline, "actors outlive their driver"
        time.sleep(0.1)
    time.sleep(1)
    finished = curation.sidecars()
    assert not list(curation.out.glob("selected/*/manifest.json"))
    again = curation.start()
    assert again.wait() == 0, again.told()
    assert curation.result() == undisturbed
    assert finished.items() <= curation.sidecars().items()


@pytest.mark.soak
def test_a_run_without_room_fails_in_time_and_is_resumed(
    curation: Curation, undisturbed: Undisturbed
) -> None:
    """All that works is lost: exit code 1 and one sentence, not a wait for ever."""
    job = curation.start_and_wait("--stall-minutes", "0.5")
    for node in curation.cluster.workers:
        curation.cluster.kill_node(node)
    assert job.wait() == 1
    assert "Start again when there is room" in job.told() or "nothing moved for" in job.told()
    assert "Traceback" not in job.told()
    finished = curation.sidecars()
    curation.cluster.restore()
    again = curation.start()
    assert again.wait() == 0, again.told()
    assert curation.result() == undisturbed
    assert finished.items() <= curation.sidecars().items()


@pytest.mark.soak
def test_object_stores_that_are_nearly_full_lose_nothing(
    cluster: RayCluster, tmp_path: Path
) -> None:
    """The token ids of one unit take a third of a node's store; every row arrives."""
    rows = 24_000
    text = "the list of steps because then " * 40
    table = pa.table(
        {
            "instruction": [f"{row} {text}" for row in range(rows)],
            "response": [f"{text} {row}" for row in range(rows)],
        }
    )
    (tmp_path / "pool").mkdir()
    pq.write_table(table, tmp_path / "pool/one.parquet", row_group_size=rows)
    for node in cluster.workers:
        cluster.kill_node(node)
    for _ in range(2):
        cluster.join(store_bytes=80 * 2**20)  # Ray takes no less
    ranker = tiny_ranker_dir(tmp_path, hidden=8, layers=1, heads=1)
    job = Job(
        *("--pool", str(tmp_path / "pool"), "--ranker", str(ranker), "--keep", "100"),
        *("--out", str(tmp_path / "out"), "--unit-rows", "6000", "--actors", "2"),
        address=cluster.address,
        log=tmp_path / "log",
    )
    assert job.wait(seconds=900) == 0, job.told()
    run = tmp_path / "out" / json.loads((tmp_path / "out/latest.json").read_bytes())["run"]
    counts = manifest_of(run)["counts"]
    assert (counts["rows_in"], counts["scored"], counts["selected"]) == (rows, rows, 100)
    assert len(rows_of(run)) == 100
    for node in cluster.workers:  # the next test wants its own
        cluster.kill_node(node)


@pytest.mark.soak
def test_an_error_of_ours_on_another_node_is_told_as_itself(curation: Curation) -> None:
    """Ray wraps what a stage raises; the operator reads one sentence and no traceback."""
    curation.pool = write_pool(curation.out.parent / "pool", rows=ROWS)
    job = curation.start("--actors", "1")
    job.wait_until(lambda: "pool: " in job.told())  # planned; Ray is yet to be connected to
    last = max(curation.pool.glob("*.parquet"))
    pq.write_table(pq.read_table(last).slice(0, 90), last)
    assert job.wait() == 1
    assert f"{last}: changed since the run was planned" in job.told()
    assert job.told().rstrip().splitlines()[-1].startswith("error: ")
