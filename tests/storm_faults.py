"""What befalls a run of the storm, and when."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tests.ray_cluster import kill_process
from tests.storm_world import PREFIX

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.ray_cluster import Job
    from tests.storm_world import Storm

STORE_FAULTS: dict[str, dict[str, float]] = {
    "S3 throttles (503)": {"slow_down": 0.3},
    "S3 resets": {"cut_request": 0.15, "cut_response": 0.15},
    "S3 loses answers": {"lost_answer": 0.2},
    "S3 is slow": {"delay_seconds": 1.0},
    "S3 is down": {"down": True},
}
FAULTS = (
    "kill -9 driver",
    "kill -9 actor",
    "kill -9 node",
    "node leaves, one joins",
    "cut uploads",
    *STORE_FAULTS,
)


def wait_for_the_moment(storm: Storm, job: Job, fault: str, *, units: int) -> str:
    """Let a random share of the work be done first; when it was, in words."""
    if fault == "kill -9 actor":  # there are none before and after
        done = storm.rng.randrange(1, units * 8 // 10)
    else:
        done = storm.rng.randrange(-units // 10, units + units // 5)
    pause = storm.rng.uniform(0, 6)
    if done < 0:
        time.sleep(pause)
        return f"{pause:.1f} s after the start"
    _until(job, lambda: len(storm.puts()) >= min(done, units))
    if done <= units:
        return f"at unit {done}"
    time.sleep(pause / 2)
    return f"{pause / 2:.1f} s after the last unit"


def _until(job: Job, happened: Callable[[], bool]) -> None:
    """Wait for it, or for the end of the job."""
    while job.running and not happened():
        time.sleep(0.02)


def strike(storm: Storm, job: Job, name: str, fault: str) -> None:
    """Let the fault happen; store faults end by themselves after some seconds."""
    if fault in STORE_FAULTS:
        storm.proxy.faults.set(**STORE_FAULTS[fault])
        calm = time.monotonic() + storm.rng.uniform(4, 20)
        _until(job, lambda: time.monotonic() > calm)
        storm.proxy.faults.clear()
    elif fault == "kill -9 actor":
        _until(job, lambda: bool(storm.cluster.scorers()))
        for pid in storm.rng.sample(sorted(storm.cluster.scorers()), 1) if job.running else ():
            kill_process(pid)
    elif fault in {"kill -9 node", "node leaves, one joins"}:
        nodes = sorted(storm.cluster.workers, key=lambda node: str(node.node_id))
        storm.cluster.kill_node(storm.rng.choice(nodes))
        if fault != "kill -9 node":
            time.sleep(storm.rng.uniform(0, 10))
            storm.cluster.restore()
    else:
        job.kill()
        if fault == "cut uploads":
            _cut_objects(storm, name)


def _cut_objects(storm: Storm, name: str) -> None:
    """Leave the first half of some sidecars and output files, as a store without atomic puts."""
    time.sleep(2)  # a writer that outlives its driver must not make them whole again
    everything = storm.store.find(f"{PREFIX}/{name}")
    found = sorted(path for path in everything if path.endswith(".parquet"))
    for path in storm.rng.sample(found, min(3, len(found))):
        whole = storm.store.cat_file(path)
        storm.store.pipe_file(path, whole[: storm.rng.randrange(len(whole))])
