"""Rows as chats: each layout read, written as each other form, and nothing of it lost."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scar_core.errors import InputError, SchemaError
from scar_core.pool.chats import Chat, read_chat, text_of, told
from scar_core.pool.forms import write_chat, written, written_schema
from scar_core.pool.layouts import PARTS, Form, Layout, check_layout

DATA = Path(__file__).parent.parent.parent / "shared/data"

FORMS: tuple[Form, ...] = ("alpaca", "sharegpt", "messages", "prompt-completion")

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
ASKED = ("user", "assistant")
CALL = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}


def say(role: str, content: object, **beside: object) -> dict[str, Any]:
    """A message."""
    return {"role": role, "content": content, **beside}


@st.composite
def chats(draw: st.DrawFn) -> Chat:
    """Conversations of texts, with or without a system message."""
    turns = draw(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3))
    chat = [say(role, text) for turn in turns for role, text in zip(ASKED, turn, strict=True)]
    return [say("system", draw(TEXTS)), *chat] if draw(st.booleans()) else chat


@pytest.mark.parametrize("form", FORMS)
@given(chat=chats())
def test_what_is_written_reads_as_the_same_chat(form: Form, chat: Chat) -> None:
    """Of texts alone: in every form."""
    parts = write_chat(chat, form)
    assert not isinstance(parts, str)
    assert read_chat(parts, Layout(form=form)) == chat


@pytest.mark.parametrize("form", ["sharegpt", "messages", "prompt-completion"])
def test_tools_and_thoughts_stay(form: Form) -> None:
    """Calls, their results and what else a message holds."""
    chat = [
        say("user", "1 + 1?", weight=0.5),
        say("assistant", "", tool_calls=[CALL], reasoning_content="I add."),
        say("tool", "2"),
        say("assistant", "2", reasoning_content="So."),
    ]
    parts = write_chat(chat, form)
    assert not isinstance(parts, str)
    assert read_chat(parts, Layout(form=form)) == chat


@pytest.mark.parametrize(
    ("form", "chat", "why"),
    [
        ("alpaca", [say("user", "a"), say("user", "b"), say("assistant", "c")], "user, user"),
        ("alpaca", [say("user", "a")], "in turn"),
        ("alpaca", [say("system", "a")], "in turn"),
        ("alpaca", [say("user", "a"), say("assistant", "b", weight=0)], "with weight"),
        ("alpaca", [say("user", [{"type": "image"}]), say("assistant", "b")], "is parts"),
        ("sharegpt", [say("assistant", "text", tool_calls=[CALL])], "takes either"),
        ("sharegpt", [say("assistant", "", tool_calls=["add"])], "no list of functions"),
        ("prompt-completion", [say("assistant", "a")], "an answer"),
        ("prompt-completion", [say("assistant", "a"), say("user", "b")], "an answer"),
    ],
)
def test_what_a_form_cannot_hold_is_refused_with_a_reason(form: Form, chat: Chat, why: str) -> None:
    """Nothing is left out in silence."""
    parts = write_chat(chat, form)
    assert isinstance(parts, str)
    assert why in parts


@pytest.mark.parametrize(
    ("row", "chat"),
    [
        ({"instruction": "Sum", "input": "1 1", "output": "2"}, ["Sum\n1 1", "2"]),
        ({"instruction": "Sum", "input": "", "output": "2"}, ["Sum", "2"]),
        ({"instruction": "", "input": "Hi", "output": "2"}, ["Hi", "2"]),
        ({"instruction": b"Sum", "input": None, "output": b"\xc3\xa9"}, ["Sum", "é"]),
        (
            {"instruction": "c", "output": "d", "system": "S", "history": [["a", "b"]]},
            ["S", "a", "b", "c", "d"],
        ),
    ],
)
def test_alpaca_reads_as_llama_factory_reads_it(row: dict[str, Any], chat: list[str]) -> None:
    """By hand."""
    read = read_chat(row, Layout(form="alpaca"))
    assert [message["content"] for message in read if isinstance(message, dict)] == chat


@pytest.mark.parametrize(
    ("form", "row", "reason"),
    [
        ("pair", {"instruction": None, "response": "b"}, "instruction_null"),
        ("pair", {"instruction": "a", "response": b"\xff"}, "response_not_text"),
        ("alpaca", {"instruction": "a", "output": None}, "output_null"),
        ("alpaca", {"instruction": "a", "output": "b", "history": [["c"]]}, "history_not_pairs"),
        ("messages", {"messages": None}, "chat_null"),
        ("messages", {"messages": []}, "chat_empty"),
        ("messages", {"messages": [None]}, "message_null"),
        ("messages", {"messages": [say("narrator", "a")]}, "role_unknown"),
        ("messages", {"messages": [say("user", None)]}, "content_missing"),
        ("messages", {"messages": [say("user", 3)]}, "content_not_text"),
        ("sharegpt", {"conversations": [{"from": "cat", "value": "a"}]}, "role_unknown"),
        (
            "sharegpt",
            {"conversations": [{"from": "function_call", "value": "add(1)"}]},
            "calls_not_json",
        ),
        (
            "sharegpt",
            {"conversations": [{"from": "system", "value": "a"}], "system": "b"},
            "system_twice",
        ),
        ("prompt-completion", {"prompt": "a", "completion": None}, "completion_null"),
    ],
)
def test_a_row_that_is_no_chat_has_a_reason(form: Form, row: dict[str, Any], reason: str) -> None:
    """One that says in words what is wrong."""
    assert read_chat(row, Layout(form=form)) == reason
    assert "null" in told(reason) or len(told(reason).split()) > 2


def test_parts_say_what_their_texts_say() -> None:
    """Images and the like say nothing in words."""
    parts = [{"type": "text", "text": "a"}, {"type": "image", "text": None}]
    assert text_of(say("user", parts)) == "a"
    assert text_of(say("user", parts[1:])) is None
    assert text_of(say("user", "b")) == "b"
    assert text_of(say("assistant", None, tool_calls=[CALL])) is None


MESSAGES = [[say("user", "a", name=None), say("assistant", "b", name="bot")]]


def tables() -> dict[Form, pa.Table]:
    """One row in every layout, with two columns that are no part of it."""
    layouts: dict[Form, dict[str, list[Any]]] = {
        "pair": {"instruction": ["a"], "response": ["b"]},
        "alpaca": {"instruction": ["a"], "input": [""], "output": ["b"]},
        "sharegpt": {
            "conversations": [[{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]]
        },
        "messages": {"messages": MESSAGES},
        "prompt-completion": {"prompt": ["a"], "completion": ["b"]},
    }
    return {
        form: pa.table({"row_id": [7], **columns, "tags": [["x"]]})
        for form, columns in layouts.items()
    }


@pytest.mark.parametrize(
    ("given_form", "form"),
    [pair for pair in product(PARTS, FORMS) if pair != ("messages", "alpaca")],
)
def test_a_table_of_any_layout_is_written_in_any_form(given_form: Form, form: Form) -> None:
    """With the schema that was told before, and all other columns as they were."""
    table, layout = tables()[given_form], Layout(form=given_form)
    check_layout(table.schema, layout, where="x.parquet")
    found = written(table, layout, form, where=str)
    assert found.schema == written_schema(table.schema, layout, form, where="x.parquet")
    assert found.select(["row_id", "tags"]) == table.select(["row_id", "tags"])
    if form == given_form:
        assert found is table
        return
    read = read_chat(found.to_pylist()[0], Layout(form=form))
    named = {"name": "bot"} if given_form == "messages" else {}
    assert read == [say("user", "a"), say("assistant", "b", **named)]


def test_a_row_that_cannot_be_written_is_named() -> None:
    """Where, what, and what next."""
    table = tables()["messages"]
    with pytest.raises(
        InputError, match=r"p:0: cannot be written as alpaca: it holds a message"
    ) as e:
        written(table, Layout(form="messages"), "alpaca", where=lambda row: f"p:{row}")
    assert "Choose another --write-as" in str(e.value)


def test_a_column_that_is_no_part_and_has_the_name_of_one_is_refused() -> None:
    """Two columns of one name are none."""
    table = tables()["pair"].append_column("output", pa.array(["mine"]))
    with pytest.raises(SchemaError, match="has a column 'output' that is no part"):
        written_schema(table.schema, Layout(form="pair"), "alpaca", where="x.parquet")


@pytest.mark.parametrize(
    ("columns", "layout", "why"),
    [
        ({"instruction": ["a"]}, Layout(form="alpaca"), "no column 'output'"),
        ({"messages": ["[]"]}, Layout(form="messages"), "lists of {role, content}"),
        ({"prompt": [1], "completion": ["b"]}, Layout(form="prompt-completion"), "text, or lists"),
        (
            {"q": ["a"], "output": ["b"], "history": ["c"]},
            Layout(form="alpaca", columns={"instruction": "q"}),
            "lists of (instruction, response)",
        ),
    ],
)
def test_columns_that_cannot_be_a_layout_are_refused(
    columns: dict[str, list[Any]], layout: Layout, why: str
) -> None:
    """Before a row is read."""
    with pytest.raises(SchemaError) as caught:
        check_layout(pa.table(columns).schema, layout, where="x.parquet")
    assert why in str(caught.value)
    assert str(caught.value).startswith("x.parquet: ")


def test_a_layout_that_cannot_be_is_refused() -> None:
    """A part that its form lacks, and one column for two."""
    with pytest.raises(ValueError, match="has no part answer"):
        Layout(form="pair", columns={"answer": "a"})
    with pytest.raises(ValueError, match="one column for two parts"):
        Layout(form="pair", columns={"response": "instruction"})


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["pool_human", "pool_llm_misc", "pool_t0_50k"])
def test_real_rows_read_as_they_were_in_every_form(name: str, form: Form) -> None:
    """Two hundred of each pool, by the schema that files of it are written with."""
    path = DATA / f"{name}.parquet"
    if not path.exists():
        pytest.skip("the real pools are not there")
    with pq.ParquetFile(path) as file:
        table = next(file.iter_batches(batch_size=200))
    rows = pa.Table.from_batches([table])
    found = written(rows, Layout(form="pair"), form, where=str)
    beside = ["row_id", "source", "author", "model", "license"]
    assert found.select(beside) == rows.select(beside)
    for given_row, row in zip(rows.to_pylist(), found.to_pylist(), strict=True):
        wanted = [say("user", given_row["instruction"]), say("assistant", given_row["response"])]
        assert read_chat(row, Layout(form=form)) == wanted
