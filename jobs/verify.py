"""Hold a published directory against its manifest: files, checksums, counts, and the selection.

A selection is followed back to its scores and their pool: every sidecar is read again, and the
selection is made again from them, which must lead to the same rows and thresholds.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs import cli, pipeline
from jobs.made_again import MissingError, made_again, options_of
from jobs.scored_pool import columns_of_key, open_pool_files, open_scores
from jobs.select_rows import PICKED_ROWS
from jobs.select_stages import consecutive
from jobs.verify_stages import Listed, Seen, check_chunk, differ_chunk, merge_seen
from scar_core import storage
from scar_core.errors import IncompleteError, InputError, RunError
from scar_core.manifest import (
    check_counts,
    check_rows_held,
    follow_pointer,
    read_manifest,
)
from scar_core.store_checks import check_readable, check_writable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from jobs.passes import Judged

logger = logging.getLogger("scar_curate")

# What one task reads again.
CHUNK_BYTES = 256 * 2**20
CHUNK_FILES = 500
FAULTS_SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """Verify a published directory and all that it was made from."""

    run: str
    """A published directory: a ranker, scores or a selection; of a curation, its newest one. Of a
    selection that limits copies (--dedup, --max-per-cluster) it must be writable: tasks pass on
    what they find there, for a while."""


@dataclass(kw_only=True)
class Findings:
    """What was looked at, and what is wrong with it."""

    sound: list[tuple[str, str]] = field(default_factory=list)
    """(what, what was found)."""
    faults: list[str] = field(default_factory=list)

    def add(self, what: str, told: str, faults: Sequence[str] = ()) -> None:
        """One thing that was looked at."""
        self.faults += sorted(faults)
        if not faults:
            self.sound.append((what, told))


def open_run(run: str) -> tuple[str, dict[str, Any]]:
    """A published directory, or the newest one below a directory, and its manifest.

    Raises:
        InputError: nothing is published there.
    """
    asked = storage.absolute(run)
    check_readable([asked])
    folder = follow_pointer(asked) or asked
    return folder, read_manifest(folder)


def verify(folder: str, manifest: dict[str, Any]) -> Findings:
    """Look at a published directory; nothing is mended.

    Raises:
        StoreError: a store does not answer, so nothing can be said.
    """
    findings = Findings()
    _check_folder(folder, manifest, findings)
    if manifest["kind"] == "scores":
        _check_pool(folder, manifest, findings)
    if manifest["kind"] == "selection":
        _check_strangers(folder, manifest, findings)
        _check_selection(folder, manifest, findings)
    return findings


def _check_folder(folder: str, manifest: dict[str, Any], findings: Findings) -> None:
    """Counts that close, and files as they were written."""
    kind, counts, files = manifest["kind"], manifest["counts"], manifest["files"]
    try:
        check_counts(counts, where=folder)
        check_rows_held(kind, counts, files, where=folder)
    except IncompleteError as error:
        findings.add(f"{kind}: counts", "", [str(error)])
    else:
        findings.add(f"{kind}: counts", "close")
    seen: Seen = pipeline.fold(check_chunk, list(_chunks(_listed(folder, manifest))), merge_seen)
    told = f"{seen.files:,} as published, {seen.bytes:,} bytes"
    findings.add(f"{kind}: files", told, seen.faults)
    threshold = manifest.get("threshold")
    if seen.lowest is not None and threshold is not None and seen.lowest < float(threshold):
        told = f"{folder}: holds a row of score {seen.lowest}, below the threshold {threshold}."
        findings.add(f"{kind}: lowest score", "", [told])


def _check_strangers(folder: str, manifest: dict[str, Any], findings: Findings) -> None:
    """Files among the selected rows that no run wrote: who reads the folder reads them too."""
    listed = {entry["path"] for entry in (*manifest["files"], *manifest.get("picked", ()))}
    roots = [storage.join(folder, name) for name in ("data", "picked")]
    some = (storage.list_files(root) for root in roots if storage.is_folder(root))
    there = [info.path for info in chain.from_iterable(some)]
    strangers = [path for path in there if path.removeprefix(f"{folder}/") not in listed]
    if strangers:
        told = [f"{path}: is in no manifest." for path in strangers]
        findings.add("selection: files", "", told)


def _listed(folder: str, manifest: dict[str, Any]) -> Iterator[Listed]:
    below = storage.locate(manifest.get("files_below", "."), base=folder)
    score_column = manifest["config"].get("score_column")
    lists = (manifest.get(name, ()) for name in ("files", "quarantine", "picked"))
    for entry in chain.from_iterable(lists):
        yield Listed(
            folder=below,
            path=entry["path"],
            rows=entry["rows"],
            bytes=entry["bytes"],
            sha256=entry["sha256"],
            score_column=score_column if entry["path"].startswith("data/") else None,
        )


def _chunks(files: Iterator[Listed]) -> Iterator[list[Listed]]:
    chunk: list[Listed] = []
    for file in files:
        if len(chunk) == CHUNK_FILES or sum(held.bytes for held in chunk) >= CHUNK_BYTES:
            yield chunk
            chunk = []
        chunk.append(file)
    yield chunk


def _check_pool(folder: str, manifest: dict[str, Any], findings: Findings) -> None:
    """The pool that was scored, by its files' fingerprints."""
    columns = columns_of_key(manifest["key"])
    files = list(open_pool_files(manifest, folder, columns))
    faults = [str(file) for file in files if isinstance(file, InputError)]
    findings.add("pool", f"{len(files):,} files, as they were when scored", faults)


def _check_selection(folder: str, manifest: dict[str, Any], findings: Findings) -> None:
    """The scores that were selected from, their pool, and the selection made again."""
    given = manifest["inputs"][0]
    place = storage.locate(given["manifest"], base=folder)
    scores_folder = place.rpartition("/")[0]
    try:
        scores = read_manifest(scores_folder, kind="scores")
    except InputError as error:
        findings.add("scores", "", [str(error)])
        return
    if sha256(storage.read_bytes(place)).hexdigest() != given["sha256"]:
        findings.add("scores", "", [f"{place}: is not the one that was selected from."])
    faults = len(findings.faults)
    _check_folder(scores_folder, scores, findings)
    _check_pool(scores_folder, scores, findings)
    if len(findings.faults) > faults:
        logger.info("the selection is not made again: its scores or its pool are not as they were")
        return
    _select_again(folder, manifest, scores_folder, findings)


def _select_again(
    folder: str, manifest: dict[str, Any], scores_folder: str, findings: Findings
) -> None:
    options, scores = options_of(manifest), open_scores(scores_folder)
    try:
        with made_again(folder, options, scores) as (units, judged):
            differing: int = pipeline.fold(
                differ_chunk,
                list(consecutive(units, rows=PICKED_ROWS)),
                sum,
                folder=folder,
                cut=judged.cut,
                groups=judged.groups,
            )
    except (IncompleteError, InputError, MissingError) as error:
        findings.add("selection", "", [str(error)])
        return
    faults = list(_differences(folder, manifest, judged))
    if differing:
        faults.append(
            f"{folder}: by the sidecars {differing:,} rows are selected that picked/ does not "
            "list, or the reverse."
        )
    told = f"{judged.cut.selected:,} rows, threshold {judged.cut.threshold}: as by the sidecars"
    findings.add("selection", told, faults)


def _differences(folder: str, manifest: dict[str, Any], judged: Judged) -> Iterator[str]:
    """Where a selection that was made again has other numbers than its manifest.

    A threshold below which nothing was left out is not compared: it decided nothing, and of bf16
    scores it may have been scored again since.
    """
    policy = manifest.get("policy", {})
    whole = {"quota": manifest["counts"]["selected"], "threshold": manifest["threshold"]}
    if "order" in policy:
        whole["threshold"] = policy["order"]["at"]
    entries = manifest.get("groups") or [whole]
    selected = [(share.group, share.quota, share.threshold) for share in judged.shares]
    selected = selected or [("", judged.cut.selected, judged.cut.threshold)]
    for (group, quota, threshold), boundary, entry in zip(
        selected, judged.boundaries_G, entries, strict=True
    ):
        where = f"{folder}: by the sidecars{f' {group}' if group else ''}"
        if quota != entry["quota"]:
            yield f"{where} has {quota:,} selected rows, the manifest says {entry['quota']:,}."
        published = None if entry["threshold"] is None else float(entry["threshold"])
        if not np.isnan(boundary) and threshold != published:
            yield f"{where} has the threshold {threshold}, the manifest says {published}."
    yield from _other_policy(folder, policy, judged)


def _other_policy(folder: str, policy: dict[str, Any], judged: Judged) -> Iterator[str]:
    """Where what the policy came to is not what the manifest says."""
    where = f"{folder}: by the sidecars"
    if policy.get("tokens") != judged.policy.get("tokens"):
        told = (judged.policy.get("tokens"), policy.get("tokens"))
        yield f"{where} {told[0]} tokens are kept, the manifest says {told[1]}."
    bands, published = (
        [(entry["band"], entry["eligible"], entry["within_cap"]) for entry in entries]
        for entries in (judged.policy.get("length_bands", ()), policy.get("length_bands", ()))
    )
    if bands != published:
        yield f"{where} length bands hold {bands}, the manifest says {published}."
    order, asked = judged.policy.get("order", {}), policy.get("order", {})
    if order.get("terms") != asked.get("terms"):
        yield f"{where} {order.get('terms')} are added up, the manifest says {asked.get('terms')}."


def job(argv: Sequence[str]) -> None:
    """Parse, look, and say what was found."""
    config = cli.parse(
        VerifyConfig, argv, prog="jobs.verify", description=__doc__ or "", positional=("run",)
    )
    folder, manifest = open_run(config.run)
    if manifest["kind"] == "selection" and options_of(manifest).most_copies is not None:
        check_writable(folder)
    with cli.connected():
        findings = verify(folder, manifest)
    for what, told in findings.sound:
        print(f"ok     {what:<20} {told}")  # noqa: T201 - the job's result
    for fault in findings.faults[:FAULTS_SHOWN]:
        print(f"FAULT  {fault}")  # noqa: T201 - the job's result
    if findings.faults:
        more = len(findings.faults) - FAULTS_SHOWN
        also = f", {more:,} of them not shown" if more > 0 else ""
        raise RunError(
            f"{config.run}: {len(findings.faults):,} faults{also}. Bring the files back as they "
            "were, or run the job again: into a new directory, nothing is overwritten."
        )


if __name__ == "__main__":
    sys.exit(cli.run_job(job))
