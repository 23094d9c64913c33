"""The run that `latest.json` named when this one started, and what it said of itself."""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np

from scar_core import storage
from scar_core.errors import AccessError, InputError, StoreError
from scar_core.manifest import MANIFEST_NAME, follow_pointer, read_manifest

if TYPE_CHECKING:
    from numpy.typing import NDArray

SPREAD_NAME = "spread.json"


@dataclass(frozen=True, kw_only=True)
class Before:
    """A selection that was published before this run started."""

    folder: str
    manifest: dict[str, Any]

    @property
    def selected(self) -> int:
        """Rows of the selection."""
        return int(self.manifest["counts"]["selected"])

    @property
    def picked(self) -> list[dict[str, Any]]:
        """The files that list its rows, as its manifest has them, in (path, row) order."""
        return list(self.manifest.get("picked", ()))

    @property
    def urls(self) -> list[str]:
        """Where they are."""
        return [storage.join(self.folder, entry["path"]) for entry in self.picked]

    def read_scores(self) -> dict[str, Any]:
        """The manifest of the scores that it was made from.

        Raises:
            InputError: it is gone, or another one.
        """
        made_from = self.manifest["inputs"][0]
        folder = storage.locate(made_from["manifest"], base=self.folder).rpartition("/")[0]
        scores = read_manifest(folder, kind="scores")
        data = storage.read_bytes(storage.join(folder, MANIFEST_NAME))
        if sha256(data).hexdigest() != made_from["sha256"]:
            raise InputError(
                f"{folder}: its {MANIFEST_NAME} is not the one that the selection was made from."
            )
        return scores

    def read_quantiles(self) -> dict[str, float]:
        """The score quantiles that its report holds."""
        report = self._read_json("report.json")
        return {name: float(value) for name, value in report["score_quantiles"].items()}

    def read_spread(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Edges of a grid, and all its scores there."""
        spread = self._read_json(SPREAD_NAME)
        return np.array(spread["edges"], np.float64), np.array(spread["rows"], np.int64)

    def _read_json(self, name: str) -> Any:  # noqa: ANN401 - JSON
        path = storage.join(self.folder, name)
        try:
            return json.loads(storage.read_bytes(path))
        except (AccessError, StoreError):  # the store's fault, not that of the run before
            raise
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: cannot be read: {error}") from error


class Gone(str):
    """Why the run before cannot be opened, as a sentence."""

    __slots__ = ()


def open_before(out: str) -> Before | Gone | None:
    """What `latest.json` of a curation names; None where nothing was ever published."""
    try:
        folder = follow_pointer(out)
        if folder is None:
            return None
        before = Before(folder=folder, manifest=read_manifest(folder, kind="selection"))
        check_picked(before)
    except InputError as error:
        return Gone(below(out, str(error)))
    return before


def check_picked(before: Before) -> None:
    """Raise InputError unless the rows that a run selected are listed, and the lists are there."""
    listed = sum(entry["rows"] for entry in before.picked)
    if listed != before.selected:
        raise InputError(
            f"{before.folder}: its manifest lists {listed:,} of {before.selected:,} selected rows; "
            "was it published by an older version?"
        )
    folder = storage.join(before.folder, "picked")
    files = storage.list_files(folder) if listed else []
    there = {info.path.rpartition("/")[2]: info.size_bytes for info in files}
    for entry in before.picked:
        name, size = entry["path"].rpartition("/")[2], entry["bytes"]
        if there.get(name) != size:
            raise InputError(
                f"{folder}/{name}: lists rows that the run selected; {size:,} bytes were "
                f"published, {there.get(name, 0):,} are there. Bring it back as it was."
            )


def below(folder: str, text: str) -> str:
    """A text for a report, which names no path of a machine: paths relative to a folder."""
    return text.replace(f"{storage.absolute(folder)}/", "")


def check_since(before: Before | Gone | None) -> None:
    """Raise InputError if the rows that are new since the run before cannot be told."""
    if isinstance(before, Gone):
        raise InputError(
            f"--since latest: the run that latest.json names cannot be used: {before} "
            "Run once without --since latest."
        )


def other_key(before: dict[str, Any], now: dict[str, Any]) -> str | None:
    """Why two scores manifests hold scores that cannot be compared; None where they can."""
    names = sorted(before.keys() | now.keys())
    other = [name for name in names if before.get(name) != now.get(name)]
    if not other:
        return None
    told = (
        name if name == "ranker" else f"{name} ({before.get(name)}, now {now.get(name)})"
        for name in other
    )
    return f"it was scored with another {' and another '.join(told)}"
