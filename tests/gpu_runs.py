"""Scoring runs on a small Ray with fake GPUs, in a process of their own, and what they left behind.

Started as `python -m tests.gpu_runs CPUS GPUS RUNS`: RUNS is JSON, a list of the flags of
`jobs.score` and of how its scorer behaves; on stdout comes one JSON object per run. Ray takes a
driver's word for its GPUs, and deals them out as it does real ones.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.faulty_scorers import PlainScorer
from tests.jobs_harness import ROOT

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from scar_core.ranker.encoding import TokenRows

WAITS_SECONDS = 60.0
"""For what should have happened long before; then the run goes on, and its test fails."""
LONG_TOKENS = 100
"""A unit with a response of so many tokens is the one that may be held."""
HELD, GO_ON = "held", "go-on"


class GpuRun(NamedTuple):
    """One run to make."""

    pool: str
    ranker: str
    out: str
    flags: dict[str, Any]
    """Of `jobs.score`, by field."""
    together: int
    """Actors that must be at work before any of them goes on."""
    hold_last: bool
    """Whether the unit of the long response ends only when its actor is the last one left."""


class GpuResult(NamedTuple):
    """What a run did."""

    units_by_actor: list[list[str]]
    """What each actor saw of the GPUs, once per unit that it scored; idle actors are not in it."""
    actors_at_most: int
    """As many as were seen alive together."""
    actors_at_last: int
    """Alive when the held unit was let go."""
    scored: int
    """Rows, as published."""


def run_on(*, cpus: float, gpus: int, runs: list[GpuRun]) -> list[GpuResult]:
    """Make runs one after the other on a Ray of this size."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu_runs", str(cpus), str(gpus), json.dumps(runs)],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [GpuResult(*result) for result in json.loads(done.stdout.splitlines()[-1])]


class Watched(PlainScorer):
    """Writes down each unit that it is given and the GPUs that it sees."""

    def __init__(self, folder: Path, *, together: int, hold_last: bool) -> None:
        self.folder, self.together, self.hold_last = folder, together, hold_last
        self.units = 0

    def score_tokens(self, instructions: TokenRows, responses: TokenRows) -> NDArray[np.float32]:
        """Scores, once the others are at work, too."""
        self.units += 1
        seen = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        (self.folder / f"{os.getpid()}-{self.units}").write_text(seen)
        self._wait(lambda: len(actors_of(self.folder)) >= self.together)
        if self.hold_last and responses.lengths_N.max() >= LONG_TOKENS:
            (self.folder / HELD).touch()
            self._wait((self.folder / GO_ON).exists)
        return super().score_tokens(instructions, responses)

    @staticmethod
    def _wait(happened: Any) -> None:  # noqa: ANN401 - a condition
        deadline = time.monotonic() + WAITS_SECONDS
        while not happened() and time.monotonic() < deadline:
            time.sleep(0.02)


def load_watched(*, folder: str, together: int, hold_last: bool, **_: Any) -> Watched:  # noqa: ANN401 - load_scorer's
    """A Watched in place of the ranker's scorer."""
    return Watched(Path(folder), together=together, hold_last=hold_last)


def actors_of(folder: Path) -> dict[str, list[str]]:
    """By the pid of an actor's scorer, what it saw at each of its units."""
    found: dict[str, list[str]] = {}
    for file in sorted(folder.glob("*-*[0-9]")):
        found.setdefault(file.name.partition("-")[0], []).append(file.read_text())
    return found


class Census(threading.Thread):
    """Counts the scoring actors that are alive, all the time."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.folder = folder
        self.at_most = self.at_last = 0
        self.ended = threading.Event()

    def run(self) -> None:
        """Count; let the held unit go when its actor is the only one left of several."""
        from ray._private.state import actors  # noqa: PLC0415

        before = set(actors())  # those of an earlier run may yet have to end
        while not self.ended.wait(0.05):
            alive = sum(
                "ScoreUnits" in actor["ActorClassName"] and actor["State"] == "ALIVE"
                for name, actor in actors().items()
                if name not in before
            )
            self.at_most = max(self.at_most, alive)
            waits = (self.folder / HELD).exists() and self.at_last == 0
            if waits and self.at_most > 1 and alive == 1:
                self.at_last = alive
                (self.folder / GO_ON).touch()


def _make(run: GpuRun) -> GpuResult:
    """One run, in this process."""
    from functools import partial  # noqa: PLC0415

    from jobs.score import ScoreConfig, score  # noqa: PLC0415
    from jobs.score_plan import make_plan  # noqa: PLC0415
    from scar_core.manifest import read_manifest  # noqa: PLC0415
    from tests import gpu_runs  # noqa: PLC0415 - what is pickled may not be of `__main__`

    folder = Path(run.out + "-seen")
    folder.mkdir(parents=True)
    config = ScoreConfig(pool=[run.pool], ranker=run.ranker, out=run.out, **run.flags)
    load = partial(
        gpu_runs.load_watched, folder=str(folder), together=run.together, hold_last=run.hold_last
    )
    census = Census(folder)
    census.start()
    try:
        published = score(config, make_plan(config), load=load)
    finally:
        census.ended.set()
        census.join()
    counts = read_manifest(published, kind="scores")["counts"]
    seen = sorted(actors_of(folder).values())
    return GpuResult(seen, census.at_most, census.at_last, counts["scored"])


def main(cpus: str, gpus: str, runs: str) -> None:
    """Start Ray, make the runs, print what became of them."""
    import ray  # noqa: PLC0415
    from ray.data import DataContext  # noqa: PLC0415

    ray.init(
        address="local",
        num_cpus=float(cpus),
        num_gpus=int(gpus),
        include_dashboard=False,
        object_store_memory=100 * 2**20,
    )
    DataContext.get_current().enable_progress_bars = False
    print(json.dumps([_make(GpuRun(*run)) for run in json.loads(runs)]))


if __name__ == "__main__":
    main(*sys.argv[1:])
