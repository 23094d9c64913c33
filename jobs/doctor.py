"""Doctor: a run's flags, held against the cluster and the stores before anything is paid for."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections import Counter
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from jobs import cli
from jobs.checks.alike import clocks_finding, versions_finding
from jobs.checks.findings import Finding, finding_of
from jobs.checks.looks import LATE_SECONDS, clocks_of_stores, look_around, taken_away
from jobs.checks.nodes import asked, available_resources, dismiss, probe, reached
from jobs.checks.places import Visit, visits_finding
from jobs.checks.ranking import ranker_finding, start_ranker
from jobs.checks.room import disk_finding, growth, object_store_finding, resources_finding
from jobs.curate import CurateConfig
from jobs.score import ScoreConfig
from scar_core.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from jobs.checks.findings import Status
    from jobs.checks.looks import Look
    from jobs.checks.nodes import Cluster
    from jobs.checks.places import Tried

logger = logging.getLogger("scar_curate")

LEFT_ADVICE = "Remove it, or let the bucket's lifecycle: its name starts with .scar-"

ADVICE = {
    "pool": "Check --pool and the access to it.",
    "ranker": "Check --ranker and the access to it.",
    "out": "Check --out and the access to it.",
}


@dataclass(frozen=True, kw_only=True)
class DoctorConfig(CurateConfig):
    """Check what a `curate` with the same flags would meet; what is not given is not checked."""

    pool: list[str] = field(default_factory=list)
    """Files, folders and globs; one or several. Of each a file is read."""
    ranker: str = ""
    """Ranker directory, or the hub name of one; it is loaded on an actor, and scores one pair."""
    out: str = ""
    """Directory of the curation; a small file is put there, and taken away again."""
    keep: str = ""
    """Not needed; as for curate."""
    check_seconds: float = 20.0
    """Most seconds that one check may take, above 0; one that takes longer has failed."""
    json: bool = False
    """Print one JSON object instead of lines."""

    def __post_init__(self) -> None:
        """Check what is given as `curate` would."""
        if self.keep:
            CurateConfig.__post_init__(self)
        else:
            ScoreConfig.__post_init__(self)
        if not self.check_seconds > 0:
            raise ValueError(f"check_seconds must be above 0, got {self.check_seconds:g}")


def diagnose(config: DoctorConfig) -> Iterator[Finding]:
    """One finding a check, as soon as it and those before it are known.

    Nothing stays behind but what a store does not let us remove, which is told.
    """
    looks: list[Look] = []
    try:
        looks.extend(look_around(config))
        yield from _findings(config, looks)
    except BaseException:  # Ctrl-C, too
        if left := taken_away(looks, seconds=LATE_SECONDS):
            logger.warning("Left behind: %s. %s", left, LEFT_ADVICE)
        raise
    if left := taken_away(looks, seconds=config.check_seconds):
        yield Finding(check="left behind", status="warning", found=left, next=LEFT_ADVICE)


def _findings(config: DoctorConfig, looks: Sequence[Look]) -> Iterator[Finding]:
    """All of them, while the files that were put lie there."""
    tried: dict[str, Tried] = {}
    with reached(seconds=config.check_seconds) as (ray_found, cluster):
        yield ray_found
        if cluster is None:
            yield from _without_cluster()
            yield from _from_here(config, looks, tried)
        else:
            yield from _with_cluster(config, cluster, looks, tried)


def _from_here(
    config: DoctorConfig, looks: Sequence[Look], tried: dict[str, Tried]
) -> Iterator[Finding]:
    """The places from the driver; what came of them is put into `tried`."""
    for name in ("pool", "ranker", "out"):
        if not getattr(config, name):
            yield _not_given(name, f"no --{name} is given")

    def found(look: Look) -> Finding:
        result = tried[look.name] = look.work.result()
        status: Status = "warning" if result.warning else "ok"
        return Finding(check=look.name, status=status, found=result.found, next=result.warning)

    for look in looks:
        yield finding_of(look.name, partial(found, look), then=ADVICE.get(look.name, ""))


def _with_cluster(
    config: DoctorConfig, cluster: Cluster, looks: Sequence[Look], tried: dict[str, Tried]
) -> Iterator[Finding]:
    """All that needs Ray; the ranker is loaded meanwhile, for it takes longest."""
    until = time.monotonic() + config.check_seconds
    resources = [node.resources for node in cluster.nodes]
    available = available_resources(cluster)
    started = start_ranker(config, resources, available) if config.ranker else None
    try:
        probe(cluster, seconds=config.check_seconds)
        yield versions_finding(cluster)
        yield finding_of(
            "resources",
            lambda: resources_finding(
                config, resources, available, growth(), own_ray="RAY_ADDRESS" not in os.environ
            ),
        )
        yield object_store_finding(config, cluster)
        yield disk_finding(cluster)
        yield from _from_here(config, looks, tried)
        yield clocks_finding(
            {cluster.by_id[node].name: ahead for node, ahead in cluster.ahead_seconds.items()},
            clocks_of_stores(looks, tried),
        )
        yield from _from_nodes(config, cluster, looks, tried)
        if started is None:
            yield _not_given("ranker scores", "no --ranker is given")
        else:
            yield ranker_finding(config, started, until=until)
    finally:
        dismiss(cluster.probes | ({} if started is None else {"ranker": started.actor}))


def _from_nodes(
    config: DoctorConfig, cluster: Cluster, looks: Sequence[Look], tried: Mapping[str, Tried]
) -> Iterator[Finding]:
    """The same places from every node that works: a finding for each place."""
    tasks = [
        Visit.of(look.name, tried[look.name], look.folder or None)
        for look in looks
        if look.name in tried and (tried[look.name].sample or tried[look.name].trial)
    ]
    awake = {
        node: actor
        for node, actor in cluster.probes.items()
        if node in cluster.facts and cluster.by_id[node].works
    }
    seconds = config.check_seconds
    answers, faults = asked(
        awake,
        lambda actor: actor.visits.remote(tasks, seconds),
        # Each place has its own limit there; this one is for a node that is lost meanwhile.
        until=time.monotonic() + seconds + LATE_SECONDS,
    )
    visited = {task.place for task in tasks}
    for look in looks:
        check = f"{look.name} from nodes"
        if look.name not in visited:
            known = look.name in tried
            why = "there is no file to compare" if known else f"see {look.name}"
            yield Finding(check=check, status="skipped", found=why)
            continue
        outcomes = {node: outcome[look.name] for node, outcome in answers.items()}
        outcomes |= {node: (False, fault) for node, fault in faults.items()}
        named = {cluster.by_id[node].name: outcome for node, outcome in outcomes.items()}
        yield visits_finding(check, named, wrote=bool(look.folder))


def _without_cluster() -> Iterator[Finding]:
    """The checks that need Ray."""
    for check in ("versions", "resources", "object store", "disk", "clocks", "ranker scores"):
        yield Finding(check=check, status="skipped", found="Ray is not reached")


def _not_given(check: str, why: str) -> Finding:
    return Finding(check=check, status="skipped", found=why)


def job(argv: Sequence[str]) -> None:
    """Parse, check, print.

    Raises:
        InputError: a check failed.
    """
    config = cli.parse(DoctorConfig, argv, prog="jobs.doctor", description=__doc__ or "")
    started = time.monotonic()
    findings = []
    out = sys.stdout
    with redirect_stdout(sys.stderr):  # Ray prints there that a node was lost, say
        for finding in diagnose(config):
            findings.append(finding)
            if not config.json:
                print(finding, flush=True, file=out)
    counts = Counter(finding.status for finding in findings)
    seconds = time.monotonic() - started
    if config.json:
        result = {
            "version": 1,
            "seconds": round(seconds, 1),
            "counts": counts,
            "checks": [asdict(finding) for finding in findings],
        }
        print(json.dumps(result))  # noqa: T201 - as above
    if counts["failed"]:
        failed = ", ".join(finding.check for finding in findings if finding.status == "failed")
        raise InputError(
            f"{counts['failed']} of {len(findings)} checks failed: {failed}. A run with these "
            "flags would fail or hang; each line above says what to do."
        )
    logger.info("%s in %.0f s", ", ".join(f"{n} {status}" for status, n in counts.items()), seconds)


if __name__ == "__main__":
    sys.exit(cli.run_job(job))
