"""Pools that are no Parquet: read as what they are, row for row, or refused with the place."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scar_core import storage
from scar_core.errors import InputError, SchemaError
from scar_core.pool import text_rows
from scar_core.pool.files import Imports, PoolFile, list_data, open_pool, open_sound_files
from scar_core.pool.imports import import_of, make_copy
from scar_core.pool.kinds import FormatConfig, kind_of, read_ends
from scar_core.pool.units import UnitConfig, plan_units, read_ranges
from tests.pools import COLUMNS, texts

DATA = Path(__file__).parent.parent.parent / "shared/data"
ROWS = [
    {"instruction": f"Frage {row}\nmit Zeile, und „Komma“", "response": f'"a";\t{row} 🙂'}
    for row in range(50)
]


def jsonl(rows: list[Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def as_csv(rows: list[dict[str, Any]], delimiter: str = ",") -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_arrow(rows: list[dict[str, Any]], *, stream: bool) -> bytes:
    table = pa.Table.from_pylist(rows)
    sink = io.BytesIO()
    new = pa.ipc.new_stream if stream else pa.ipc.new_file
    with new(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)
    return sink.getvalue()


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


def zst(data: bytes) -> bytes:
    """Two frames, as concatenated files are."""
    half = len(data) // 2
    return b"".join(
        pa.Codec("zstd").compress(part, asbytes=True) for part in (data[:half], data[half:])
    )


def written(rows: list[dict[str, Any]]) -> dict[str, bytes]:
    """The same rows as files of every format, by name."""
    lines, columns = jsonl(rows), {name: [row[name] for row in rows] for name in rows[0]}
    return {
        "a.parquet": as_parquet(rows),
        "b.jsonl": lines,
        "c.jsonl.gz": gzip.compress(lines[:99]) + gzip.compress(lines[99:]),
        "d.jsonl.zst": zst(lines),
        "e.jsonl.bz2": bz2.compress(lines),
        "f.ndjson.xz": lzma.compress(lines),
        "g/list.json": json.dumps(rows, indent=2).encode(),
        "g/lines.json": lines,
        "g/columns.json": json.dumps(columns).encode(),
        "g/data.json": json.dumps({"version": "1", "data": rows}, indent=1).encode(),
        "g/list.json.gz": gzip.compress(b"\xef\xbb\xbf" + json.dumps(rows).encode()),
        "h.csv": as_csv(rows),
        "i.csv.gz": gzip.compress(b"\xef\xbb\xbf" + as_csv(rows)),
        "j.tsv": as_csv(rows, "\t"),
        "k.arrow": as_arrow(rows, stream=False),
        "l.arrow": as_arrow(rows, stream=True),
    }


def write_all(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def rows_of(file: PoolFile) -> list[dict[str, Any]]:
    return [row for table in read_ranges(file, [(0, file.rows)]) for row in table.to_pylist()]


def imported(path: Path, data: bytes, config: FormatConfig | None = None) -> PoolFile:
    """A file of such bytes, opened as a pool of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    importing = Imports(scores=str(path.parent / "scores"), config=config or FormatConfig())
    return open_pool([str(path)], COLUMNS, importing=importing)[0]


def pool_of(folder: Path, scores: Path) -> list[PoolFile]:
    return open_pool([str(folder)], COLUMNS, importing=Imports(scores=str(scores)))


def test_every_format_holds_the_same_rows_in_the_same_units(tmp_path: Path) -> None:
    """Row n of a file is row n of its copy, and units are cut alike."""
    everything = written(ROWS)
    write_all(tmp_path / "pool", everything)
    files = open_pool(
        [str(tmp_path / "pool" / name) for name in everything],
        COLUMNS,
        importing=Imports(scores=str(tmp_path / "scores")),
    )
    assert len(files) == len(everything)
    config = UnitConfig(unit_rows=20)
    cuts = {(unit.row_start, unit.rows) for unit in plan_units(files, config)}
    assert cuts == {(0, 16), (16, 17), (33, 17)}
    for file in files:
        assert rows_of(file) == ROWS, file.path
        assert "scores/imported" in file.rows_url or file.path == "a.parquet"
        assert file.url.endswith(file.path)


def test_a_copy_is_made_once_and_again_when_it_is_gone(tmp_path: Path) -> None:
    """A later run reads it; one that was deleted comes back as it was."""
    pool = write_all(tmp_path / "pool", {"b.jsonl": jsonl(ROWS)})
    first = pool_of(pool, tmp_path / "scores")[0]
    copy = tmp_path / "scores/imported" / f"{first.fingerprint}.parquet"
    stamp, data = copy.stat().st_mtime_ns, copy.read_bytes()
    assert pool_of(pool, tmp_path / "scores") == [first]
    assert copy.stat().st_mtime_ns == stamp
    copy.unlink()
    assert pool_of(pool, tmp_path / "scores") == [first]
    assert copy.read_bytes() == data


def test_a_changed_file_is_another_one(tmp_path: Path) -> None:
    """Of the same name and size, too: its old copy is not read for it."""
    pool = write_all(tmp_path / "pool", {"b.jsonl": jsonl(ROWS)})
    before = pool_of(pool, tmp_path / "scores")[0]
    write_all(pool, {"b.jsonl": jsonl(ROWS).replace(b"Frage 7", b"Frage 8")})
    now = pool_of(pool, tmp_path / "scores")[0]
    assert now.fingerprint != before.fingerprint
    assert rows_of(now)[7]["instruction"].startswith("Frage 8")


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


def same(found: Any, wanted: Any) -> bool:  # noqa: ANN401 - any JSON
    """Whether a value came back: as it was, as its JSON, or with nulls for keys it lacks."""
    if isinstance(found, str) and not isinstance(wanted, str):
        return bool(json.loads(found) == wanted)
    if isinstance(wanted, dict):
        return found.keys() >= wanted.keys() and all(
            same(value, wanted.get(name)) for name, value in found.items()
        )
    if isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(same, found, wanted))
    if isinstance(wanted, bool) or wanted is None or isinstance(wanted, str):
        return bool(found is wanted or found == wanted)
    return bool(found == wanted)


@given(
    st.lists(st.dictionaries(st.sampled_from("abcd"), json_values), min_size=1, max_size=6),
    st.sampled_from([b"\n", b"\r\n", b"\n\n \t\n"]),
    st.booleans(),
)
def test_json_rows_come_back_as_the_same_objects(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], end: bytes, lines: bool
) -> None:
    """Whatever they hold, in lines of any kind or in a list; what has no type is JSON text."""
    rows = [{"instruction": "i", **row} for row in rows]
    if lines:
        data = b"\xef\xbb\xbf" + end.join(json.dumps(row).encode() for row in rows) + end
    else:
        data = json.dumps(rows, ensure_ascii=False, indent=1).encode()
    path = tmp_path_factory.mktemp("rows") / ("x.jsonl" if lines else "x.json")
    path.write_bytes(data)
    info = storage.stat(str(path))
    ends = read_ends(info)
    task = import_of(info, kind_of(info, ends[0], FormatConfig()), ends, str(path.parent))
    outcome = make_copy(task)
    assert not outcome.reason, outcome.message
    found = pq.read_table(task.copy).to_pylist()
    assert len(found) == len(rows)
    for got, row in zip(found, rows, strict=True):
        assert same(got, row), (got, row)


def test_types_are_the_narrowest_that_lose_nothing(tmp_path: Path) -> None:
    """Whole numbers among floats become floats unless a digit would go; keys keep their order."""
    rows: list[dict[str, Any]] = [
        {"z": 1, "instruction": "a", "response": "b", "n": 1, "big": 2**63, "long": 2**60},
        {"z": 2.5, "instruction": "a", "response": "b", "n": None, "big": 1, "long": 1},
        {"exact": 2**60, "mixed": "text", "late": {"x": [1, {"y": 2}]}},
        {"exact": 0.5, "mixed": {"k": "ü"}, "late": {"x": []}},
    ]
    file = imported(tmp_path / "x.jsonl", jsonl(rows))
    types = {field.name: str(field.type) for field in file.schema}
    assert list(types) == [
        "z",
        "instruction",
        "response",
        "n",
        "big",
        "long",
        "exact",
        "mixed",
        "late",
    ]
    assert (types["z"], types["n"], types["big"], types["long"], types["exact"]) == (
        "double",
        "int64",
        "string",
        "int64",
        "string",
    )
    found = rows_of(file)
    assert [row["mixed"] for row in found[2:]] == ["text", '{"k": "ü"}']
    assert [row["big"] for row in found[:2]] == [str(2**63), "1"]
    assert file.schema.field("mixed").metadata == {b"scar.kept_as": b"text"}
    assert found[2]["late"] == {"x": ["1", '{"y": 2}']}


def test_a_broken_line_is_a_row_of_nulls_in_its_place(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Rows around it keep their numbers; the first one is told with its line."""
    lines = [
        b'{"instruction": "a", "response": "b"}',
        b"",
        b'{"instruction": "cut',
        b"[1, 2]",
        b'{"instruction": "\\ud83d", "response": "half"}',
        b'{"instruction": "caf\xe9", "response": "Latin-1"}',
        b'{"instruction": ' + b"[" * 100_000,
        b'{"instruction": "\\ud83d\\ude42", "response": "whole"}',
    ]
    with caplog.at_level("WARNING"):
        file = imported(tmp_path / "x.jsonl", b"\r\n".join(lines))
    assert sorted(file.broken) == [1, 2, 3, 4, 5]
    assert [row["response"] for row in rows_of(file)] == ["b", *[None] * 5, "whole"]
    assert rows_of(file)[-1]["instruction"] == "🙂"
    assert "5 broken rows" in caplog.text
    assert "line 3, is not JSON" in caplog.text
    assert not file.schema.metadata


def test_a_broken_line_of_csv_is_one_too(tmp_path: Path) -> None:
    """Too many fields, too few, or bytes that are not UTF-8."""
    data = b'instruction;response\n"a\r\n;b";c\nd;e;f\ng\n\ncaf\xe9;x\n;\n'
    file = imported(tmp_path / "x.csv", data, FormatConfig(csv_delimiter=";"))
    assert sorted(file.broken) == [1, 2, 3]
    assert file.broken_reason == "not_csv"
    found = [(row["instruction"], row["response"]) for row in rows_of(file)]
    assert found == [("a\r\n;b", "c"), *[(None, None)] * 3, ("", "")]


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("x.jsonl.gz", gzip.compress(jsonl(ROWS))[:-20], "cannot be read as jsonl.gz"),
        ("x.jsonl.zst", zst(jsonl(ROWS))[:-20], "cannot be read as jsonl.zst"),
        ("x.json", b'[{"instruction": "a"}, {"instruction": "b"', "item 2 is not JSON"),
        ("x.json", b'[{"instruction": "a"} {"instruction": "b"}]', "wanted a comma"),
        ("x.json", b'[{"instruction": "a"}] tail', "something follows the list"),
        ("x.csv", b'instruction,response\na,"never closed\n1,2\n', "line 3 is not CSV"),
        ("x.csv", b"instruction,instruction\na,b\n", "several columns are named instruction"),
        ("x.csv", b"question,response\na,b\n", "found question, response"),
        ("x.jsonl", b"", "has no columns"),
        ("x.jsonl", "a".encode("utf-16"), "is text in UTF-16"),
        ("x.arrow", b"ARROW1 and no more", "cannot be read as arrow"),
        ("x.txt", b"prose", "neither its name nor its first bytes"),
    ],
)
def test_what_cannot_be_read_is_told_with_its_place(
    tmp_path: Path, name: str, data: bytes, told: str
) -> None:
    """The file, where in it, and what next; nothing is left in the scores directory."""
    with pytest.raises(InputError, match=told) as caught:
        imported(tmp_path / name, data)
    assert str(tmp_path / name) in str(caught.value)
    copies = list((tmp_path / "scores").rglob("*"))
    assert isinstance(caught.value, SchemaError) or not [p for p in copies if p.is_file()]


def test_a_bad_file_is_quarantined_whole(tmp_path: Path) -> None:
    """With its reason, its name in the pool, and no effect on the others."""
    pool = write_all(
        tmp_path / "pool",
        {
            "good.jsonl": jsonl(ROWS),
            "bad.jsonl.gz": b"\x1f\x8b rubbish",
            "c.csv": b"q,response\n1,2\n",
        },
    )
    files, bad = open_sound_files(
        [str(pool)], COLUMNS, importing=Imports(scores=str(tmp_path / "scores"))
    )
    assert [file.path for file in files] == ["good.jsonl"]
    assert [(file.path, file.reason) for file in bad] == [
        ("bad.jsonl.gz", "not_jsonl"),
        ("c.csv", "schema"),
    ]
    assert bad[0].message.startswith("bad.jsonl.gz: cannot be read")


def test_first_bytes_are_believed_before_a_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A wrong name is said, with what was found."""
    with caplog.at_level("WARNING"):
        assert rows_of(imported(tmp_path / "x.jsonl.gz", jsonl(ROWS))) == ROWS
        assert rows_of(imported(tmp_path / "y.jsonl", as_parquet(ROWS))) == ROWS
        assert rows_of(imported(tmp_path / "z.csv", gzip.compress(as_csv(ROWS)))) == ROWS
    assert "x.jsonl.gz: holds jsonl, its name says jsonl.gz" in caplog.text
    assert "y.jsonl: holds parquet, its name says jsonl" in caplog.text
    asked = FormatConfig(pool_format="jsonl")
    assert rows_of(imported(tmp_path / "rows.txt", jsonl(ROWS), asked)) == ROWS


def test_a_file_is_left_out_only_for_the_name_of_a_description(tmp_path: Path) -> None:
    """Rows beside files of another format are rows; named outright a description is read, too."""
    pool = write_all(
        tmp_path / "pool",
        {
            "manifest.json": b"{}",
            "data/a.parquet": as_parquet(ROWS),
            "data/b.json": json.dumps(ROWS).encode(),
            "data/dataset_info.json": b"{}",
            "more.json": json.dumps(ROWS).encode(),
        },
    )
    listed = [info.path.rpartition("/")[2] for info in list_data(str(pool))]
    assert listed == ["a.parquet", "b.json", "more.json"]
    named = [info.path for info in list_data(f"{pool}/m*.json")]
    assert named == [f"{pool}/manifest.json", f"{pool}/more.json"]


def test_a_list_longer_than_what_is_read_at_once_is_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However the file is cut into reads, numbers and escapes too."""
    rows: list[Any] = [
        {"instruction": "\\" * n + '"]},{', "response": "é" * n, "n": 10**n} for n in range(9)
    ]
    data = json.dumps([*rows, 12345, "text"]).encode()
    for size in (1, 2, 3, 7, 50):
        monkeypatch.setattr(text_rows, "_READ_CHARACTERS", size)
        found = [row for _, row in text_rows.json_rows(lambda: io.BytesIO(data), lines=False)]
        assert found[:-2] == rows
        assert [row.why for row in found[-2:] if isinstance(row, text_rows.Broken)] == [
            "is a int, no object",
            "is a str, no object",
        ]


def test_a_saved_dataset_is_its_listed_files(tmp_path: Path) -> None:
    """Each split, in the order of its shards; no cache file and no state is data."""
    datasets = pytest.importorskip("datasets")
    table = texts(30)
    data = datasets.Dataset(table)
    split = datasets.DatasetDict({"train": data, "test": data.select(range(4))})
    split.save_to_disk(str(tmp_path / "saved"), num_shards={"train": 3, "test": 1})
    (tmp_path / "saved/train/cache-0123.arrow").write_bytes(b"ARROW1 left over")
    files = pool_of(tmp_path / "saved", tmp_path / "scores")
    assert [(file.path, file.rows) for file in files] == [
        ("test/data-00000-of-00001.arrow", 4),
        ("train/data-00000-of-00003.arrow", 10),
        ("train/data-00001-of-00003.arrow", 10),
        ("train/data-00002-of-00003.arrow", 10),
    ]
    assert [row for file in files[1:] for row in rows_of(file)] == table.to_pylist()


def test_pool_and_copies_may_lie_in_any_store(folder: str) -> None:
    """Read in parts, unpacked as a stream, and copied into the same store."""
    for name in ("c.jsonl.gz", "d.jsonl.zst", "g/list.json", "k.arrow", "l.arrow"):
        storage.write_bytes(storage.join(folder, "pool", name), written(ROWS)[name])
    scores = storage.join(folder, "scores")
    files = open_pool(
        [storage.join(folder, "pool"), storage.join(folder, "pool/g/list.json")],
        COLUMNS,
        importing=Imports(scores=scores),
    )
    assert [file.format for file in files] == ["jsonl.gz", "jsonl.zst", "json", "arrow", "arrow"]
    for file in files:
        assert file.rows_url.startswith(f"{scores}/imported/")
        assert rows_of(file) == ROWS, file.path


@pytest.mark.soak
@pytest.mark.skipif(not DATA.exists(), reason=f"{DATA} is not there")
@pytest.mark.parametrize("name", ["pool_human", "pool_llm_misc", "pool_t0_50k"])
def test_real_rows_are_the_same_through_every_format(tmp_path: Path, name: str) -> None:
    """All rows of a real pool, with all their columns; CSV has no nulls and no types."""
    rows = pq.read_table(DATA / f"{name}.parquet").to_pylist()
    everything = written(rows)
    write_all(tmp_path / "pool", everything)
    importing = Imports(scores=str(tmp_path / "scores"))
    pool = [str(tmp_path / "pool" / file) for file in everything]
    as_text = [
        {column: "" if value is None else str(value) for column, value in row.items()}
        for row in rows
    ]
    for file in open_pool(pool, COLUMNS, importing=importing):
        assert rows_of(file) == (as_text if file.format.startswith("csv") else rows), file.path
