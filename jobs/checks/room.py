"""Actors, object store and disk: whether what the flags ask for is there, or can come."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobs.actors import ROUNDING, TASK_CPUS, parse_actors, room_on, room_on_node, takes_tasks
from jobs.checks.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jobs.actors import ActorConfig
    from jobs.checks.findings import Status
    from jobs.checks.nodes import Cluster
    from jobs.doctor import DoctorConfig

TOKEN_BYTES = 4
ROW_BYTES = 64
"""Of a row beside its tokens: hash, counts, offsets; 40 and some."""
UNITS_PER_ACTOR = 5
"""In an object store at a time: four that wait for an actor, Ray Data's most, and one read."""
FULL_DISK_RATIO = 0.95
"""Ray makes no more objects on a disk that is fuller than this."""
TEMPORARY_BYTES = 2**30
"""Of output files in the making, 256 MB each by default, one per CPU that writes; and a ranker."""


@dataclass(frozen=True, kw_only=True)
class Growth:
    """What an autoscaler may add."""

    at_work: bool
    """There is one."""
    groups: Sequence[tuple[Mapping[str, float], float]] = ()
    """(resources of a node, most of such nodes), where it tells them; most autoscalers do not."""


@dataclass(frozen=True, kw_only=True)
class ActorSize:
    """What one scoring actor asks Ray for."""

    kind: str
    amount: float
    share: float
    """As the flags say it: Ray is asked for a sliver less of CPUs."""

    @classmethod
    def of(cls, config: ActorConfig) -> ActorSize:
        """As `actors.scored_units` asks for it."""
        gpus = config.gpus_per_actor
        if gpus > 0:
            return cls(kind="GPU", amount=gpus, share=gpus)
        return cls(kind="CPU", amount=config.reserved_cpus, share=config.cpus_per_actor)

    def free(self, available: Mapping[str, float]) -> int:
        """How many what is not in use is for, were it all in one place."""
        return math.floor(available.get(self.kind, 0.0) / self.amount + ROUNDING)

    def __str__(self) -> str:
        """For people."""
        return f"{self.share:g} {self.kind}{'' if self.share == 1 else 's'}"


def growth() -> Growth:
    """What the connected cluster's autoscaler, if it has one, tells of itself.

    Ray has no public call for it. These are what Ray Data and `ray status` ask.
    """
    import ray  # noqa: PLC0415 - `--help` must not wait for Ray
    from ray.autoscaler.v2.sdk import get_cluster_status  # noqa: PLC0415
    from ray.experimental import internal_kv  # noqa: PLC0415

    config = ray._private.state.state.get_cluster_config()  # noqa: SLF001
    if config is not None and config.node_group_configs:
        groups = [
            (dict(group.resources), math.inf if group.max_count < 0 else group.max_count)
            for group in config.node_group_configs
        ]
        return Growth(at_work=True, groups=groups)
    status = get_cluster_status(ray.get_runtime_context().gcs_address)
    names = {node.ray_node_type_name for node in (*status.active_nodes, *status.idle_nodes)}
    first_version = internal_kv._internal_kv_get("__autoscaling_status")  # noqa: SLF001
    if first_version is not None:
        report = json.loads(first_version).get("autoscaler_report") or {}
        names = {*report.get("active_nodes", ()), *(report.get("idle_nodes") or ())}
    # Where nobody adds nodes Ray still reports them, each as a kind of its own.
    return Growth(at_work=any(not name.startswith("node_") for name in names))


def resources_finding(
    config: ActorConfig,
    nodes: Sequence[Mapping[str, float]],
    available: Mapping[str, float],
    growth: Growth,
    *,
    own_ray: bool,
) -> Finding:
    """Whether the actors that are asked for have room, beside those that read for them.

    Args:
        config: what is asked for.
        nodes: what each living node has.
        available: what of all that is not in use.
        growth: what may be added.
        own_ray: the run would start a Ray of its own, which never grows.
    """
    size = ActorSize.of(config)
    room = room_on(config, nodes)
    wanted = (parse_actors(config.actors) or (1, 1))[0]
    free = size.free(available)
    has = f"{sum(node.get(size.kind, 0.0) for node in nodes):g} {size.kind}s"
    beside = " beside readers" if size.kind == "CPU" else ""
    status: Status = "ok"
    found, advice = f"room for {room:,} on {has}{beside}", ""
    if not _takes_tasks(nodes, growth):
        status = "failed"
        found = f"no node has {TASK_CPUS:g} CPU, and all work but scoring waits for one for ever"
        advice = "Add a node with CPUs, or give the nodes with GPUs a --num-cpus above 0."
    elif room < wanted and own_ray:
        status, found = "failed", f"{found}; {wanted:,} wanted, and the run refuses to start"
        advice = "Ask for fewer actors or a smaller share."
    elif room < wanted:
        status, found, advice = _too_few(config, f"{found}; {wanted:,} wanted", room, growth)
    elif free < wanted:
        status = "warning"
        found = f"{found}, for {free:,} of them beside what runs there now"
        advice = "Wait for the other jobs, or start with fewer actors."
    named = f"--actors {config.actors} with {size} each: {found}"
    return Finding(check="resources", status=status, found=named, next=advice)


def _takes_tasks(nodes: Sequence[Mapping[str, float]], growth: Growth) -> bool:
    """Whether what reads and writes finds a node now, or one that may come."""
    there = [*nodes, *(node for node, most in growth.groups if most > 0)]
    unknown = growth.at_work and not growth.groups
    return unknown or any(map(takes_tasks, there))


def _too_few(config: ActorConfig, found: str, room: int, growth: Growth) -> tuple[Status, str, str]:
    """(status, what was found, what next) where not all actors have room now."""
    if growth.groups:
        wanted = (parse_actors(config.actors) or (1, 1))[0]
        # Of each kind as many nodes as would do, for their number may have no limit.
        grown = [node for node, count in growth.groups for _ in range(int(min(count, wanted + 1)))]
        most = room_on(config, grown)
        if most >= wanted:
            return "ok", f"{found}; the autoscaler may add the rest", ""
        found = f"{found}; {most:,} when the autoscaler has added all it may"
        status: Status = "warning" if max(most, room) >= 1 else "failed"
        return status, found, "Raise the limits of the cluster's groups, or ask for less."
    if growth.at_work:
        advice = (
            "An autoscaler is at work, but does not tell its limits: look whether a group of the "
            "cluster has nodes of that size, and enough of them."
        )
        return "warning", found, advice
    if room >= 1:
        return "warning", f"{found}, and no autoscaler", "A run starts with fewer, or ask for less."
    return (
        "failed",
        f"{found}, and no autoscaler: a run would wait for ever",
        "Add a node that has room for one actor, or ask for smaller ones.",
    )


def object_store_finding(config: DoctorConfig, cluster: Cluster) -> Finding:
    """Whether each node's object store holds the units on their way to its actors."""
    # Two texts a row, each cut to so many tokens: rows of any length are no larger than this.
    unit_bytes = config.unit_rows * (2 * TOKEN_BYTES * config.max_tokens + ROW_BYTES)
    bounds = parse_actors(config.actors)
    short, slow = [], []
    for node in cluster.nodes:
        actors = min(room_on_node(config, node.resources), bounds[1] if bounds else sys.maxsize)
        needed = unit_bytes * UNITS_PER_ACTOR * max(1, actors)
        if node.works and node.store_bytes < needed:
            short.append(f"{node.name} has {_mib(node.store_bytes)}, wants {_mib(needed)}")
        facts = cluster.facts.get(node.id)
        shared = facts.shared_memory_bytes if facts else None
        if node.works and shared is not None and shared < node.store_bytes:
            slow.append(f"{node.name} has {_mib(shared)} of /dev/shm for {_mib(node.store_bytes)}")
    if short:
        return Finding(
            check="object store",
            status="warning",
            found=f"too small for {UNITS_PER_ACTOR} units an actor: {_some(short)}",
            next="It spills to disk: slower. Give Ray more (--object-store-memory), or lower "
            "--unit-rows.",
        )
    if slow:
        return Finding(
            check="object store",
            status="warning",
            found=f"shared memory is smaller than the object store: {_some(slow)}",
            next="Ray then keeps objects in files on disk: slower. Give containers more /dev/shm "
            "(docker --shm-size, an emptyDir of medium Memory).",
        )
    least = min((node.store_bytes for node in cluster.nodes if node.works), default=0.0)
    found = f"{_mib(least)} a node or more; a unit of the longest rows takes {_mib(unit_bytes)}"
    return Finding(check="object store", status="ok", found=found)


def disk_finding(cluster: Cluster) -> Finding:
    """Whether each node's disks take what its object store may spill, and files in the making."""
    full, tight, free = [], [], []
    for node_id, facts in cluster.facts.items():
        node = cluster.by_id[node_id]
        for disk, needed in (
            (facts.spill, node.store_bytes),
            (facts.temporary, float(TEMPORARY_BYTES)),
        ):
            usable = disk.free_bytes - (1 - FULL_DISK_RATIO) * disk.total_bytes
            free.append(usable)
            told = f"{node.name} has {_gib(max(0.0, usable))} left in {disk.folder}"
            if usable <= 0:
                full.append(told)
            elif usable < needed:
                tight.append(f"{told}, wants {_gib(needed)}")
    if full:
        return Finding(
            check="disk",
            status="failed",
            found=f"as good as full: {_some(full)}",
            next="Ray stores nothing on a disk that is fuller than 95 %: make room, or lead "
            "--temp-dir and TMPDIR to a larger disk.",
        )
    if tight:
        return Finding(
            check="disk",
            status="warning",
            found=f"little is left: {_some(tight)}",
            next="What an object store spills, and output files in the making, must fit there.",
        )
    if not free:
        return Finding(check="disk", status="skipped", found="no node answered")
    return Finding(check="disk", status="ok", found=f"{_gib(min(free))} or more left on each node")


def _some(told: Sequence[str]) -> str:
    """The first of them, and how many more there are."""
    return told[0] + (f" (and {len(told) - 1} more)" if len(told) > 1 else "")


def _mib(size: float) -> str:
    return f"{size / 2**20:,.0f} MiB"


def _gib(size: float) -> str:
    return f"{size / 2**30:,.1f} GiB"
