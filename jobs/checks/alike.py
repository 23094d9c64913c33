"""Versions and clocks, across the nodes of a cluster and the stores of a run."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from jobs.checks.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from jobs.checks.facts import Software
    from jobs.checks.nodes import Cluster

Bounds = tuple[float, float]
"""Seconds by which a clock is before the driver's, at least and at most."""

MUST_AGREE = ("scar-curate", "ray")

CLOCKS_SYNCHRONISED_SECONDS = 5.0
"""Machines that ask a time server agree within a tenth; more than this, and one of them does not.
Nothing of a run compares clocks: a lease is lost by standing still, by the watch of the one that
looks on, and runs are named in their order. Logs, events and the names of runs would mislead."""

SIGNED_REQUEST_SECONDS = 15 * 60.0
"""S3 refuses what was signed by a clock that is further off than this."""


def versions_finding(cluster: Cluster) -> Finding:
    """Whether all nodes run what the driver runs."""
    wrong: dict[str, list[str]] = defaultdict(list)
    other: dict[str, list[str]] = defaultdict(list)
    for node, facts in cluster.facts.items():
        name = cluster.by_id[node].name
        for what, is_fatal in _differences(cluster.driver, facts.software):
            (wrong if is_fatal else other)[what].append(name)
    for node, why in cluster.silent.items():
        wrong[why].append(cluster.by_id[node].name)
    mine = cluster.driver
    if wrong:
        return Finding(
            check="versions",
            status="failed",
            found=_by_node(wrong | other),
            next="Give every node one image, or one environment, with scar-curate installed.",
        )
    if other:
        return Finding(
            check="versions",
            status="warning",
            found=_by_node(other),
            next="Scores of one run may differ between nodes; give every node one image.",
        )
    packages = ", ".join(f"{name} {mine.packages.get(name, 'none')}" for name in MUST_AGREE)
    found = f"{packages}, Python {mine.python} on {_count(len(cluster.facts), 'node')}"
    return Finding(check="versions", status="ok", found=found)


def _differences(mine: Software, theirs: Software) -> Iterable[tuple[str, bool]]:
    """(difference, whether a run cannot bear it)."""
    if mine.python.rpartition(".")[0] != theirs.python.rpartition(".")[0]:
        yield f"Python {theirs.python}, here {mine.python}", True
    elif mine.python != theirs.python:
        yield f"Python {theirs.python}, here {mine.python}", False
    for name in {**mine.packages, **theirs.packages}:
        here, there = mine.packages.get(name), theirs.packages.get(name)
        if here != there:
            found = there or "is not installed"
            yield f"{name} {found}, here {here or 'none'}", name in MUST_AGREE
    same_release = mine.packages.get("scar-curate") == theirs.packages.get("scar-curate")
    if same_release and mine.code != theirs.code:
        yield "sources of scar-curate that differ from those here", True


def clocks_finding(nodes: Mapping[str, Bounds], stores: Mapping[str, Bounds]) -> Finding:
    """Whether the clocks of nodes, by name, and of stores, by scheme and place, agree.

    Only what is certain is held against a clock: that of a store is known to a second or two, that
    of a node to the time of a quick call.
    """
    refused = [
        f"{node} and {store} by {apart:,.0f} s"
        for store, ahead in stores.items()
        if "://" in store
        for node, of_node in {"the driver": (0.0, 0.0), **nodes}.items()
        if (apart := _apart(of_node, ahead)) > SIGNED_REQUEST_SECONDS
    ]
    if refused:
        return Finding(
            check="clocks",
            status="failed",
            found=f"clocks differ: {', '.join(refused)}",
            next="Stores refuse what was signed so far from their time; synchronise (chrony, NTP).",
        )
    off = {
        name: _apart((0.0, 0.0), ahead)
        for name, ahead in {**nodes, **stores}.items()
        if _apart((0.0, 0.0), ahead) > CLOCKS_SYNCHRONISED_SECONDS
    }
    if off:
        found = ", ".join(f"{name} by {seconds:,.0f} s" for name, seconds in off.items())
        return Finding(
            check="clocks",
            status="warning",
            found=f"clocks differ from the driver's: {found}",
            next="A run bears it, but times in its logs and names mislead; synchronise (chrony, "
            "NTP). Beyond 15 minutes stores refuse signed requests.",
        )
    known = [f"{_count(len(nodes), 'node')} within {_widest(nodes):.2g} s"] if nodes else []
    known += [f"{store} within {_widest({store: ahead}):.2g} s" for store, ahead in stores.items()]
    if not known:
        return Finding(check="clocks", status="skipped", found="no clock but the driver's was read")
    return Finding(check="clocks", status="ok", found=f"as the driver's: {', '.join(known)}")


def _apart(one: Bounds, other: Bounds) -> float:
    """Seconds by which two clocks differ for certain."""
    return max(0.0, one[0] - other[1], other[0] - one[1])


def _widest(ahead: Mapping[str, Bounds]) -> float:
    """Seconds by which any of these may differ from the driver's at most."""
    return max(max(abs(least), abs(most)) for least, most in ahead.values())


def _by_node(differences: Mapping[str, list[str]]) -> str:
    """Each difference with its nodes, of many the first."""
    told = []
    for what, names in differences.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        told.append(f"{names[0]}{more}: {what}")
    return "; ".join(told)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
