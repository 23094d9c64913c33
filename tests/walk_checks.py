"""What must hold after each step of the walk-through, and at its end."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from fractions import Fraction
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from tests.s3_server import BUCKET
from tests.walk_world import CURATED

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import s3fs

    from tests.walk_world import World

KEEP = Fraction(1, 10)
"""values.yaml's `keep`."""


@dataclass
class Checks:
    """What was found to hold, and what not; told as it is found."""

    right: int = 0
    wrong: list[str] = field(default_factory=list)

    def equal(self, claim: str, found: object, wanted: object) -> None:
        """Hold what was found against what was wanted."""
        if found == wanted:
            self.right += 1
            return
        self.wrong.append(f"{claim}: found {found}, wanted {wanted}")
        print(f"WRONG {self.wrong[-1]}", flush=True)


@dataclass(frozen=True, kw_only=True)
class Done:
    """What a finished curation has done."""

    run: str
    scored: int
    """Rows that went through actors in this run, the quarantined ones too."""
    selected: int


def check_run(world: World, checks: Checks, run: str, *, new: int) -> Done:
    """Counts close, files are what the manifest says, only new rows were scored."""
    folder = f"{CURATED}/selected/{run}"
    manifest = world.json(f"{folder}/manifest.json")
    counts: dict[str, Any] = manifest["counts"]
    quarantined = sum(counts["quarantined"].values())
    closed = counts["selected"] + counts["not_selected"] + quarantined
    checks.equal(f"{run}: rows in", counts["rows_in"], world.rows)
    checks.equal(f"{run}: selected + not selected + quarantined", closed, world.rows)
    checks.equal(f"{run}: rows that lack a text", quarantined, world.unscorable)
    due = int(KEEP * (world.rows - world.unscorable))
    checks.equal(f"{run}: a tenth, rounded down", counts["selected"], due)
    for file in manifest["files"]:
        data = world.store.cat_file(f"{folder}/{file['path']}")
        checks.equal(f"{run}: {file['path']}", sha256(data).hexdigest(), file["sha256"])
    rows = selected_rows(world.store, run)
    checks.equal(f"{run}: rows written", rows.num_rows, due)
    checks.equal(f"{run}: rows written once", len(set(rows["row_id"].to_pylist())), due)
    events = world.events(run)
    checks.equal(f"{run}: rows scored in this run", events["scoring_finished"]["rows"], new)
    checks.equal(f"{run}: its last event", "run_finished" in events, True)
    checks.equal(
        f"{run}: latest.json names it",
        world.json(f"{CURATED}/latest.json")["run"],
        f"selected/{run}",
    )
    report = world.json(f"{folder}/report.json")
    if "before" in report:
        checks.equal(f"{run}: new rows in the report", report["before"]["rows"]["new"], new)
    return Done(run=run, scored=events["scoring_finished"]["rows"], selected=due)


def selected_rows(store: s3fs.S3FileSystem, run: str) -> pa.Table:
    """What a run selected, in the order in which it was written."""
    names = sorted(store.find(f"{CURATED}/selected/{run}/data"))
    return pa.concat_tables(
        [pq.read_table(pa.BufferReader(store.cat_file(name))) for name in names]
    )


def check_turned_away(world: World, checks: Checks, published: int) -> None:
    """The run that met the lease ended with 3, published nothing, and says so in its events."""
    last = [
        json.loads(world.store.cat_file(name).splitlines()[-1])
        for name in world.store.glob(f"{CURATED}/events/*.jsonl")
    ]
    failed = [(e["error"], e["exit_code"]) for e in last if e["event"] == "run_failed"]
    checks.equal("runs that failed", failed, [("LeaseError", 3)])
    manifests = world.store.glob(f"{CURATED}/selected/*/manifest.json")
    checks.equal("selections published", len(manifests), published)


def check_same_as_laptop(world: World, checks: Checks, run: str, out: Path) -> int:
    """The last night selected what one run of fp32 over the whole pool does: how many rows."""
    newest = json.loads((out / "latest.json").read_bytes())["run"]
    wanted = ds.dataset(out / newest / "data", format="parquet").to_table()
    found = selected_rows(world.store, run)
    columns = [name for name in wanted.column_names if name != "scar_score"]
    checks.equal("columns of the last night", found.column_names, wanted.column_names)
    # Scores apart: those of bf16 far from the threshold are not scored again.
    same = found.select(columns).equals(wanted.select(columns))
    checks.equal("rows of the last night are those of one run on a laptop", same, True)
    return int(wanted.num_rows)


def check_secrets(
    world: World, checks: Checks, secrets: Iterable[str], folders: Iterable[Path]
) -> tuple[int, int]:
    """No secret is in an object of the bucket or a file of a job or of Ray: how many were read."""
    needles = [secret.encode() for secret in secrets]
    objects = world.store.find(BUCKET)
    found = [
        name for name in objects if any(needle in world.store.cat_file(name) for needle in needles)
    ]
    files = [
        path
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink()
    ]
    found += [str(path) for path in files if any(needle in path.read_bytes() for needle in needles)]
    checks.equal("files that hold a secret", found, [])
    return len(objects), len(files)
