"""Two nights of a real curation, and what its node offered to Prometheus when both were over."""

from __future__ import annotations

import time
import urllib.request
from typing import TYPE_CHECKING, NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from tests.jobs_harness import curate_run, write_pool
from tests.tiny import tiny_ranker_dir

if TYPE_CHECKING:
    from pathlib import Path

    from prometheus_client.samples import Sample

SEEN_WITHIN_SECONDS = 60.0
"""Ray passes metrics on every ten seconds."""


class Done(NamedTuple):
    """Sums of a run's metrics."""

    units: float
    rows: float
    """Scored and quarantined."""


class Watched(NamedTuple):
    """The runs, and the scrape after them."""

    out: Path
    first: Path
    second: Path
    """The selection of a pool that has grown, held against the first."""
    samples: list[Sample]
    """Everything that the node's metrics port told."""

    def done(self, run: str) -> Done:
        """What a run has finished, by its name; nothing, where there is no such run."""
        told = {
            (sample.name, sample.labels.get("reason")): sample.value
            for sample in self.samples
            if sample.labels.get("run") == run
        }
        return Done(
            units=told.get(("ray_scar_units_done_total", None), 0.0),
            rows=sum(
                value
                for (name, _), value in told.items()
                if name in {"ray_scar_rows_scored_total", "ray_scar_rows_quarantined_total"}
            ),
        )

    def values(self, run: Path) -> dict[tuple[str, str], float]:
        """Metrics of ours of one run, by name without `ray_` and by reason."""
        return {
            (sample.name.removeprefix("ray_"), sample.labels.get("reason", "")): sample.value
            for sample in self.samples
            if sample.labels.get("run") == run.name
        }


def scrape() -> list[Sample]:
    """What this node offers to Prometheus now."""
    import ray  # noqa: PLC0415 - only who has one asks

    node = ray.nodes()[0]
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    families = text_string_to_metric_families(text)
    return [sample for family in families for sample in family.samples]


def watch_two_nights(folder: Path) -> Watched:
    """Curate a pool, let it grow, curate it again, and wait until the metrics tell of it."""
    pool = write_pool(folder / "pool", rows=120, files=3)
    arguments = ["--pool", str(pool), "--ranker", str(tiny_ranker_dir(folder))]
    arguments += ["--out", str(folder / "out"), "--keep", "10%", "--unit-rows", "16"]
    arguments += ["--actors", "1", "--precision", "bf16"]
    first = curate_run(*arguments)
    grown = write_pool(folder / "more", rows=40, files=1, seed=8)
    (grown / "part-0.parquet").rename(pool / "part-9.parquet")
    second = curate_run(*arguments)
    deadline = time.monotonic() + SEEN_WITHIN_SECONDS
    while True:
        watched = Watched(folder / "out", first, second, scrape())
        # The last that the second run tells; what it told before is there, too.
        if ("scar_drift_psi", "") in watched.values(second) or time.monotonic() > deadline:
            return watched
        time.sleep(0.5)
