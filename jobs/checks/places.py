"""Paths of a run: read, written, and put only where nothing is, from the driver and from nodes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING

from jobs.checks.findings import Finding, Limited, told
from scar_core import storage, stores
from scar_core.errors import InputError
from scar_core.pool.files import list_data, open_file
from scar_core.pool.imports import import_of, taste_schema
from scar_core.pool.kinds import FormatConfig, kind_of, named_kind, read_ends
from scar_core.pool.rows import check_schema
from scar_core.store_checks import (
    NO_CONDITIONAL_PUT,
    Trial,
    check_readable,
    put_trial,
    take_away,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jobs.doctor import DoctorConfig
    from scar_core.pool.rows import PairColumns

TASTE_BYTES = 64 * 2**10
"""The end of a file, where a Parquet file has its footer."""

LISTING_RATIO = 0.5
"""Of the time of a check that a listing may take; the rest is for reading."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One file of a place, which everybody who can read the place sees alike."""

    path: str
    taste: str


@dataclass(frozen=True, kw_only=True)
class Tried:
    """What the driver found at a place."""

    found: str
    sample: Sample | None = None
    trial: Trial | None = None
    """A file that lies there until nodes have looked for it."""
    warning: str = ""
    """What to do about what is not as it might be."""


def taste(path: str) -> str:
    """A digest of a file's size and end."""
    with storage.open_input(path) as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - TASTE_BYTES))
        return blake2b(b"%d " % size + file.read(), digest_size=16).hexdigest()


def try_pool(
    pool: list[str], columns: PairColumns, formats: FormatConfig, *, seconds: float
) -> Tried:
    """List the pool and read the footer, or the first rows, of a file of each argument.

    Raises:
        InputError: nothing there, no access, not what it says, or without the columns.
    """
    check_readable(pool)
    listing = Limited(
        lambda: [list_data(argument) for argument in pool],
        seconds=LISTING_RATIO * seconds,
    )
    try:
        listed = listing.result()
    except TimeoutError:
        return Tried(
            found=f"it can be reached, but not listed within {LISTING_RATIO * seconds:g} s",
            warning="Very many files, or a slow store: each run lists it before it starts.",
        )
    for argument, files in zip(pool, listed, strict=True):
        if not files:
            raise InputError(
                f"{stores.without_secret(argument)}: matches no file that can be read. "
                "Check the path; quote globs, and name files *.parquet, *.jsonl, *.csv, …"
            )
        _check_columns(files[0], columns, formats)
    first = listed[0][0]
    count = sum(map(len, listed))
    size = sum(file.size_bytes for files in listed for file in files)
    return Tried(
        found=f"{count:,} file{'s' if count > 1 else ''}, {size / 2**20:,.1f} MiB; "
        "the first has the columns",
        sample=Sample(path=first.path, taste=taste(first.path)),
    )


def _check_columns(info: storage.FileInfo, columns: PairColumns, formats: FormatConfig) -> None:
    """Raise InputError unless a file can be read, as far as its start or footer tells."""
    ends = read_ends(info)
    kind = kind_of(info, ends[0], formats)
    if kind.format == "parquet" or named_kind(info.path) == ("parquet", ""):
        open_file(info, path=info.path, columns=columns)
    else:
        check_schema(taste_schema(import_of(info, kind, ends, "")), columns, where=info.shown)


def try_ranker(ranker: str) -> Tried:
    """Look whether a ranker is there; what it is worth is seen when it is loaded.

    Raises:
        InputError: nothing there, or no access.
    """
    check_readable([ranker])
    if not storage.is_folder(ranker):
        if not storage.is_local(ranker) or ranker.startswith(("/", ".", "~")):
            raise InputError(f"{stores.without_secret(ranker)}: nothing is there. Check --ranker.")
        return Tried(found=f"{ranker} is no folder here, so it is taken for a hub name")
    config = storage.join(storage.absolute(ranker), "config.json")
    if not storage.exists(config):
        raise InputError(
            f"{stores.without_secret(ranker)}: has no config.json, so it is no ranker. Pass a "
            "directory that the train job or scar-tool wrote."
        )
    return Tried(found="it is there", sample=Sample(path=config, taste=taste(config)))


def try_folder(folder: str) -> Tried:
    """Put a small file below a folder, twice; it stays until `take_away`.

    Raises:
        AccessError: nothing can be read or written there.
    """
    check_readable([folder])
    trial = put_trial(folder)
    how = "a file was put, and another one over it refused"
    if not trial.put_only_if_absent:
        return Tried(found="a file was put", trial=trial, warning=NO_CONDITIONAL_PUT)
    return Tried(found=how, trial=trial)


@dataclass(frozen=True, kw_only=True)
class Visit:
    """What a node is to try at a place."""

    place: str
    sample: Sample | None
    """To be read, and found the same."""
    folder: str | None
    """To be written below."""

    @classmethod
    def of(cls, place: str, tried: Tried, folder: str | None) -> Visit:
        """A look at what the driver read, or put there."""
        if tried.trial is None:
            return cls(place=place, sample=tried.sample, folder=None)
        trial = tried.trial
        known = blake2b(b"%d " % len(trial.content) + trial.content, digest_size=16).hexdigest()
        return cls(place=place, sample=Sample(path=trial.path, taste=known), folder=folder)


def visit(task: Visit) -> str:
    """Try a place from here; what stays there, which is nothing where the role may delete.

    Raises:
        InputError: no access, or the driver's file is not there, or is another one.
    """
    if task.sample is not None:
        shown = stores.without_secret(task.sample.path)
        try:
            same = taste(task.sample.path) == task.sample.taste
        except FileNotFoundError as error:
            raise InputError(
                f"{shown} is not there, though the driver has it. A local path must be a file "
                "system that all nodes share, at the same path."
            ) from error
        if not same:
            raise InputError(
                f"{shown} is another file than the driver's. A local path must be a file system "
                "that all nodes share."
            )
    if task.folder is None:
        return ""
    trial = put_trial(task.folder)
    return "" if take_away(trial) else stores.without_secret(trial.path)


def visits(tasks: list[Visit], *, seconds: float) -> dict[str, tuple[bool, str]]:
    """Per place whether all went well, and what stays there or what went wrong."""
    # All at once: a store that hangs takes its own time, and nobody else's.
    running = {task.place: Limited(partial(visit, task), seconds=seconds) for task in tasks}
    outcomes = {}
    for place, work in running.items():
        try:
            outcomes[place] = True, work.result()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what was found
            outcomes[place] = False, told(error)
    return outcomes


def visits_finding(check: str, outcomes: Mapping[str, tuple[bool, str]], *, wrote: bool) -> Finding:
    """One finding for all nodes, by name; of those that failed the first says why."""
    if not outcomes:
        return Finding(check=check, status="skipped", found="no node that works answered")
    failed = {name: text for name, (well, text) in outcomes.items() if not well}
    if failed:
        name, text = next(iter(failed.items()))
        found = f"{len(failed)} of {len(outcomes)} nodes fail; {name}: {text}"
        return Finding(check=check, status="failed", found=found)
    left = sorted(text for _, text in outcomes.values() if text)
    did = "read it and put a file" if wrote else "read it"
    found = f"all {len(outcomes)} that work {did}" if len(outcomes) > 1 else f"the node {did}"
    if left:
        return Finding(
            check=check,
            status="warning",
            found=f"{found}; {len(left)} such files stay, the first: {left[0]}",
            next="Remove them, or give the role the right to delete.",
        )
    return Finding(check=check, status="ok", found=found)


def folders_of(config: DoctorConfig) -> Mapping[str, str]:
    """By the name of its check each folder that the run would write to."""
    folders = {"out": config.out}
    if config.scores is not None:
        folders["scores"] = config.scores
    if config.events not in (None, "none"):
        folders["events"] = str(config.events)
    return {name: storage.absolute(path) for name, path in folders.items() if path}
