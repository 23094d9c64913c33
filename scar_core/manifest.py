"""Publish a directory: data first, manifest.json last. No manifest, nothing published."""

from __future__ import annotations

import json
import math
import platform
import re
import secrets
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from scar_core import lease, storage
from scar_core.errors import IncompleteError, InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

MANIFEST_NAME = "manifest.json"
POINTER_NAME = "latest.json"
MANIFEST_VERSION = 1
READ_BYTES = 8 * 2**20
PACKAGES = ("scar-curate", "ray", "torch", "transformers", "tokenizers", "pyarrow", "numpy")

Kind = Literal["ranker", "scores", "selection", "quadruples"]

_ROWS_HELD: dict[Kind, tuple[str, ...]] = {
    "scores": ("rows_in",),
    "selection": ("written", "selected"),
    "quadruples": ("rows_out",),
}
"""Which of its counts the files of a directory add up to: the first that is given."""

_RUN_TIME = "%Y%m%dT%H%M%SZ"
_RUN_ID = re.compile(r"(\d{8}T\d{6}Z)-[0-9a-f]{6}")


class PublishedFile(NamedTuple):
    """A file that a manifest vouches for."""

    path: str
    """Relative to the manifest's folder."""
    rows: int
    """0 for files that are no tables."""
    bytes: int
    sha256: str


def new_run_id(*, after: str | None = None) -> str:
    """A name for a run's directory: names sort by time (UTC), and no two are equal.

    It sorts after the run `after`, even if another machine's clock was ahead of this one's.
    """
    now = datetime.now(UTC)
    if after is not None and (match := _RUN_ID.fullmatch(after.rpartition("/")[2])):
        then = datetime.strptime(match[1], _RUN_TIME).replace(tzinfo=UTC)
        now = max(now, then + timedelta(seconds=1))
    return f"{now:{_RUN_TIME}}-{secrets.token_hex(3)}"


def next_run_id(folder: str, *, own: str | None = None) -> str:
    """A name that sorts after those of all runs in a folder, published or not.

    That is the run's own, unless it waited for another one, or a clock was ahead of this one's.
    """
    name = own or new_run_id()
    runs = [name for name in storage.list_folders(folder) if _RUN_ID.fullmatch(name)]
    last = max(runs, default=None)
    return name if last is None or last < name else new_run_id(after=last)


def describe_file(folder: str, path: str, *, rows: int = 0) -> PublishedFile:
    """Size and checksum of a file below a folder, read back from where it is stored."""
    digest, size = sha256(), 0
    with storage.open_input(storage.join(folder, path)) as file:
        while block := file.read(READ_BYTES):
            digest.update(block)
            size += len(block)
    return PublishedFile(path=path, rows=rows, bytes=size, sha256=digest.hexdigest())


def software() -> dict[str, str]:
    """Versions of what a result depends on; packages that are not installed are left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def check_unpublished(folder: str) -> None:
    """Raise InputError if a run has already published this directory."""
    if storage.exists(storage.join(folder, MANIFEST_NAME)):
        raise InputError(
            f"{folder}: already holds a published run, and nothing is overwritten. "
            "Choose another --out."
        )


def publish(
    folder: str,
    *,
    kind: Kind,
    config: dict[str, Any],
    inputs: list[dict[str, Any]],
    counts: dict[str, Any],
    files: list[dict[str, Any]],
    **extra: Any,  # noqa: ANN401 - JSON
) -> dict[str, Any]:
    """Write manifest.json, the last file of a run, and return it.

    `files` holds at least path, rows, bytes and sha256 of each.

    Raises:
        IncompleteError: the counts do not close, the files hold other rows than they say, or
            another run published this directory first.
        LeaseLostError: the lease around this run was taken over, or cannot be confirmed.
    """
    try:
        check_counts(counts, where=folder)
        check_rows_held(kind, counts, files, where=folder)
    except IncompleteError as error:
        raise IncompleteError(f"{error} Nothing was published.") from error
    manifest = {
        "kind": kind,
        "version": MANIFEST_VERSION,
        # No two are equal: of two runs that publish one directory in the same second one must see
        # that the other was first.
        "id": secrets.token_hex(8),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": config,
        "inputs": inputs,
        "software": software(),
        "counts": counts,
        **extra,
        "files": files,
    }
    path = storage.join(folder, MANIFEST_NAME)
    lease.confirm()
    if not storage.write_bytes_if_absent(path, to_json(manifest)):
        raise IncompleteError(f"{path}: another run published this directory first.")
    return manifest


def check_counts(counts: dict[str, Any], *, where: str) -> None:
    """Rows in = scored + quarantined, and = selected + not selected + quarantined, where given.

    Of quadruples rows in = rows out + quarantined.
    And files in = files scored + files quarantined.
    Of a selection whose files hold only new rows, selected = written + known.

    Raises:
        IncompleteError: a sum that does not close.
    """
    if "files_in" in counts:
        files = counts["files_scored"] + sum(counts["files_quarantined"].values())
        if files != counts["files_in"]:
            raise IncompleteError(
                f"{where}: {counts['files_in']:,} files went in, but scored + quarantined = "
                f"{files:,}."
            )
    if "written" in counts and counts["written"] + counts["known"] != counts["selected"]:
        raise IncompleteError(
            f"{where}: {counts['selected']:,} rows are selected, but written + known = "
            f"{counts['written'] + counts['known']:,}."
        )
    if "rows_in" not in counts:
        return
    quarantined = sum(counts["quarantined"].values())
    ways = (("scored",), ("selected", "not_selected"), ("rows_out",))
    sums = [names for names in ways if names[0] in counts]
    for names in sums:
        total = sum(counts[name] for name in names) + quarantined
        if total != counts["rows_in"]:
            raise IncompleteError(
                f"{where}: {counts['rows_in']:,} rows went in, but "
                f"{' + '.join(names)} + quarantined = {total:,}."
            )


def check_rows_held(
    kind: Kind, counts: dict[str, Any], files: Sequence[dict[str, Any]], *, where: str
) -> None:
    """Raise IncompleteError unless files hold as many rows as are counted."""
    held = next((name for name in _ROWS_HELD.get(kind, ()) if name in counts), None)
    rows = sum(entry["rows"] for entry in files)
    if held is not None and rows != counts[held]:
        raise IncompleteError(f"{where}: the files hold {rows:,} rows, {held} is {counts[held]:,}.")


def read_manifest(folder: str, *, kind: Kind | None = None) -> dict[str, Any]:
    """The manifest of a published directory: of one kind, or of any.

    Raises:
        InputError: there is none, it is of another kind, or of a version that is not known.
    """
    path = storage.join(folder, MANIFEST_NAME)
    manifest = _read_json(path)
    if manifest is None:
        raise InputError(
            f"{folder}: has no {MANIFEST_NAME}, so nothing was published there. "
            f"Pass the directory of a finished {kind or 'run'}."
        )
    found = (manifest.get("kind"), manifest.get("version"))
    kinds = get_args(Kind) if kind is None else (kind,)
    if found[0] not in kinds or found[1] != MANIFEST_VERSION:
        wanted = " or ".join(map(repr, kinds))
        raise InputError(
            f"{path}: wanted kind {wanted}, version {MANIFEST_VERSION}; found {found[0]!r}, "
            f"version {found[1]!r}."
        )
    return manifest


def write_pointer(folder: str, run: str, *, kind: Kind) -> str:
    """Let `latest.json` name a published run below a folder, or a newer one beside it; which.

    It is the one file that a later run replaces. Newer is what was started later, by name. Runs
    that finish at the same time, or out of order, leave it naming the newest of them on any
    store: whoever writes last looks afterwards, and a run is published before it is named.
    """
    named = None
    while named != (newest := _newest_run(folder, run)):
        named = newest
        pointer = {"kind": kind, "run": named, "manifest": f"{named}/{MANIFEST_NAME}"}
        lease.confirm()
        storage.write_bytes(storage.join(folder, POINTER_NAME), to_json(pointer))
    return newest


def _newest_run(folder: str, run: str) -> str:
    """The newest published run in the folder of a run; itself where nothing is newer."""
    parent, _, own = run.rpartition("/")
    beside = storage.list_folders(storage.join(folder, parent) if parent else folder)
    for name in sorted(beside, reverse=True):
        if name <= own:
            break
        newer = f"{parent}/{name}" if parent else name
        if _RUN_ID.fullmatch(name) and storage.exists(storage.join(folder, newer, MANIFEST_NAME)):
            return newer
    return run


def follow_pointer(folder: str) -> str | None:
    """The path that `latest.json` names, or None where there is no such file.

    Raises:
        InputError: there is one that names nothing.
    """
    path = storage.join(folder, POINTER_NAME)
    pointer = _read_json(path)
    if pointer is None:
        return None
    if not isinstance(pointer.get("run"), str):
        raise InputError(f"{path}: names no run. Pass the directory of a run below {folder}.")
    return storage.join(folder, pointer["run"])


def _read_json(path: str) -> dict[str, Any] | None:
    """The object in a JSON file, None where there is no file; InputError if it holds none."""
    try:
        value = json.loads(storage.read_bytes(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise InputError(
            f"{path}: is not JSON ({error}). Bring it back as it was, or use another directory."
        ) from error
    if not isinstance(value, dict):
        raise InputError(
            f"{path}: holds no JSON object. Bring it back as it was, or use another directory."
        )
    return value


def to_json(value: dict[str, Any], *, indent: int | None = 1) -> bytes:
    """Readable JSON, keys in the order they were given; inf and nan, which JSON lacks, as text.

    Without an indent it is one line.
    """
    text = json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


def _finite(value: Any) -> Any:  # noqa: ANN401 - JSON
    """The same with `inf`, `-inf` and `nan` in place of such numbers; float() reads them back."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
