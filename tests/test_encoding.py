"""Texts to token ids: the ids transformers gives, nothing lost without being counted."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import ByT5Tokenizer

from scar_core.errors import RankerError
from scar_core.ranker.encoding import TextTokenizer, TokenRows, _chunks
from tests.tiny import tiny_tokenizer

ROOT = Path(__file__).parents[1]
TOKENIZER = tiny_tokenizer()
TEXTS = (
    "",
    "a",
    "two words",
    "Größe, naïve café, 数据选择, данные 🦊 e\u0301",
    "a special </s> token <pad> as text",
    "line\n\n\tbreaks and   runs of spaces  ",
    "long " * 700,
    "数" * 300,
)


def plain(tokenizer: Any, text: str, max_tokens: int | None) -> list[int]:  # noqa: ANN401 - any tokenizer
    """What transformers itself gives for one text; None = without a limit."""
    limits = {"truncation": True, "max_length": max_tokens} if max_tokens else {"verbose": False}
    return list(tokenizer(text, **limits)["input_ids"])


def rows_of(lists: list[list[int]]) -> TokenRows:
    """Token rows written by hand, nothing cut."""
    offsets = np.cumsum([0, *map(len, lists)], dtype=np.int64)
    ids = np.array([token for ids in lists for token in ids], dtype=np.int32)
    return TokenRows(ids, offsets, np.zeros(len(lists), dtype=np.int32))


def as_lists(rows: TokenRows) -> list[list[int]]:
    """The ids of each text."""
    starts = rows.offsets_N1[1:-1]
    return [ids.tolist() for ids in np.split(rows.ids_T, starts)] if len(rows) else []


@pytest.mark.parametrize("max_tokens", [3, 8, 512])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", ["rust", "python"])
def test_ids_are_those_of_transformers_with_truncation(
    kind: str, side: str, max_tokens: int
) -> None:
    """Empty, short, over-long and non-ASCII texts: the same ids, and each token cut is counted."""
    tokenizer = tiny_tokenizer() if kind == "rust" else ByT5Tokenizer()
    tokenizer.truncation_side = side
    rows = TextTokenizer(tokenizer, max_tokens=max_tokens).tokenize(TEXTS)
    kept = [plain(tokenizer, text, max_tokens) for text in TEXTS]
    whole = [plain(tokenizer, text, None) for text in TEXTS]
    assert as_lists(rows) == kept
    assert rows.cut_N.tolist() == [len(a) - len(b) for a, b in zip(whole, kept, strict=True)]
    assert max(rows.lengths_N) <= max_tokens


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=80), max_size=6))
def test_no_text_breaks_the_equality(texts: list[str]) -> None:
    """Whatever the characters, ids and cuts are those of transformers, text by text."""
    rows = TextTokenizer(TOKENIZER, max_tokens=12).tokenize(texts)
    assert as_lists(rows) == [plain(TOKENIZER, text, 12) for text in texts]
    whole = [len(plain(TOKENIZER, text, None)) for text in texts]
    assert (rows.lengths_N + rows.cut_N).tolist() == whole


def test_order_survives_large_calls() -> None:
    """3,000 texts in one call equal 3,000 calls."""
    texts = [f"text {number}" * (number % 5) for number in range(3000)]
    tokenizer = TextTokenizer(TOKENIZER)
    rows = tokenizer.tokenize(texts)
    for index in (0, 1, 1023, 1024, 2999):
        alone = tokenizer.tokenize([texts[index]])
        assert as_lists(rows.take([index])) == as_lists(alone)
    assert len(rows) == 3000
    assert rows.ids_T.dtype == np.int32


def test_no_texts_are_no_rows() -> None:
    """An empty call gives zero rows of the right types."""
    rows = TextTokenizer(TOKENIZER).tokenize([])
    assert len(rows) == 0
    assert rows.ids_T.dtype == np.int32
    assert rows.offsets_N1.tolist() == [0]


def test_others_use_of_the_same_tokenizer_changes_nothing() -> None:
    """A padded call with another limit, before or in between, leaves no trace either way."""
    shared = tiny_tokenizer()
    tokenizer = TextTokenizer(shared, max_tokens=16)
    before = as_lists(tokenizer.tokenize(TEXTS))
    padded = shared(list(TEXTS), padding=True, truncation=True, max_length=5)["input_ids"]
    assert as_lists(tokenizer.tokenize(TEXTS)) == before
    assert shared(list(TEXTS), padding=True, truncation=True, max_length=5)["input_ids"] == padded


def test_threads_may_share_it() -> None:
    """Eight threads at once get what one gets alone."""
    tokenizer = TextTokenizer(TOKENIZER, max_tokens=64)
    batches = [[f"{text} {number}" for text in TEXTS] for number in range(32)]
    with ThreadPoolExecutor(8) as pool:
        together = [as_lists(rows) for rows in pool.map(tokenizer.tokenize, batches)]
    assert together == [as_lists(tokenizer.tokenize(batch)) for batch in batches]


def test_it_travels_between_processes() -> None:
    """Pickled, as for a worker, it gives the same ids."""
    tokenizer = TextTokenizer(TOKENIZER, max_tokens=16)
    copy = pickle.loads(pickle.dumps(tokenizer))  # noqa: S301 - our own bytes
    assert as_lists(copy.tokenize(TEXTS)) == as_lists(tokenizer.tokenize(TEXTS))


def test_a_process_may_fork_after_tokenizing(tmp_path: Path) -> None:
    """No warning, no deadlock: the child tokenizes too."""
    tiny_tokenizer(tmp_path)
    script = (
        "import os, sys; from scar_core.ranker.encoding import TextTokenizer\n"
        "tokenizer = TextTokenizer.load(sys.argv[1]); tokenizer.tokenize(['a'] * 2000)\n"
        "child = os.fork()\n"
        "tokenizer.tokenize(['b'] * 2000)\n"
        "if child: sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    env = {name: value for name, value in os.environ.items() if name != "TOKENIZERS_PARALLELISM"}
    command = [sys.executable, "-c", script, str(tmp_path)]
    run = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_saved_is_loaded(tmp_path: Path) -> None:
    """From a folder of this machine or of a store, the same ids and padding id."""
    tokenizer = TextTokenizer(tiny_tokenizer(pad=1), max_tokens=16)
    tokenizer.save(str(tmp_path))
    store = fsspec.filesystem("memory")
    store.put(str(tmp_path) + "/", "/tokenizers/tiny", recursive=True)
    for place in (str(tmp_path), "memory://tokenizers/tiny"):
        loaded = TextTokenizer.load(place, max_tokens=16)
        assert as_lists(loaded.tokenize(TEXTS)) == as_lists(tokenizer.tokenize(TEXTS))
        assert (loaded.pad_id, loaded.max_tokens) == (1, 16)
    store.rm("/tokenizers", recursive=True)


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    """One sentence says where and what to give instead, for missing and for damaged files."""
    with pytest.raises(RankerError, match=f"{tmp_path}: no tokenizer that transformers can read"):
        TextTokenizer.load(str(tmp_path))
    tiny_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "mod')
    with pytest.raises(RankerError, match=f"{tmp_path}: no tokenizer that transformers can read"):
        TextTokenizer.load(str(tmp_path))


def test_a_limit_below_the_special_tokens_is_refused() -> None:
    """Two special tokens leave nothing for the text at max_tokens = 2."""
    with pytest.raises(ValueError, match="max_tokens must be above 2 special tokens, got 2"):
        TextTokenizer(TOKENIZER, max_tokens=2)


def test_arrow_lists_share_the_memory() -> None:
    """To Arrow and back, not one id is copied."""
    rows = TextTokenizer(TOKENIZER, max_tokens=16).tokenize(TEXTS)
    back = TokenRows.from_arrow(rows.to_arrow(), rows.cut_N)
    assert rows.to_arrow().type == pa.large_list(pa.int32())
    assert np.shares_memory(back.ids_T, rows.ids_T)
    assert as_lists(back) == as_lists(rows)


@pytest.mark.parametrize("kind", [pa.list_(pa.int32()), pa.large_list(pa.int32())])
def test_arrow_lists_may_be_slices_and_chunks(kind: pa.DataType) -> None:
    """However Arrow cut the lists, the same texts come back; a null is an error."""
    lists = [[1, 2], [], [3], [4, 5, 6], [7]]
    array = pa.array(lists, kind)
    chunks = pa.chunked_array([array[:2], array[2:4]], kind)
    assert as_lists(TokenRows.from_arrow(array[1:4], [0, 0, 0])) == lists[1:4]
    assert as_lists(TokenRows.from_arrow(chunks, np.zeros(4))) == lists[:4]
    assert as_lists(TokenRows.from_arrow(array[:0], [])) == []
    assert as_lists(TokenRows.from_arrow(pa.chunked_array([], kind), [])) == []
    with pytest.raises(ValueError, match="1 of 2 token lists are null"):
        TokenRows.from_arrow(pa.array([[1], None], kind), [0, 0])


def test_take_gives_texts_in_the_order_asked_for() -> None:
    """Positions may repeat, be empty texts, or be none at all."""
    lists = [[1, 2], [], [3], [4, 5, 6]]
    rows = rows_of(lists)
    assert as_lists(rows.take([3, 1, 3, 0])) == [lists[3], lists[1], lists[3], lists[0]]
    assert as_lists(rows.take([])) == []


def test_rows_that_do_not_add_up_are_refused() -> None:
    """Offsets beyond the ids, or cuts of other texts, never reach a model."""
    ids, cut = np.arange(3, dtype=np.int32), np.zeros(1, dtype=np.int32)
    with pytest.raises(ValueError, match="offsets run from 0 to 4, ids from 0 to 3"):
        TokenRows(ids, np.array([0, 4]), cut)
    with pytest.raises(ValueError, match="offsets of 2 texts, cut counts of 1"):
        TokenRows(ids, np.array([0, 1, 3]), cut)


def test_long_texts_are_not_tokenized_together() -> None:
    """Some 300 bytes per token are held until truncation; order and number stay."""
    texts = ["a" * 200_000] * 3 + ["b", "c" * 600_000, "", "d"] + ["e"] * 1100
    chunks = list(_chunks(texts))
    assert [text for chunk in chunks for text in chunk] == texts
    assert [len(chunk) for chunk in chunks] == [2, 2, 1, 1024, 78]
    assert list(_chunks([])) == []
