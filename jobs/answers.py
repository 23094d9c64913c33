"""Answers that were paid for, kept: a small object each as it comes, then a Parquet part a unit.

    open/<unit>/<key>.json    one answer, put as soon as it is there
    parts/<unit>.parquet      all answers of a unit, put when the unit is finished

A key is a hash of what settles an answer: model, prompt, sampling and texts. Nothing is deleted:
whoever reads takes a unit's part, and its small objects only where there is none, so what is listed
is as long as there are units. When a run is published, `open/` is of no more use.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.endpoint import KEPT, Outcome
from scar_core import storage
from scar_core.errors import InputError
from scar_core.manifest import to_json
from scar_core.tables import write_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from jobs.prompting import Message, Prompt

SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("tokens_in", pa.int64()),
        pa.field("tokens_out", pa.int64()),
        pa.field("model", pa.string(), nullable=False),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Request:
    """One question to an LLM."""

    key: str
    prompt: Prompt
    texts: tuple[tuple[str, str], ...]
    """(field, text) of the prompt's places."""
    formats: tuple[Mapping[str, Any] | None, ...] = (None,)
    """As `Endpoint.ask` takes them."""

    def messages(self) -> list[Message]:
        """What is sent."""
        return self.prompt.filled(dict(self.texts))


def make_request(
    prompt: Prompt,
    texts: Mapping[str, str],
    *,
    model: str,
    sampling: Mapping[str, Any],
    formats: tuple[Mapping[str, Any] | None, ...] = (None,),
) -> Request:
    """A request under its key: equal questions have equal keys, in any run."""
    asked = {
        "model": model,
        "prompt": [prompt.name, prompt.version, prompt.sha256],
        "sampling": sampling,
        "formats": formats,
        "texts": texts,
    }
    key = sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    return Request(key=key, prompt=prompt, texts=tuple(texts.items()), formats=formats)


def unit_id(requests: Sequence[Request]) -> str:
    """The name of a unit: of the same requests always the same."""
    return sha256("".join(request.key for request in requests).encode()).hexdigest()[:24]


def put_answer(work: str, unit: str, key: str, outcome: Outcome) -> None:
    """Keep one answer; it is there, or not at all."""
    path = storage.join(work, "open", unit, f"{key}.json")
    storage.write_bytes(path, to_json({"key": key, **outcome._asdict()}, indent=None))


def put_part(work: str, unit: str, outcomes: Mapping[str, Outcome]) -> None:
    """Keep a finished unit's answers in one file."""
    rows = [{"key": key, **outcome._asdict()} for key, outcome in sorted(outcomes.items())]
    table = pa.Table.from_pylist(rows, SCHEMA)
    write_table(work, f"parts/{unit}.parquet", [table], schema=SCHEMA)


def read_open(work: str, unit: str) -> dict[str, Outcome]:
    """The answers of a unit that was not finished."""
    found = {}
    for file in storage.list_files(storage.join(work, "open", unit), suffixes=(".json",)):
        entry = _opened(file.path)
        key = entry.pop("key")
        found[key] = Outcome(**entry)
    return found


def read_answers(work: str) -> dict[str, Outcome]:
    """All answers of a work folder by key; none where nothing is there.

    Raises:
        InputError: a file there is none of ours, or is broken.
    """
    found: dict[str, Outcome] = {}
    finished = set()
    for file in storage.list_files(storage.join(work, "parts"), suffixes=(".parquet",)):
        finished.add(file.path.rpartition("/")[2].removesuffix(".parquet"))
        for row in _part_rows(file.path):
            key = row.pop("key")
            found[key] = Outcome(**row)
    for unit in storage.list_folders(storage.join(work, "open")):
        if unit not in finished:
            found |= read_open(work, unit)
    return found


def _part_rows(path: str) -> Iterable[dict[str, Any]]:
    try:
        table = pq.read_table(pa.BufferReader(storage.read_bytes(path)), schema=SCHEMA)
    except (pa.ArrowException, ValueError) as error:
        raise InputError(f"{path}: holds no answers ({error}). Move it away.") from error
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def _opened(path: str) -> dict[str, Any]:
    try:
        entry = json.loads(storage.read_bytes(path))
        if entry["reason"] in KEPT and entry.keys() == set(SCHEMA.names):
            return dict(entry)
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise InputError(f"{path}: holds no answer; wanted {', '.join(SCHEMA.names)}. Move it away.")
