"""The run that `latest.json` named when this one started, and whether it can be compared."""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from jobs.compare_stages import ScoredRows
from scar_core import storage
from scar_core.errors import AccessError, InputError, StoreError
from scar_core.manifest import MANIFEST_NAME, follow_pointer, read_manifest
from scar_core.pool.units import Unit
from scar_core.selection.precision import list_rescored
from scar_core.selection.radix import Cut

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, kw_only=True)
class Before:
    """A selection that was published before this run started."""

    folder: str
    manifest: dict[str, Any]
    scores_folder: str
    """Of the scores that it was made from."""
    cut: Cut

    @property
    def selected(self) -> int:
        """Rows of the selection."""
        return int(self.manifest["counts"]["selected"])

    def read_scores(self) -> dict[str, Any]:
        """The manifest of its scores.

        Raises:
            InputError: it is gone, or not the one that the selection was made from.
        """
        return _read_scores(self.scores_folder, self.manifest)


class Gone(str):
    """Why the run before cannot be opened, as a sentence."""

    __slots__ = ()


def open_before(out: str) -> Before | Gone | None:
    """What `latest.json` of a curation names; None where nothing was ever published."""
    try:
        folder = follow_pointer(out)
        if folder is None:
            return None
        manifest = read_manifest(folder, kind="selection")
        cut = _cut_of(manifest, folder)
        scores = storage.locate(manifest["inputs"][0]["manifest"], base=folder)
        before = Before(
            folder=folder,
            manifest=manifest,
            scores_folder=scores.rpartition("/")[0],
            cut=cut,
        )
        before.read_scores()
    except InputError as error:
        return Gone(below(out, str(error)))
    return before


def below(folder: str, text: str) -> str:
    """A text for a report, which names no path of a machine: paths relative to a folder."""
    return text.replace(f"{storage.absolute(folder)}/", "")


def check_since(before: Before | Gone | None) -> None:
    """Raise InputError if the rows that are new since the run before cannot be told."""
    if isinstance(before, Gone):
        raise InputError(
            f"--since latest: the run that latest.json names cannot be opened: {before} "
            "Run once without --since latest."
        )


def _cut_of(manifest: dict[str, Any], folder: str) -> Cut:
    """What tells the rows that a selection holds."""
    if manifest["config"].get("dedup", "none") != "none":
        raise InputError(
            f"{folder}: leaves out copies of rows, so which rows it selected cannot be told from "
            "scores alone."
        )
    try:
        return Cut.from_json(manifest["cut"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{folder}: its manifest holds no single cut ({error!r}), so which rows it selected "
            "cannot be told from scores alone."
        ) from error


def _read_scores(folder: str, manifest: dict[str, Any]) -> dict[str, Any]:
    scores = read_manifest(folder, kind="scores")
    data = storage.read_bytes(storage.join(folder, MANIFEST_NAME))
    if sha256(data).hexdigest() != manifest["inputs"][0]["sha256"]:
        raise InputError(
            f"{folder}: its {MANIFEST_NAME} is not the one that the selection was made from."
        )
    return scores


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


def scored_rows(manifest: dict[str, Any], folder: str) -> list[ScoredRows]:
    """Where the scores of each unit of a scores manifest lie; pool files are not asked for."""
    fingerprints = {file["path"]: file["fingerprint"] for file in manifest["inputs"][1]["files"]}
    below = storage.locate(manifest["files_below"], base=folder)
    rescored: dict[str, list[str]] = {}
    if manifest["key"]["precision"] != "fp32":
        rescored = list_rescored(below, key_id=manifest["key_id"])
    return [
        _scored_rows(entry, ordinal, fingerprints[entry["pool_file"]], below, rescored)
        for ordinal, entry in enumerate(manifest["files"])
    ]


def _scored_rows(
    entry: dict[str, Any],
    ordinal: int,
    fingerprint: str,
    below: str,
    rescored: dict[str, list[str]],
) -> ScoredRows:
    unit = Unit(
        path=entry["pool_file"],
        row_start=entry["row_start"],
        rows=entry["rows"],
        fingerprint=fingerprint,
    )
    return ScoredRows(
        ordinal=ordinal,
        unit=unit,
        sidecar=storage.join(below, entry["path"]),
        rescored=tuple(rescored.get(unit.id, ())),
    )


def read_quantiles(before: Before) -> dict[str, float]:
    """The score quantiles that its report holds; none where the report is gone."""
    try:
        report = json.loads(storage.read_bytes(storage.join(before.folder, "report.json")))
    except (AccessError, StoreError):  # the store's fault, not that of the run before
        raise
    except (OSError, ValueError):
        return {}
    return {name: float(value) for name, value in report.get("score_quantiles", {}).items()}


def fingerprints_of(units: Sequence[ScoredRows]) -> dict[str, str]:
    """By path the fingerprints of the files that units belong to."""
    return {item.unit.path: item.unit.fingerprint for item in units}
