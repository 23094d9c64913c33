"""Manifests: published once, last, and only if every row is accounted for."""

from __future__ import annotations

import json
import platform
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scar_core import storage
from scar_core.errors import IncompleteError, InputError
from scar_core.manifest import (
    Kind,
    check_counts,
    check_unpublished,
    describe_file,
    follow_pointer,
    new_run_id,
    publish,
    read_manifest,
    to_json,
    write_pointer,
)

if TYPE_CHECKING:
    from pathlib import Path

SCORES = {"rows_in": 10, "scored": 7, "quarantined": {"too_large": 1, "response_null": 2}}
SELECTION = {**SCORES, "selected": 3, "not_selected": 4}


def files_of(rows: int) -> list[dict[str, Any]]:
    """A `files` list of so many rows, and a file that is no table."""
    entry = {"bytes": 1, "sha256": "0" * 64}
    return [
        {"path": "data/a.parquet", "rows": rows, **entry},
        {"path": "report.json", "rows": 0, **entry},
    ]


def publish_scores(folder: str, **changes: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
    """Publish scores whose counts close, but for what is changed."""
    options: dict[str, Any] = {"counts": SCORES, "files": files_of(10), "config": {}, "inputs": []}
    return publish(folder, kind="scores", **(options | changes))


# Publishing


def test_a_manifest_is_read_as_it_was_published(folder: str) -> None:
    """With everything that a result depends on, and whatever else its job adds."""
    config = {"pool": ["../pü ol"], "keep": "10%", "limits": [1.5, None, True]}
    inputs = [{"kind": "ranker", "fingerprint": "abc"}]
    manifest = publish_scores(folder, config=config, inputs=inputs, key_id="k")
    assert read_manifest(folder, kind="scores") == manifest
    assert list(manifest) == [
        "kind",
        "version",
        "id",
        "created",
        "config",
        "inputs",
        "software",
        "counts",
        "key_id",
        "files",
    ]
    assert (manifest["config"], manifest["inputs"]) == (config, inputs)
    assert (manifest["counts"], manifest["files"]) == (SCORES, files_of(10))
    age = datetime.now(UTC) - datetime.fromisoformat(manifest["created"])
    assert 0 <= age.total_seconds() < 60


def test_a_manifest_names_the_versions_that_are_installed(folder: str) -> None:
    """Without importing anything for it."""
    software = publish_scores(folder)["software"]
    assert software["python"] == platform.python_version()
    assert software["pyarrow"] == pa.__version__


def test_nothing_is_published_twice(folder: str) -> None:
    """The first manifest stays, and whoever comes later is told before and after the work."""
    check_unpublished(folder)
    first = publish_scores(folder)
    with pytest.raises(IncompleteError, match="another run published this directory first"):
        publish_scores(folder, config={"another": "run"})
    assert read_manifest(folder, kind="scores") == first
    with pytest.raises(InputError, match=r"already holds a published run.*another --out"):
        check_unpublished(folder)


def test_of_many_runs_on_one_directory_one_publishes(tmp_path: Path) -> None:
    """At the same moment; the others fail."""

    def run(number: int) -> bool:
        try:
            publish_scores(str(tmp_path), config={"run": number})
        except IncompleteError:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        won = list(threads.map(run, range(8)))
    assert sum(won) == 1
    assert read_manifest(str(tmp_path), kind="scores")["config"] == {"run": won.index(True)}


@pytest.mark.parametrize(
    ("kind", "counts", "rows", "says"),
    [
        ("scores", {**SCORES, "scored": 6}, 10, "10 rows went in, but scored + quarantined = 9"),
        ("scores", {**SCORES, "rows_in": 9}, 9, "9 rows went in, but scored + quarantined = 10"),
        ("scores", {**SCORES, "quarantined": {}}, 10, "scored + quarantined = 7"),
        (
            "selection",
            {**SELECTION, "not_selected": 5},
            3,
            "selected + not_selected + quarantined = 11",
        ),
        ("selection", {**SELECTION, "scored": 8}, 3, "scored + quarantined = 11"),
        ("scores", SCORES, 9, "the files hold 9 rows, rows_in is 10"),
        ("selection", SELECTION, 4, "the files hold 4 rows, selected is 3"),
    ],
)
def test_rows_that_are_missing_stop_the_run(
    folder: str, kind: Kind, counts: dict[str, Any], rows: int, says: str
) -> None:
    """In the counts or in the files; and then nothing is published."""
    with pytest.raises(IncompleteError) as caught:
        publish(folder, kind=kind, config={}, inputs=[], counts=counts, files=files_of(rows))
    assert says in str(caught.value)
    assert str(caught.value).endswith("Nothing was published.")
    assert not storage.exists(storage.join(folder, "manifest.json"))


@settings(deadline=None)
@given(
    selected=st.integers(0, 99),
    others=st.integers(0, 99),
    quarantined=st.dictionaries(st.text(max_size=3), st.integers(0, 99), max_size=3),
    lost=st.integers(-2, 2),
)
def test_counts_close_exactly_or_not_at_all(
    selected: int, others: int, quarantined: dict[str, int], lost: int
) -> None:
    """One row too few or too many is enough."""
    counts = {
        "rows_in": selected + others + sum(quarantined.values()) + lost,
        "scored": selected + others,
        "selected": selected,
        "not_selected": others,
        "quarantined": quarantined,
    }
    if lost:
        with pytest.raises(IncompleteError):
            check_counts(counts, where="here")
    else:
        check_counts(counts, where="here")


def test_a_ranker_counts_no_rows(folder: str) -> None:
    """It may be published with counts of its own."""
    publish(folder, kind="ranker", config={}, inputs=[], counts={"pairs": 3}, files=files_of(0))
    assert read_manifest(folder, kind="ranker")["counts"] == {"pairs": 3}


# Reading


def test_what_was_not_published_is_not_read(folder: str) -> None:
    """A directory without a manifest, or none at all; a file in place of a directory."""
    storage.write_bytes(storage.join(folder, "data/a.parquet"), b"")
    for place in (folder, storage.join(folder, "x"), storage.join(folder, "data/a.parquet")):
        with pytest.raises(InputError) as caught:
            read_manifest(place, kind="selection")
        assert str(caught.value) == (
            f"{place}: has no manifest.json, so nothing was published there. "
            "Pass the directory of a finished selection."
        )
        check_unpublished(place)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is not JSON"),
        (b'{"kind": "scores", ', "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[1, 2]", "holds no JSON object"),
        (b"{}", "wanted kind 'scores', version 1; found None, version None"),
        (b'{"kind": "ranker", "version": 1}', "found 'ranker', version 1"),
        (b'{"kind": "scores", "version": 2}', "found 'scores', version 2"),
    ],
)
def test_a_manifest_that_is_none_of_ours_is_an_input_error(
    folder: str, content: bytes, says: str
) -> None:
    """Named by its path, with what was wanted."""
    path = storage.join(folder, "manifest.json")
    storage.write_bytes(path, content)
    with pytest.raises(InputError) as caught:
        read_manifest(folder, kind="scores")
    assert str(caught.value).startswith(f"{path}: ")
    assert says in str(caught.value)


# The pointer


def test_the_pointer_names_the_newest_run(folder: str) -> None:
    """None where nothing was ever published; each run replaces it."""
    assert follow_pointer(folder) is None
    for run in ("selected/1", "selected/2"):
        write_pointer(folder, run, kind="selection")
        assert follow_pointer(folder) == storage.join(folder, run)
    stored = json.loads(storage.read_bytes(storage.join(folder, "latest.json")))
    assert stored == {
        "kind": "selection",
        "run": "selected/2",
        "manifest": "selected/2/manifest.json",
    }


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"run": 3}', b'"run"'])
def test_a_pointer_that_names_nothing_is_an_input_error(folder: str, content: bytes) -> None:
    """Not a traceback."""
    storage.write_bytes(storage.join(folder, "latest.json"), content)
    with pytest.raises(InputError, match=r"latest\.json: "):
        follow_pointer(folder)


# Parts


def test_a_file_is_described_as_it_is_stored(folder: str) -> None:
    """Size and checksum of the bytes that are there, also of more than are read at once."""
    content = bytes(range(256)) * 40_000
    for data in (b"", content):
        storage.write_bytes(storage.join(folder, "data/a b.bin"), data)
        described = describe_file(folder, "data/a b.bin", rows=3)
        assert described == ("data/a b.bin", 3, len(data), sha256(data).hexdigest())
        assert described._asdict()["rows"] == 3
    with pytest.raises(FileNotFoundError):
        describe_file(folder, "nothing")


def test_names_of_runs_sort_by_time_and_differ() -> None:
    """They are directories side by side."""
    before = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    names = [new_run_id() for _ in range(100)]
    assert len(set(names)) == 100
    assert all(name >= before for name in names)
    assert all(set(name) <= set("0123456789TZabcdef-") for name in names)


def test_json_is_valid_for_any_reader() -> None:
    """Infinite thresholds and NaN as text, which JSON's numbers lack; letters as they are."""
    value = {"b": [1.5, float("inf"), (float("nan"), -float("inf"))], "a": {"ü": 1, "n": None}}
    text = to_json(value).decode()

    def refuse(name: str) -> None:
        raise AssertionError(name)

    read = json.loads(text, parse_constant=refuse)
    assert read == {"b": [1.5, "inf", ["nan", "-inf"]], "a": {"ü": 1, "n": None}}
    assert list(read) == ["b", "a"]
    assert "ü" in text
    assert float(read["b"][1]) == float("inf")
