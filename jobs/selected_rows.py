"""A published selection, opened: what it was made from, and whether a row is among its rows."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.before import Before, check_picked
from scar_core import storage
from scar_core.manifest import follow_pointer, read_manifest
from scar_core.selection.order import values_of
from scar_core.selection.picked import read_picked, rows_by_path
from scar_core.store_checks import check_readable

if TYPE_CHECKING:
    from numpy.typing import NDArray


def open_selection(run: str) -> Before:
    """A published selection, or the newest one below a directory.

    Raises:
        InputError: no selection is published there, or its lists of rows are not as they were.
    """
    asked = storage.absolute(run)
    check_readable([asked])
    folder = follow_pointer(asked) or asked
    selection = Before(folder=folder, manifest=read_manifest(folder, kind="selection"))
    check_picked(selection)
    return selection


@dataclass
class SelectedRows:
    """Asks whether rows were selected; reads a list of rows once."""

    selection: Before
    _read: dict[str, dict[str, tuple[NDArray[np.int64], NDArray[np.float32]]]] = field(
        default_factory=dict
    )

    def score_of(self, path: str, row: int) -> float | None:
        """The score that a row was selected with; None where it was not."""
        entries = self.selection.picked
        starts = [(entry["pool_file"], entry["row_start"]) for entry in entries]
        index = bisect_right(starts, (path, row)) - 1
        if index < 0:
            return None
        rows_M, scores_M = self._listed(entries[index]).get(path, (None, None))
        if rows_M is None or scores_M is None:
            return None
        at = int(np.searchsorted(rows_M, row))
        return float(scores_M[at]) if at < len(rows_M) and rows_M[at] == row else None

    def _listed(
        self, entry: dict[str, Any]
    ) -> dict[str, tuple[NDArray[np.int64], NDArray[np.float32]]]:
        name = entry["path"]
        if name not in self._read:
            table = read_picked(storage.join(self.selection.folder, name), ["path", "row", "score"])
            scores_M = values_of(table["score"].combine_chunks(), np.float32)
            done, found = 0, {}
            for path, rows_M in rows_by_path(table):
                found[path] = (rows_M, scores_M[done : done + len(rows_M)])
                done += len(rows_M)
            self._read[name] = found
        return self._read[name]
