"""When a run on a cluster waits, when it deals its units again, and when it gives up; no Ray."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from jobs import score, standstill
from jobs.actors import ActorConfig
from jobs.score import ScoreConfig
from jobs.score_plan import Plan
from jobs.score_stages import ScoredSidecar
from jobs.standstill import (
    PATIENCE_SECONDS,
    ClusterError,
    StandstillError,
    StandstillWatch,
)
from scar_core.pool.sidecars import ScoringKey, Sidecar
from scar_core.pool.units import UnitConfig
from tests.pools import planned, texts, write

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from scar_core.pool.units import Unit


class Cluster:
    """A clock, some nodes, and a count of results, all moved by hand."""

    def __init__(self) -> None:
        self.now = 0.0
        self.nodes = {"a", "b"}
        self.outputs = 0
        self.watch = StandstillWatch()

    def pass_time(self, seconds: float) -> None:
        """Let the executor go on for so long, a step a second."""
        metrics = SimpleNamespace(num_outputs_taken=self.outputs)
        executor: Any = SimpleNamespace(_topology=[SimpleNamespace(metrics=metrics)])
        for _ in range(round(seconds)):
            self.now += 1
            self.watch.on_execution_step(executor)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    cluster = Cluster()
    monkeypatch.setattr("jobs.standstill.time.monotonic", lambda: cluster.now)
    monkeypatch.setattr(standstill, "_living_nodes", lambda: set(cluster.nodes))
    cluster.watch.before_execution_starts(SimpleNamespace())
    return cluster


def test_a_whole_cluster_may_take_its_time(cluster: Cluster) -> None:
    """Without a loss, and with a node more, it is a slow model that one waits for."""
    cluster.pass_time(10 * PATIENCE_SECONDS)
    cluster.nodes |= {"c"}
    cluster.pass_time(10 * PATIENCE_SECONDS)
    assert cluster.now >= 20 * PATIENCE_SECONDS, "every step was gone through"


def test_after_a_loss_a_standstill_ends_the_pass(cluster: Cluster) -> None:
    """Also where another node took the place of the lost one."""
    cluster.nodes = {"a", "c"}
    cluster.pass_time(PATIENCE_SECONDS - 10)
    with pytest.raises(StandstillError, match="1 of the cluster's nodes were lost"):
        cluster.pass_time(20)


def test_after_a_loss_a_slow_model_still_has_time_for_its_units(cluster: Cluster) -> None:
    """What took 100 s between two results may take 400 s when fewer are left."""
    cluster.pass_time(100)
    cluster.outputs += 1
    cluster.pass_time(10)
    cluster.nodes = {"a"}
    cluster.pass_time(300)
    with pytest.raises(StandstillError):
        cluster.pass_time(150)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """Six units, none scored."""
    file = write(tmp_path / "pool/a.parquet", texts(6), groups=[1] * 6)
    units = planned(file, config=UnitConfig(unit_rows=1))
    key = ScoringKey(
        ranker="r",
        instruction_column="instruction",
        response_column="response",
        max_row_bytes=1,
        max_tokens=8,
        precision="fp32",
    )
    return Plan(files=[], bad_files=[], units=units, key=key, finished={})


def scored(unit: Unit) -> ScoredSidecar:
    sidecar = Sidecar(
        unit=unit, path="", bytes=0, sha256="", scored=1, quarantined={}, tokens=1, cut_tokens=0
    )
    return ScoredSidecar(sidecar=sidecar, waited_seconds=0.0, worked_seconds=0.0)


def breaking_after(*units: int) -> Callable[..., Iterator[ScoredSidecar]]:
    """A pass after the other: each finishes so many units, then the cluster breaks."""
    passes = iter(units)

    def run(config: ScoreConfig, plan: Plan, load: None) -> Iterator[ScoredSidecar]:
        del config, load
        most = next(passes)
        for unit in plan.missing[:most]:
            yield scored(unit)
        if most < len(plan.missing):
            raise ClusterError("a node was lost.")

    return run


CONFIG = ScoreConfig(pool=["p"], ranker="r", out="o")


def test_units_of_a_broken_pass_are_dealt_again_and_no_others(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each unit comes back once."""
    monkeypatch.setattr(score, "_run", breaking_after(2, 3, 1))
    results = list(score._dealt_until_done(CONFIG, plan, None))  # noqa: SLF001 - scripted from inside
    done = [result.sidecar.unit for result in results if isinstance(result, ScoredSidecar)]
    assert done == plan.units
    assert len(results) == len(done)


def test_a_pass_that_finishes_nothing_is_the_last(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that gets nowhere says so."""
    monkeypatch.setattr(score, "_run", breaking_after(2, 0))
    with pytest.raises(ClusterError, match="a node was lost"):
        list(score._dealt_until_done(CONFIG, plan, None))  # noqa: SLF001 - as above


def test_a_stall_must_take_some_time() -> None:
    """Zero minutes would end every run as it starts."""
    with pytest.raises(ValueError, match="stall_minutes must be above 0"):
        ActorConfig(stall_minutes=0)
