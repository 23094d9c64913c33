"""What became of a pool between two runs: files new, changed, removed; rows that are in both.

A file is the same where its fingerprint is, which a move from folder to folder keeps. What was
written anew under the same path is changed, even if it holds the same rows.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Literal, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from scar_core.pool.units import Unit

Fate = Literal["same", "changed", "new", "removed"]
"""What became of the file of some rows."""


class OfUnit(Protocol):
    """Anything that belongs to a unit."""

    @property
    def unit(self) -> Unit:
        """Which."""


Item = TypeVar("Item", bound=OfUnit)


@dataclass(frozen=True, kw_only=True)
class FileChanges:
    """The files of two pools, matched."""

    same: dict[str, str]
    """By path now the path before, of files with one fingerprint."""
    changed: frozenset[str]
    """Paths of other files before and now."""
    new: frozenset[str]
    """Paths now."""
    removed: frozenset[str]
    """Paths before."""

    @property
    def moved(self) -> int:
        """How many of the same files have another path now."""
        return sum(now != before for now, before in self.same.items())


@dataclass(frozen=True, kw_only=True)
class Segment(Generic[Item]):
    """The same rows as units of both runs, or units of one of them alone."""

    fate: Fate
    before: tuple[Item, ...]
    """Consecutive units; none where the file is not in the run."""
    now: tuple[Item, ...]

    @property
    def rows(self) -> int:
        """Rows to be read of either, whichever are more."""
        return max(sum(item.unit.rows for item in side) for side in (self.before, self.now))


def match_files(before: Mapping[str, str], now: Mapping[str, str]) -> FileChanges:
    """Match files by path, then by fingerprint.

    Args:
        before: fingerprints by path.
        now: the same of the later run.
    """
    same = {path: path for path, fingerprint in now.items() if before.get(path) == fingerprint}
    lost: dict[str, list[str]] = defaultdict(list)
    for path in sorted(before.keys() - same.keys(), reverse=True):
        lost[before[path]].append(path)
    for path in sorted(now.keys() - same.keys()):
        if lost[now[path]]:  # several copies: in the order of their paths
            same[path] = lost[now[path]].pop()
    gone = before.keys() - set(same.values())
    come = now.keys() - same.keys()
    return FileChanges(
        same=same,
        changed=frozenset(gone & come),
        new=frozenset(come - gone),
        removed=frozenset(gone - come),
    )


def segments(
    changes: FileChanges, before: Sequence[Item], now: Sequence[Item]
) -> Iterator[Segment[Item]]:
    """Every unit of both runs once: those of the same rows together, the others by themselves.

    A file that is the same may be cut into other units: then as few of them as share both edges
    stand together.

    Args:
        changes: of the files.
        before: what belongs to the units of the run before, in (path, row) order.
        now: the same of the later run.
    """
    earlier, later = _by_path(before), _by_path(now)
    for path, items in later.items():
        if path in changes.same:
            yield from _aligned(earlier.pop(changes.same[path]), items)
        else:
            fate: Fate = "changed" if path in changes.changed else "new"
            yield from (Segment(fate=fate, before=(), now=(item,)) for item in items)
    for path, items in earlier.items():
        fate = "changed" if path in changes.changed else "removed"
        yield from (Segment(fate=fate, before=(item,), now=()) for item in items)


def _by_path(items: Sequence[Item]) -> dict[str, list[Item]]:
    found: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        found[item.unit.path].append(item)
    return found


def _aligned(before: list[Item], now: list[Item]) -> Iterator[Segment[Item]]:
    """Units of one file in two cuts, in the smallest groups that end at the same row."""
    edges = {_stop(item.unit) for item in before} & {_stop(item.unit) for item in now}
    remaining = iter(before)
    group: list[Item] = []
    for item in now:
        group.append(item)
        edge = _stop(item.unit)
        if edge in edges:
            partners = []
            for partner in remaining:
                partners.append(partner)
                if _stop(partner.unit) == edge:
                    break
            yield Segment(fate="same", before=tuple(partners), now=tuple(group))
            group = []


def _stop(unit: Unit) -> int:
    return unit.row_start + unit.rows
