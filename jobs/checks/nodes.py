"""Ray, and a probe on each node of its cluster."""

from __future__ import annotations

import logging
import math
import os
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jobs import cli, pipeline
from jobs.checks.facts import facts_here, software_here
from jobs.checks.findings import Finding, Held, Limited, finding_of, told
from jobs.checks.places import visits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from jobs.checks.facts import Facts, Software
    from jobs.checks.places import Visit

PINGS = 5
IN_TIME = "no answer in time (--check-seconds)"
SETTLE_SECONDS = 2.0
"""A node has joined, or an actor is gone, for as long before Ray counts what is free."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """A living node, as Ray lists it."""

    id: str
    name: str
    """Its address; with a part of its id where several share one."""
    resources: Mapping[str, float]

    @property
    def store_bytes(self) -> float:
        """Of its object store."""
        return self.resources.get("object_store_memory", 0.0)

    @property
    def works(self) -> bool:
        """Whether tasks or actors of a run can be on it."""
        return self.resources.get("CPU", 0.0) > 0 or self.resources.get("GPU", 0.0) > 0


@dataclass(kw_only=True)
class Cluster:
    """A cluster that is reached, and a probe on each of its nodes."""

    nodes: list[Node]
    driver: Software
    probes: dict[str, Any] = field(default_factory=dict)
    """Actors, by node id."""
    facts: dict[str, Facts] = field(default_factory=dict)
    """By node id; of those that answered."""
    ahead_seconds: dict[str, tuple[float, float]] = field(default_factory=dict)
    """By node id, a node's clock before ours, at least and at most."""
    silent: dict[str, str] = field(default_factory=dict)
    """By node id why a probe has not answered."""

    @property
    def by_id(self) -> dict[str, Node]:
        """The nodes."""
        return {node.id: node for node in self.nodes}


class NodeProbe:
    """What looks around on a node; one call after the other."""

    def facts(self) -> Facts:
        """What there is."""
        return facts_here()

    def now(self) -> float:
        """The node's clock."""
        return time.time()

    def visits(self, tasks: list[Visit], seconds: float) -> dict[str, tuple[bool, str]]:
        """As `places.visits`, from this node."""
        return visits(tasks, seconds=seconds)


@contextmanager
def reached(*, seconds: float) -> Iterator[tuple[Finding, Cluster | None]]:
    """Ray as a run would reach it, for the length of a block; None where it cannot be."""
    # Ray says at length that no signal handler is set in a thread, and needs none here.
    logging.getLogger("ray._private.worker").setLevel(logging.ERROR)
    connection = Held(cli.connected(quiet=True))
    address = os.environ.get("RAY_ADDRESS")
    where = f"the cluster at {address}" if address else "a Ray of this machine"
    clusters: list[Cluster] = []

    def look() -> Finding:
        connection.entered(seconds=seconds)
        clusters.append(Limited(_cluster, seconds=seconds).result())
        return _reached(where, clusters[0])

    advice = (
        "Check RAY_ADDRESS, the network between, and that Ray runs there; this machine must be one "
        "of its nodes, and needs its token (RAY_AUTH_MODE=token)."
        if address
        else "See the log in Ray's folder (/tmp/ray/session_latest/logs)."
    )
    finding = finding_of("ray", look, then=advice)
    if finding.status == "failed":
        found = f"{where} is not reached: {finding.found}"
        finding = Finding(check="ray", status="failed", found=found, next=finding.next)
        clusters.clear()
    try:
        yield finding, clusters[0] if clusters else None
    finally:
        connection.leave()


def _cluster() -> Cluster:
    import ray  # noqa: PLC0415 - as above

    alive = [node for node in ray.nodes() if node["Alive"]]
    addresses = [node["NodeManagerAddress"] for node in alive]
    nodes = [
        Node(
            id=node["NodeID"],
            name=address if addresses.count(address) == 1 else f"{address}/{node['NodeID'][:6]}",
            resources=node["Resources"],
        )
        for node, address in zip(alive, addresses, strict=True)
    ]
    return Cluster(nodes=nodes, driver=software_here())


def _reached(where: str, cluster: Cluster) -> Finding:
    """Ray itself refuses a driver of another version than the head's."""
    total = {
        kind: sum(node.resources.get(kind, 0.0) for node in cluster.nodes)
        for kind in ("CPU", "GPU")
    }
    many = f"{len(cluster.nodes)} node{'s' if len(cluster.nodes) > 1 else ''}"
    found = f"{where}: {many}, {total['CPU']:g} CPUs, {total['GPU']:g} GPUs"
    if not any(node.works for node in cluster.nodes):
        advice = "Add a worker; a cluster that scales from zero adds one when a run asks for it."
        return Finding(check="ray", status="warning", found=f"{found}; none works", next=advice)
    return Finding(check="ray", status="ok", found=found)


def available_resources(cluster: Cluster) -> dict[str, float]:
    """What of the cluster's CPUs and GPUs is not in use, as soon as Ray knows."""
    import ray  # noqa: PLC0415 - as above

    kinds = ("CPU", "GPU")
    total = {kind: sum(node.resources.get(kind, 0.0) for node in cluster.nodes) for kind in kinds}
    until = time.monotonic() + SETTLE_SECONDS
    while True:
        available: dict[str, float] = ray.available_resources()
        all_free = all(available.get(kind, 0.0) >= total[kind] for kind in kinds)
        if all_free or time.monotonic() > until:
            return available
        time.sleep(0.1)


def probe(cluster: Cluster, *, seconds: float) -> None:
    """Start a probe on each node, and note what it sees, and its clock, or why it does not."""
    import ray  # noqa: PLC0415 - as above
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: PLC0415

    actor = ray.remote(pipeline.with_access(NodeProbe))
    for node in cluster.nodes:
        there = NodeAffinitySchedulingStrategy(node_id=node.id, soft=False)
        cluster.probes[node.id] = actor.options(num_cpus=0, scheduling_strategy=there).remote()
    until = time.monotonic() + seconds
    cluster.facts, cluster.silent = asked(
        cluster.probes, lambda actor: actor.facts.remote(), until=until
    )
    for _ in range(PINGS):
        for node_id in cluster.facts.keys() - cluster.silent.keys():
            _ping(cluster, node_id, until=until)


def _ping(cluster: Cluster, node: str, *, until: float) -> None:
    """Ask a node for its time: it was told between the call and the answer."""
    before = time.time()
    times, silent = asked(
        {node: cluster.probes[node]}, lambda actor: actor.now.remote(), until=until
    )
    after = time.time()
    cluster.silent |= silent
    if times:
        least, most = cluster.ahead_seconds.get(node, (-math.inf, math.inf))
        ahead = max(least, times[node] - after), min(most, times[node] - before)
        cluster.ahead_seconds[node] = ahead


def asked(
    actors: Mapping[str, Any], call: Callable[[Any], Any], *, until: float
) -> tuple[dict[str, Any], dict[str, str]]:
    """What actors answer to a call by the time, and why the others do not, by their names."""
    import ray  # noqa: PLC0415 - as above

    refs = {call(actor): name for name, actor in actors.items()}
    seconds = max(0.1, until - time.monotonic())
    ready, late = ray.wait(list(refs), num_returns=len(refs), timeout=seconds) if refs else ([], [])
    answers, faults = {}, {refs[ref]: IN_TIME for ref in late}
    for ref in ready:
        try:
            answers[refs[ref]] = ray.get(ref)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what was found
            faults[refs[ref]] = told(error)
    return answers, faults


def dismiss(actors: Mapping[str, Any]) -> None:
    """End actors, also those that hang."""
    import ray  # noqa: PLC0415 - as above

    for actor in actors.values():
        ray.kill(actor)
