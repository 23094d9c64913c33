"""Published scores, opened: units, their sidecars, and the pool that they belong to."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from jobs.select_stages import ScoredUnit
from scar_core import storage
from scar_core.errors import InputError
from scar_core.manifest import follow_pointer, read_manifest
from scar_core.pool.files import FOOTER_THREADS, Imports, PoolFile, reopen
from scar_core.pool.kinds import FormatConfig
from scar_core.pool.rows import PairColumns
from scar_core.pool.units import Unit

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Published scores, opened."""

    folder: str
    manifest: dict[str, Any]
    """Without its list of files: `units` holds what is needed of it in a third of the memory."""
    columns: PairColumns
    files: list[PoolFile]
    units: list[ScoredUnit]
    """In (path, row) order."""


def open_scores(path: str) -> Scores:
    """Open a scores directory's newest scores, and the footers of the pool they belong to.

    Raises:
        InputError: nothing is published there, or the pool changed since it was scored.
    """
    asked = storage.absolute(path)
    folder = follow_pointer(asked) or asked
    manifest = read_manifest(folder, kind="scores")
    files = []
    for file in open_pool_files(manifest, folder, columns_of_key(manifest["key"])):
        if isinstance(file, InputError):
            raise file
        files.append(file)
    return _with_units(folder, manifest, files)


def known_scores(folder: str) -> Scores:
    """Published scores for who reads sidecars alone: of the pool's files no more than is recorded.

    They have no schema and no row groups, and may be gone by now.

    Raises:
        InputError: nothing is published there.
    """
    manifest = read_manifest(folder, kind="scores")
    files = [
        PoolFile(
            path=entry["path"],
            info=storage.FileInfo(
                path=storage.locate(entry["url"], base=folder), size_bytes=0, stamp=""
            ),
            fingerprint=entry["fingerprint"],
            schema=pa.schema([]),
            row_groups=(),
        )
        for entry in manifest["inputs"][1]["files"]
    ]
    return _with_units(folder, manifest, files)


def _with_units(folder: str, manifest: dict[str, Any], files: list[PoolFile]) -> Scores:
    by_path = {file.path: file for file in files}
    below = storage.locate(manifest["files_below"], base=folder)
    units = []
    for ordinal, entry in enumerate(manifest.pop("files")):
        file = by_path[entry["pool_file"]]
        unit = Unit(
            path=file.path,
            row_start=entry["row_start"],
            rows=entry["rows"],
            fingerprint=file.fingerprint,
        )
        sidecar = storage.join(below, entry["path"])
        units.append(ScoredUnit(ordinal=ordinal, unit=unit, file=file, sidecar=sidecar))
    columns = columns_of_key(manifest["key"])
    return Scores(folder=folder, manifest=manifest, columns=columns, files=files, units=units)


def reopened(scores: Scores, path: str) -> PoolFile:
    """A file of the pool, its footer read now.

    Raises:
        InputError: it is gone, or has changed since it was scored.
    """
    (entry,) = (one for one in scores.manifest["inputs"][1]["files"] if one["path"] == path)
    importing = _importing(scores.manifest, scores.folder)
    return _open_pool_file(entry, scores.folder, scores.columns, importing)


def columns_of_key(key: dict[str, Any]) -> PairColumns:
    """Where instruction and response are, by the key of a scores manifest."""
    known = {name: key[name] for name in PairColumns.__dataclass_fields__ if name in key}
    return PairColumns(**{"format": "columns", **known})  # an older version's had but these


def open_pool_files(
    manifest: dict[str, Any], folder: str, columns: PairColumns
) -> Iterator[PoolFile | InputError]:
    """The files of the pool that a scores manifest names, footers read, in its order.

    In place of one that is gone, or has changed since it was scored, the error that says so.

    Raises:
        AccessError: the store refuses; no file is blamed.
    """
    importing = _importing(manifest, folder)

    def opened(entry: dict[str, Any]) -> PoolFile | InputError:
        try:
            return _open_pool_file(entry, folder, columns, importing)
        except InputError as error:
            return error

    with ThreadPoolExecutor(FOOTER_THREADS) as threads:
        yield from threads.map(opened, manifest["inputs"][1]["files"])


def _importing(manifest: dict[str, Any], folder: str) -> Imports:
    """Where the copies of files that are no Parquet lie, and what files were taken for."""
    known = FormatConfig.__dataclass_fields__.keys() & manifest["config"].keys()
    return Imports(
        scores=storage.locate(manifest["files_below"], base=folder),
        config=FormatConfig(**{name: manifest["config"][name] for name in known}),
    )


def _open_pool_file(
    entry: dict[str, Any], folder: str, columns: PairColumns, importing: Imports
) -> PoolFile:
    url = storage.locate(entry["url"], base=folder)
    try:
        return reopen(
            storage.stat(url),
            path=entry["path"],
            fingerprint=entry["fingerprint"],
            columns=columns,
            importing=importing,
        )
    except FileNotFoundError as error:
        raise InputError(
            f"{url}: was scored and is gone. Bring it back, or score again."
        ) from error
