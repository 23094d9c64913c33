"""The selected rows whose content the run before had not selected, wherever it lay.

split_part   rows that a run selected    →  their contents, by ranges of the hash
meet_range   a range of both selections  →  contents that are selected now alone, by file
take_part    rows selected now           →  those of them that are new, as such a file again

What they pass on lies in files below the run's directory until the rows are written: no more than
32 bytes a row, on no driver; a task holds the contents of one file, or of one range.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from jobs import pipeline
from jobs.before import Before, Gone, check_since
from jobs.compare_stages import read_before
from jobs.find_copies import READ_THREADS
from scar_core import storage
from scar_core.manifest import MANIFEST_NAME
from scar_core.selection import picked as rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from scar_core.selection.picked import Picked

# Contents that one task holds: 32 MB, some copies of it while it sorts.
RANGE_ROWS = 2_000_000


@dataclass(frozen=True, kw_only=True)
class Against:
    """What to hold a selection against."""

    before: Before | Gone | None = None
    """The run that `latest.json` named; None where nothing was published before."""
    only_new: bool = False
    """Whether only rows that are new, by content, are written."""

    def __post_init__(self) -> None:
        """Refuse what cannot be told."""
        if self.only_new:
            check_since(self.before)

    def to_write(self, picked: Sequence[Picked], *, exchange: str) -> list[Picked]:
        """The rows to write of a selection.

        Raises:
            InputError: what was selected before cannot be read.
        """
        if not self.only_new or not isinstance(self.before, Before):
            return list(picked)
        rows_before = sum(entry["rows"] for entry in self.before.picked)
        return find_new(self.before.urls, picked, folder=exchange, rows_before=rows_before)

    def inputs(self, folder: str) -> list[dict[str, Any]]:
        """For the manifest of a run in a folder: the run that decided what is left out."""
        if not self.only_new or not isinstance(self.before, Before):
            return []
        manifest = storage.join(self.before.folder, MANIFEST_NAME)
        return [
            {
                "kind": "selection",
                "manifest": storage.portable(manifest, base=folder),
                "sha256": sha256(storage.read_bytes(manifest)).hexdigest(),
            }
        ]

    def counts(self, selected: int, written: Sequence[Picked]) -> dict[str, int]:
        """For the manifest, where rows may be left out: selected = written + known."""
        if not self.only_new:
            return {}
        new = sum(int(part.rows_U.sum()) for part in written)
        return {"written": new, "known": selected - new}


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """Who gives what to whom."""

    folder: str
    before: tuple[str, ...]
    """Files of rows selected before."""
    now: tuple[Picked, ...]
    ranges: int

    def contents(self, number: int) -> str:
        """The contents of a file; a batch for each range. First come those of before."""
        return storage.join(self.folder, f"news/contents-{number:06d}.arrow")

    def new(self, range_: int) -> str:
        """What is new in a range; a batch for each file of now."""
        return storage.join(self.folder, f"news/new-{range_:06d}.arrow")


def find_new(
    before: Sequence[str], now: Sequence[Picked], *, folder: str, rows_before: int
) -> list[Picked]:
    """The rows selected now whose content was not selected before, in files below a folder.

    Two rows of one content that are both new are both there.
    """
    rows_now = sum(int(part.rows_U.sum()) for part in now)
    exchange = Exchange(
        folder=folder,
        before=tuple(before),
        now=tuple(now),
        ranges=1 + (rows_before + rows_now) // RANGE_ROWS,
    )
    files = range(len(before) + len(now))
    for stage, items in ((split_part, files), (meet_range, range(exchange.ranges))):
        for _ in pipeline.run(stage, items, exchange=exchange):
            pass
    found = pipeline.run(take_part, range(len(now)), exchange=exchange)
    return sorted((part for some in found for part in some), key=lambda part: part.url)


def split_part(number: int, *, exchange: Exchange) -> None:
    """Give each range the contents of a file."""
    if number < len(exchange.before):
        table = read_before(exchange.before[number], ["content_hash"])
    else:
        url = exchange.now[number - len(exchange.before)].url
        table = rows.read_picked(url, ["content_hash"])
    contents = rows.contents_of(table, ranges=exchange.ranges)
    rows.write_contents(exchange.contents(number), contents)


def meet_range(range_: int, *, exchange: Exchange) -> None:
    """Tell which contents of a range are new, by file of now."""
    files = range(len(exchange.before) + len(exchange.now))
    parts = _read([exchange.contents(number) for number in files], range_)
    before, now = parts[: len(exchange.before)], parts[len(exchange.before) :]
    rows.write_contents(exchange.new(range_), rows.new_contents(before, now))


def take_part(index: int, *, exchange: Exchange) -> list[Picked]:
    """Write the new rows of a file."""
    part = exchange.now[index]
    new = _read([exchange.new(range_) for range_ in range(exchange.ranges)], index)
    path = f"news/{part.url.rpartition('/')[2]}"
    return rows.narrow(part, new, folder=exchange.folder, path=path)


def _read(paths: Sequence[str], index: int) -> list[NDArray[np.bytes_]]:
    with ThreadPoolExecutor(READ_THREADS) as threads:
        return list(threads.map(partial(rows.read_contents, index=index), paths))
