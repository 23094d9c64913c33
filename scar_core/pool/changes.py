"""What became of a pool's files between two runs.

A file is the same where its fingerprint is, which a move from folder to folder keeps. What was
written anew under the same path is changed, even if it holds the same rows.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

Fate = Literal["same", "changed", "new", "removed"]
"""What became of the file of some rows."""


@dataclass(frozen=True, kw_only=True)
class FileChanges:
    """The files of two pools, matched."""

    same: dict[str, str]
    """By path before the path now, of files with one fingerprint."""
    changed: frozenset[str]
    """Paths of other files before and now."""
    new: frozenset[str]
    """Paths now."""
    removed: frozenset[str]
    """Paths before."""

    @property
    def moved(self) -> int:
        """How many of the same files have another path now."""
        return sum(now != before for before, now in self.same.items())

    def fate_before(self, path: str) -> Fate:
        """What became of a file of the run before."""
        if path in self.same:
            return "same"
        return "changed" if path in self.changed else "removed"

    def fate_now(self, path: str) -> Fate:
        """What a file of the later run is to the one before."""
        if path in self.changed:
            return "changed"
        return "new" if path in self.new else "same"


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
            same[lost[now[path]].pop()] = path
    gone = before.keys() - same.keys()
    come = now.keys() - set(same.values())
    return FileChanges(
        same=same,
        changed=frozenset(gone & come),
        new=frozenset(come - gone),
        removed=frozenset(gone - come),
    )
