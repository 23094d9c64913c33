"""Pools of actors on GPUs that Ray is told of and that are not there: only placement is real."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import TYPE_CHECKING

import pyarrow as pa
import pytest

from jobs import cli
from jobs.actors import ActorConfig, actor_bounds, gpu_room
from jobs.score import ScoreConfig
from scar_core.errors import InputError
from tests.gpu_runs import LONG_TOKENS, GpuRun, run_on
from tests.jobs_harness import manifest_of, rows_of, write_pool
from tests.pools import texts, write
from tests.ray_cluster import Job, three_nodes
from tests.test_readme import README
from tests.tiny import tiny_ranker_dir

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ROWS = 97
UNIT_ROWS = 4
UNITS = 25

# How many actors, without Ray


@pytest.mark.parametrize(
    ("gpus", "each", "room"),
    [
        ([1], 1.0, 1),
        ([8], 1.0, 8),
        ([8] * 8, 1.0, 64),
        ([1], 0.5, 2),
        ([2], 0.6, 2),  # three would need a third GPU
        ([1, 1], 0.3, 6),
        ([4], 0.1, 40),
        ([3, 3], 2.0, 2),  # an actor's GPUs are those of one node
        ([], 1.0, 0),
        ([0.0, 0.0], 0.5, 0),
    ],
)
def test_actors_are_as_many_as_fit_on_single_gpus_and_nodes(
    gpus: list[float], each: float, room: int
) -> None:
    """Not the sum of all GPUs by an actor's share."""
    assert gpu_room(gpus, each=each) == room


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets the nodes that Ray tells of."""
    import ray  # noqa: PLC0415

    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def of(*nodes: dict[str, float]) -> None:
        told = [{"Alive": True, "Resources": node} for node in nodes]
        told.append({"Alive": False, "Resources": {"CPU": 64.0, "GPU": 64.0}})
        monkeypatch.setattr(ray, "nodes", lambda: told)

    return of


def test_auto_takes_every_gpu_that_is_there(cluster: Callable[..., None]) -> None:
    """And none of a node that is lost."""
    cluster({"CPU": 2.0}, {"CPU": 1.0, "GPU": 4.0}, {"GPU": 4.0})
    assert actor_bounds(ActorConfig(gpus_per_actor=1)) == (8, 8)
    assert actor_bounds(ActorConfig(gpus_per_actor=0.5)) == (16, 16)
    assert actor_bounds(ActorConfig(gpus_per_actor=1, actors="2:64")) == (2, 64)


def test_more_gpu_actors_than_fit_are_refused_where_nothing_grows(
    cluster: Callable[..., None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On a laptop an error; on a cluster, which may grow, a warning, and fewer to begin with."""
    cluster({"CPU": 8.0, "GPU": 2.0})
    config = ActorConfig(gpus_per_actor=0.6, actors="3")
    with pytest.raises(InputError, match="room for 2, with 2 GPUs"):
        actor_bounds(config)
    monkeypatch.setenv("RAY_ADDRESS", "somewhere:6379")
    assert actor_bounds(config) == (2, 3)
    assert "More will start when it grows" in caplog.text


def test_gpus_without_a_cpu_are_told_before_the_run_waits_for_one(
    cluster: Callable[..., None],
) -> None:
    """Nobody could read for the actors."""
    cluster({"GPU": 8.0, "CPU": 0.5})
    with pytest.raises(InputError, match="no node has a CPU"):
        actor_bounds(ActorConfig(gpus_per_actor=1))


def test_an_actor_has_a_share_of_one_gpu_or_whole_ones() -> None:
    """Ray would refuse one and a half in the middle of the run."""
    with pytest.raises(ValueError, match=r"share of one GPU or a whole number, got 1\.5"):
        ActorConfig(gpus_per_actor=1.5)
    assert ActorConfig(gpus_per_actor=2).gpus_per_actor == 2


NODE = {"CPU": 128.0, "GPU": 8.0}


@pytest.mark.parametrize(
    ("row", "nodes", "bounds"),
    [
        ("a laptop: 1 GPU, 8 cores", [{"CPU": 9.0, "GPU": 1.0}], (1, 1)),
        ("the same, small encoder", [{"CPU": 9.0, "GPU": 1.0}], (2, 2)),
        ("a node: 8 GPUs, 128 cores", [NODE], (8, 8)),
        ("8 such nodes: 64 GPUs", [NODE] * 8, (8, 64)),
    ],
)
def test_the_readmes_flags_give_the_readmes_actors(
    cluster: Callable[..., None], row: str, nodes: list[dict[str, float]], bounds: tuple[int, int]
) -> None:
    """Its table of sizes, row by row."""
    (line,) = [line for line in README.splitlines() if line.startswith(f"| {row} |")]
    flags, actors = (cell.strip() for cell in line.split("|")[2:4])
    argv = ["--pool", "p", "--ranker", "r", "--out", "o", *flags.strip("`").split()]
    config = cli.parse(ScoreConfig, argv, prog="jobs.score", description="")
    cluster(*nodes)
    assert actor_bounds(config) == bounds
    numbers = dict.fromkeys(int(word) for word in re.findall(r"\d+", actors.partition(",")[0]))
    assert tuple(numbers) == tuple(dict.fromkeys(bounds))


# Real Ray


@pytest.fixture(scope="module")
def one_long_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A single file of a single row group."""
    folder = tmp_path_factory.mktemp("gpu-pool") / "pool"
    table = texts(ROWS - 1)
    last = {"instruction": ["Count."], "response": ["one and two and " * LONG_TOKENS]}
    write(folder / "one.parquet", pa.concat_tables([table, pa.table(last)]), groups=[ROWS])
    return folder


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_ranker_dir(tmp_path_factory.mktemp("gpu-ranker"))


@pytest.fixture
def planned(one_long_file: Path, ranker: Path, tmp_path: Path) -> Callable[..., GpuRun]:
    """Makes a run over the long file."""
    runs = Counter[str]()

    def plan(*, together: int = 1, hold_last: bool = False, **flags: object) -> GpuRun:
        runs["made"] += 1
        return GpuRun(
            pool=str(one_long_file),
            ranker=str(ranker),
            out=str(tmp_path / f"scores-{runs['made']}"),
            flags={"unit_rows": UNIT_ROWS, **flags},
            together=together,
            hold_last=hold_last,
        )

    return plan


@pytest.mark.soak
def test_one_cpu_and_one_gpu_are_enough(planned: Callable[..., GpuRun]) -> None:
    """An actor with the GPU reserves no CPU: the one there is reads and writes.

    Then two actors share the GPU, and both work on the one file; the second was started because
    units waited, and is given back when none do.
    """
    alone, shared = run_on(
        cpus=1,
        gpus=1,
        runs=[
            planned(gpus_per_actor=1.0),
            planned(gpus_per_actor=0.5, actors="1:2", together=2, hold_last=True),
        ],
    )
    assert alone.units_by_actor == [["0"] * UNITS]
    assert (alone.actors_at_most, alone.scored) == (1, ROWS)
    assert [set(seen) for seen in shared.units_by_actor] == [{"0"}, {"0"}]
    assert sum(map(len, shared.units_by_actor)) == UNITS
    assert (shared.actors_at_most, shared.actors_at_last, shared.scored) == (2, 1, ROWS)


@pytest.mark.soak
def test_each_of_two_actors_has_a_gpu_of_its_own(planned: Callable[..., GpuRun]) -> None:
    """Fixed, by `auto`, and grown from one: always both work on one long file."""
    fixed, automatic, grown = run_on(
        cpus=2,
        gpus=2,
        runs=[
            planned(gpus_per_actor=1.0, actors="2", together=2),
            planned(gpus_per_actor=1.0, together=2),
            planned(gpus_per_actor=1.0, actors="1:2", together=2, hold_last=True),
        ],
    )
    for result in (fixed, automatic, grown):
        assert [set(seen) for seen in result.units_by_actor] == [{"0"}, {"1"}]
        assert sum(map(len, result.units_by_actor)) == UNITS
        assert (result.actors_at_most, result.scored) == (2, ROWS)
    assert grown.actors_at_last == 1


@pytest.mark.soak
def test_a_whole_curation_ends_on_a_node_of_one_cpu_and_one_gpu(
    ranker: Path, tmp_path: Path
) -> None:
    """Scoring, scoring again in fp32, passes and output: nothing waits for a second CPU."""
    pool = write_pool(tmp_path / "pool")
    with three_nodes() as cluster:
        for node in cluster.workers:
            cluster.kill_node(node)
        cluster.join(cpus=1, gpus=1)
        job = Job(
            *("--pool", str(pool), "--ranker", str(ranker), "--keep", "10%", "--unit-rows", "16"),
            *("--out", str(tmp_path / "out"), "--gpus-per-actor", "1", "--precision", "bf16"),
            address=cluster.address,
            log=tmp_path / "log",
        )
        assert job.wait() == 0, job.told()
    run = tmp_path / "out" / json.loads((tmp_path / "out/latest.json").read_bytes())["run"]
    counts = manifest_of(run)["counts"]
    assert counts["rows_in"] == 300
    assert counts["selected"] == len(rows_of(run)) == counts["scored"] // 10
