"""What entered between two selections, what left, and why; from their lists and manifests alone.

A row is a place: a row of a file with one fingerprint, which a move of the file keeps.
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jobs import cli, pipeline
from jobs.before import Before, other_key
from jobs.comparison import meetings
from jobs.diff_stages import Parted, part_one
from jobs.selected_rows import open_selection
from jobs.written_as import WriteOptions
from scar_core import storage
from scar_core.errors import InputError
from scar_core.manifest import to_json
from scar_core.pool.changes import FileChanges, match_files
from scar_core.store_checks import check_writable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scar_core.pool.changes import Fate

DIFF_NAME = "diff.json"

WRITING = (
    *WriteOptions.__dataclass_fields__,
    "file_megabytes",
    "score_column",
    "source_column",
    "scores",
    "since",
)
"""Settings of a selection by which no other rows are selected."""

_REASONS: dict[Fate, str] = {
    "new": "new_file",
    "changed": "changed_file",
    "removed": "removed_file",
}


@dataclass(frozen=True, kw_only=True)
class DiffConfig:
    """Tell two selections apart."""

    run_a: str
    """A selection; of a curation, its newest one."""
    run_b: str
    """Another one: rows that it alone has entered, rows that it lacks left."""
    out: str | None = None
    """Folder for the rows that entered and left, as Parquet, and the figures as diff.json; must
    not hold a diff yet."""
    examples: int = 5
    """Rows to show of those that entered and of those that left, the best-scored, at least 0."""
    json: bool = False
    """One JSON object instead of text."""

    def __post_init__(self) -> None:
        """Refuse fewer examples than none."""
        if self.examples < 0:
            raise ValueError(f"examples must be at least 0, got {self.examples}")


def diff(config: DiffConfig, before: Before, after: Before) -> dict[str, Any]:
    """What entered and what left, as --json prints it.

    Raises:
        InputError: what a run was made from, or a list of its rows, is gone.
    """
    scores = [run.read_scores() for run in (before, after)]
    pools = [
        {file["path"]: file["fingerprint"] for file in one["inputs"][1]["files"]} for one in scores
    ]
    files = match_files(*pools)
    other = other_key(scores[0]["key"], scores[1]["key"])
    settings = _settings(before, after)
    reason = "other_scoring" if other else "other_policy" if settings else "threshold_moved"
    there = {
        path: _REASONS[fate] for path in pools[0] if (fate := files.fate_before(path)) != "same"
    }
    come = {path: _REASONS[fate] for path in pools[1] if (fate := files.fate_now(path)) != "same"}
    back = {now: path for path, now in files.same.items()}
    left = _alone(before, after, files.same, there, reason, config=config, name="left")
    entered = _alone(after, before, back, come, reason, config=config, name="entered")
    told = {
        "runs": [_named(run) for run in (before, after)],
        "scoring": other,
        "settings": settings,
        "files": _files(files),
        "stayed": left["stayed"],
        "entered": entered,
        "left": left,
    }
    _check(told)
    return told


def _settings(before: Before, after: Before) -> dict[str, list[Any]]:
    """What decides which rows are selected and is another thing in the runs: before, and after."""
    configs = [run.manifest["config"] for run in (before, after)]
    names = sorted({*configs[0], *configs[1]} - {*WRITING})
    pairs = {name: [config.get(name) for config in configs] for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _alone(
    run: Before,
    other: Before,
    same: dict[str, str],
    reasons: Mapping[str, str],
    otherwise: str,
    *,
    config: DiffConfig,
    name: str,
) -> dict[str, Any]:
    """The rows that one run has alone."""
    parts: list[Parted] = list(
        pipeline.run(
            part_one,
            list(enumerate(meetings(run, list(zip(other.urls, other.picked, strict=True)), same))),
            reasons=dict(reasons),
            otherwise=otherwise,
            examples=config.examples,
            folder=None if config.out is None else storage.absolute(config.out),
            name=name,
        )
    )
    counts: Counter[str] = sum((part.reasons for part in parts), Counter())
    found = [row for part in parts for row in part.examples]
    entries = [part.entry for part in parts if part.entry is not None]
    return {
        "rows": counts.total(),
        "reasons": dict(sorted(counts.items())),
        "stayed": sum(part.stayed for part in parts),
        "examples": sorted(found, key=lambda row: (-row["score"], row["content_hash"]))[
            : config.examples
        ],
        "files": sorted(entries, key=lambda entry: str(entry["path"])),
    }


def _check(told: dict[str, Any]) -> None:
    """Raise InputError unless rows before - left = rows after - entered = rows that stayed."""
    for run, name in zip(told["runs"], ("left", "entered"), strict=True):
        part = told[name]
        stayed = part.pop("stayed")
        if run["selected"] != stayed + part["rows"] or stayed != told["stayed"]:
            raise InputError(
                f"{run['run']}: {run['selected']:,} rows are selected, but {stayed:,} stayed and "
                f"{part['rows']:,} {name}. Its lists are not as they were: see jobs.verify."
            )


def _files(files: FileChanges) -> dict[str, int]:
    return {
        "same": len(files.same),
        "moved": files.moved,
        "new": len(files.new),
        "changed": len(files.changed),
        "removed": len(files.removed),
    }


def _named(run: Before) -> dict[str, Any]:
    return {
        "run": run.folder.rpartition("/")[2],
        "created": run.manifest["created"],
        "selected": run.selected,
        "threshold": run.manifest["threshold"],
    }


def render(told: dict[str, Any]) -> str:
    """The same for a person."""
    before, after = told["runs"]
    lines = [f"{'':<16}{before['run']:>26}   {after['run']:>26}"]
    pairs = {name: (before[name], after[name]) for name in ("selected", "threshold")}
    lines += [
        f"{name:<16}{_shown(pair[0]):>26}   {_shown(pair[1]):>26}"
        for name, pair in {**pairs, **told["settings"]}.items()
    ]
    if told["scoring"]:
        lines.append(f"the second one: {told['scoring']}")
    files = ", ".join(f"{n:,} {name}" for name, n in told["files"].items() if n)
    lines += ["", f"{'files':<16}{files}", f"{'stayed':<16}{told['stayed']:>12,}"]
    for name in ("entered", "left"):
        part = told[name]
        reasons = (f"{n:,} {why.replace('_', ' ')}" for why, n in part["reasons"].items())
        lines.append(f"{name:<16}{part['rows']:>12,}   {', '.join(reasons)}".rstrip())
    for name in ("entered", "left"):
        if examples := told[name]["examples"]:
            lines += ["", name]
            lines += [
                f"{row['score']:>12.6f}  {row['path']}:{row['row']}  "
                f"{row['reason'].replace('_', ' ')}"
                for row in examples
            ]
    return "\n".join(lines)


def _shown(value: Any) -> str:  # noqa: ANN401 - JSON
    if isinstance(value, float):
        return f"{value:.6f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "none" if value is None else str(value)


def job(argv: Sequence[str]) -> None:
    """Parse, compare, and say what is different."""
    places = ("run_a", "run_b")
    config = cli.parse(
        DiffConfig, argv, prog="jobs.diff", description=__doc__ or "", positional=places
    )
    if config.out is not None:
        out = storage.absolute(config.out)
        check_writable(out)
        if storage.exists(storage.join(out, DIFF_NAME)):
            raise InputError(
                f"{out}: already holds a diff, and nothing is overwritten. Choose another --out."
            )
    before, after = (open_selection(run) for run in (config.run_a, config.run_b))
    with cli.connected(quiet=config.json):
        told = diff(config, before, after)
    if config.out is not None:
        storage.write_bytes_if_absent(storage.join(out, DIFF_NAME), to_json(told))
    text = to_json(told).decode().rstrip("\n") if config.json else render(told)
    print(text)  # noqa: T201 - the job's result


if __name__ == "__main__":
    sys.exit(cli.run_job(job))
