"""Turns, windows and shapes of rows: many pieces, one score; every shape says the same."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scar_core.errors import SchemaError
from scar_core.library import score_rows
from scar_core.pool.pairs import check_rows
from scar_core.pool.pieces import Pieces, reduce_pieces
from scar_core.pool.rows import CheckedPairs, PairColumns, content_hash
from scar_core.pool.shapes import check_shape, columns_read, resolved
from scar_core.ranker.checkpoint import LoadedRanker
from scar_core.ranker.cutting import tokenize_pairs
from scar_core.ranker.encoding import TextTokenizer
from scar_core.scoring import Scorer, ScoringConfig
from tests.tiny import tiny_ranker, tiny_tokenizer

if TYPE_CHECKING:
    from scar_core.pool.rows import Long, Turns

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Name a prime."},
    {"role": "assistant", "content": "Seven."},
    {"role": "user", "content": "And an even one?"},
    {"role": "assistant", "content": "Two is the only even prime number there is."},
    {"role": "user", "content": "Thanks"},
]
ASKED_FIRST = "System: Be brief.\n\nUser: Name a prime."
ASKED_LAST = f"{ASKED_FIRST}\n\nAssistant: Seven.\n\nUser: And an even one?"
TAGS = {"system": "system", "user": "human", "assistant": "gpt"}


def sharegpt(chat: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{"from": TAGS[message["role"]], "value": message["content"]} for message in chat]


def checked(table: pa.Table, **columns: Any) -> CheckedPairs:  # noqa: ANN401 - any of its fields
    """Rows as they are read once their shape is found."""
    how = resolved(
        table.schema, PairColumns(**columns), first_values=lambda n: table[n].to_pylist()
    )
    check_shape(table.schema, how, where="x")
    return check_rows(table.select(columns_read(how, table.schema)), how)


# Pieces → rows


@st.composite
def pieces(draw: st.DrawFn) -> list[list[list[tuple[float, int]]]]:
    """Rows of turns of windows, each a score and a weight."""
    score = st.floats(-100, 100, width=32)
    window = st.tuples(score, st.integers(1, 9000))
    turn = st.lists(window, min_size=1, max_size=3)
    return draw(st.lists(st.lists(turn, min_size=1, max_size=4), max_size=6))


@settings(max_examples=200)
@given(pieces(), st.sampled_from(["all", "mean", "min"]))
def test_pieces_come_back_as_a_plain_loop_has_them(
    rows: list[list[list[tuple[float, int]]]], turns: Turns
) -> None:
    """Windows by tokens, turns by what was asked for; a lone piece to the bit."""
    flat = [
        (k, t, score, weight)
        for k, row in enumerate(rows)
        for t, turn in enumerate(row)
        for score, weight in turn
    ]
    ours = Pieces(*(np.array([one[i] for one in flat], np.int32) for i in (0, 1, 3)))
    found = reduce_pieces(np.array([one[2] for one in flat], np.float32), ours, turns=turns)
    of_turns = [
        [sum(s * w for s, w in turn) / sum(w for _, w in turn) for turn in row] for row in rows
    ]
    tokens = [[sum(w for _, w in turn) for turn in row] for row in rows]
    expected = {
        "mean": [sum(row) / len(row) for row in of_turns],
        "min": [min(row) for row in of_turns],
        "all": [
            sum(s * w for s, w in zip(row, weights, strict=True)) / sum(weights)
            for row, weights in zip(of_turns, tokens, strict=True)
        ],
    }[turns]
    assert found.scores_K == pytest.approx(expected, rel=1e-5, abs=1e-5)
    each = [score for row in of_turns for score in row]
    assert found.turn_scores_T == pytest.approx(each, rel=1e-5, abs=1e-5)
    assert found.turns_K.tolist() == [len(row) for row in rows]
    for score, row in zip(found.scores_K, rows, strict=True):
        if len(row) == len(row[0]) == 1:
            assert score == np.float32(row[0][0][0])


@pytest.mark.parametrize("turns", ["all", "mean", "min"])
def test_what_is_not_finite_in_a_piece_is_not_in_its_row(turns: Turns) -> None:
    """And in no other row."""
    ours = Pieces(*(np.array(v, np.int32) for v in ([0, 0, 1, 1], [0, 1, 0, 0], [1, 1, 1, 3])))
    found = reduce_pieces(np.array([1, np.nan, 2, 6], np.float32), ours, turns=turns)
    assert np.isnan(found.scores_K[0])
    assert found.scores_K[1] == 5


# Long texts and conversations → tokens

WORDS = " ".join(f"w{i}" for i in range(40))


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer(tiny_tokenizer(), max_tokens=12)


def ids(tokenizer: TextTokenizer, text: str) -> list[int]:
    whole = TextTokenizer(tokenizer.tokenizer, max_tokens=10_000).tokenize([text])
    return [int(token) for token in whole.ids_T]


@pytest.mark.parametrize("long", ["head", "head-tail", "windows"])
def test_long_texts_are_cut_as_asked(tokenizer: TextTokenizer, long: Long) -> None:
    """Against slices of the whole text's tokens; short texts stay as they are."""
    pairs = CheckedPairs([0, 1], [WORDS, "a"], [WORDS, "b"], [b"", b""], [None, None])
    found = tokenize_pairs(pairs, tokenizer, long=long)
    first, *body, last = ids(tokenizer, WORDS)
    parts = {
        "head": [body[:10]],
        "head-tail": [body[:5] + body[-5:]],
        "windows": [body[at : at + 10] for at in range(0, len(body), 10)],
    }[long]
    offsets = found.responses.offsets_N1
    texts = [found.responses.ids_T[a:b].tolist() for a, b in pairwise(offsets)]
    assert texts == [*([first, *part, last] for part in parts), ids(tokenizer, "b")]
    assert found.pieces.rows_P.tolist() == [0] * len(parts) + [1]
    assert found.pieces.weights_P.tolist() == [len(part) for part in parts] + [len(texts[-1]) - 2]
    lost = len(body) - 10
    assert found.cut_tokens_J.tolist() == [lost if long == "windows" else 2 * lost, 0]
    asked = found.instructions.ids_T[:12].tolist()
    assert asked == [first, *(parts[0] if long == "head-tail" else body[:10]), last]
    assert found.instruction_tokens_J[0] == 12
    left = found.only(np.array([1]))
    assert left.responses.ids_T.tolist() == texts[-1]
    assert (left.pieces.rows_P.tolist(), left.cut_tokens_J.tolist()) == ([0], [0])


def test_a_conversation_is_cut_from_the_left(tokenizer: TextTokenizer) -> None:
    """What was said last stays, whatever --long says."""
    pairs = CheckedPairs([0], [WORDS], ["b"], [b""], [None], [1], [True])
    first, *body, last = ids(tokenizer, WORDS)
    for long in ("head", "head-tail", "windows"):
        found = tokenize_pairs(pairs, tokenizer, long=long)
        assert found.instructions.ids_T.tolist() == [first, *body[-10:], last]
        assert found.cut_tokens_J.tolist() == [len(body) - 10]


# Rows → pairs


def shapes_of(chat: list[dict[str, str]]) -> dict[str, pa.Table]:
    """A chat in the shapes that hold it whole."""
    return {
        "messages": pa.table({"messages": [chat]}),
        "sharegpt": pa.table({"conversations": [sharegpt(chat)]}),
        "messages as JSON": pa.table({"messages": [json.dumps(chat)]}),
        "sharegpt as JSON": pa.table({"conversations": [json.dumps(sharegpt(chat))]}),
        "parts": pa.table(
            {
                "messages": [
                    [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in chat]
                ]
            }
        ),
        "prompt-completion": pa.table({"prompt": [chat[:4]], "completion": [chat[4:]]}),
        "alpaca": pa.table(
            {
                "system": [chat[0]["content"]],
                "history": [[[chat[1]["content"], chat[2]["content"]]]],
                "instruction": [chat[3]["content"]],
                "input": [""],
                "output": [chat[4]["content"]],
            }
        ),
    }


@pytest.mark.parametrize("shape", shapes_of(CHAT))
def test_every_shape_says_the_same(shape: str) -> None:
    """Found without a flag; one pair a turn, of first and last one."""
    table = shapes_of(CHAT)[shape]
    pairs = list(
        zip((ASKED_FIRST, ASKED_LAST), (CHAT[2]["content"], CHAT[4]["content"]), strict=True)
    )
    for turns, expected in (("first", pairs[:1]), ("last", pairs[1:]), ("mean", pairs)):
        found = checked(table, turns=turns)
        assert found.reasons == [None]
        assert list(zip(found.instructions, found.responses, strict=True)) == expected
        assert (found.turns, found.conversations) == ([len(expected)], [True] * len(expected))
        assert found.last_pairs() == [expected[-1]]
    assert checked(table).hashes == checked(table, turns="min").hashes


def test_one_content_has_one_hash_in_any_shape() -> None:
    """Two texts hash as they always did; another chat has another hash."""
    pair = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    tables = [
        pa.table({"instruction": ["q"], "response": ["a"]}),
        pa.table({"instruction": ["q"], "input": [""], "output": ["a"]}),
        pa.table({"prompt": ["q"], "completion": ["a"]}),
        pa.table({"messages": [pair]}),
        pa.table({"conversations": [sharegpt(pair)]}),
    ]
    assert {hash_ for table in tables for hash_ in checked(table).hashes} == {
        content_hash("q", "a")
    }
    longer = [pa.table({"messages": [chat]}) for chat in (CHAT, CHAT[1:], CHAT[:-1])]
    assert len({checked(table).hashes[0] for table in longer} | {content_hash("q", "a")}) == 4


def test_alpaca_joins_instruction_and_input_by_a_line_break() -> None:
    """As LLaMA-Factory does; an empty input adds nothing."""
    table = pa.table({"instruction": ["q", "q"], "input": ["i", None], "output": ["a", "a"]})
    assert checked(table).instructions == ["q\ni", "q"]


def test_a_template_makes_the_instruction() -> None:
    """Braces doubled are braces; a null column is no instruction."""
    table = pa.table({"q": ["x{y}", None], "c": ["ctx", "ctx"], "response": ["a", "a"]})
    found = checked(table, instruction_template="{{{q}}}\n\n{c}")
    assert found.instructions == ["{x{y}}\n\nctx"]
    assert found.reasons == [None, "instruction_null"]
    with pytest.raises(SchemaError, match=r"'nope'.*no such column"):
        checked(table, instruction_template="{nope}")


@pytest.mark.parametrize("template", ["{q.x}", "{q[0]}", "{}", "{q!r}", "{q:>10}", "plain", "{q"])
def test_a_template_that_does_more_than_naming_columns_is_refused(template: str) -> None:
    """No attribute, no index, no conversion."""
    with pytest.raises(ValueError, match=r"instruction_template|brace|expected"):
        PairColumns(instruction_template=template)


USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"type": "function"}]}
BAD: list[tuple[Any, str]] = [
    (None, "chat_null"),
    ("no JSON", "chat_not_json"),
    ('{"role": "user"}', "chat_not_json"),
    ("[" * 100_000, "chat_not_json"),
    ([], "chat_empty"),
    ([1], "message_null"),
    ([USER], "no_response"),
    ([USER, CALL], "no_response"),
    ([ANSWER], "no_instruction"),
    ([ANSWER, USER, ANSWER], "roles_out_of_order"),
    ([USER, USER, ANSWER], "roles_out_of_order"),
    ([USER, ANSWER, {"role": "system", "content": "s"}], "roles_out_of_order"),
    ([{"role": "poet", "content": "q"}, ANSWER], "role_unknown"),
    ([{"role": ["user"], "content": "q"}, ANSWER], "role_unknown"),
    ([{"role": "user", "content": 7}, ANSWER], "content_not_text"),
    ([{"role": "user", "content": ["q"]}, ANSWER], "content_not_text"),
    ([{"role": "user", "content": "\ud800"}, ANSWER], "content_not_text"),
    ([{"role": "user", "content": " \n"}, ANSWER], "instruction_empty"),
    ([USER, {"role": "assistant", "content": " "}], "response_empty"),
    ([{"role": "user", "content": "q" * 2000}, ANSWER], "too_large"),
]


@pytest.mark.parametrize(("chat", "reason"), BAD)
def test_a_bad_chat_is_a_reason_and_no_crash(chat: object, reason: str) -> None:
    """Its neighbour is read, and the message says what it means."""
    from scar_core.pool.quarantine import message_of  # noqa: PLC0415 - one test's

    text = chat if chat is None or isinstance(chat, str) else json.dumps(chat)
    table = pa.table({"messages": [json.dumps([USER, ANSWER]), text]})
    how = resolved(
        table.schema, PairColumns(max_row_bytes=1000), first_values=lambda n: table[n].to_pylist()
    )
    assert check_rows(table, how).reasons == [None, reason]
    assert message_of(reason, how).startswith("as messages, the row ")


def test_bytes_that_are_no_text_cost_one_row() -> None:
    """Also within messages."""
    messages = pa.array([[USER, ANSWER]] * 2)
    texts = pa.array([b"q", b"a", b"\xff", b"a"]).cast(pa.binary())
    raw = pa.StringArray.from_buffers(4, *texts.buffers()[1:])
    values = pa.StructArray.from_arrays(
        [messages.flatten().field("role"), raw], names=["role", "content"]
    )
    table = pa.table({"messages": pa.ListArray.from_arrays(messages.offsets, values)})
    assert checked(table).reasons == [None, "content_not_text"]


def test_calls_are_no_turn_and_thoughts_no_text() -> None:
    """A tool's result is part of the conversation; reasoning beside the content is not read."""
    chat = [
        USER,
        CALL,
        {"role": "tool", "content": "42"},
        {"role": "assistant", "content": "It is 42.", "reasoning_content": "hm"},
    ]
    found = checked(pa.table({"messages": [json.dumps(chat)]}), turns="mean")
    assert (found.instructions, found.responses) == (["User: q\n\nTool: 42"], ["It is 42."])


@pytest.mark.parametrize(
    ("names", "shape"),
    [
        ("instruction response", "columns"),
        ("instruction response output", "columns"),
        ("instruction output", "alpaca"),
        ("instruction input output", "alpaca"),
        ("prompt completion", "prompt-completion"),
        ("messages prompt", "columns"),  # no JSON: and then no shape is known
    ],
)
def test_a_shape_is_found_by_names(names: str, shape: str) -> None:
    """Of texts; what holds both texts by name is as it always was."""
    others = PairColumns(instruction_column="x"), PairColumns(response_column="x")
    schema = pa.schema([(name, pa.string()) for name in names.split()])
    assert resolved(schema, PairColumns(), first_values=lambda _: ["hello"]).format == shape
    for other in others:
        assert resolved(schema, other).format == "columns"


# Rows → scores, in one process

MOST = 128


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    loaded = LoadedRanker(*tiny_ranker(), fingerprint="tiny")
    return Scorer(loaded, config=ScoringConfig(max_tokens=MOST))


def windows_of(scorer: Scorer, instruction: str, response: str) -> float:
    """The score of a pair by windows of its response's tokens: a plain loop."""
    whole = TextTokenizer(scorer.tokenizer.tokenizer, max_tokens=10_000).tokenize([response])
    first, *body, last = whole.ids_T.tolist()
    asked = scorer.tokenizer.tokenize([instruction])
    total = 0.0
    for at in range(0, len(body), MOST - 2):
        part = [first, *body[at : at + MOST - 2], last]
        rows = type(whole)(
            np.array(part, np.int32), np.array([0, len(part)]), np.zeros(1, np.int32)
        )
        total += scorer.score_tokens(asked, rows)[0] * (len(part) - 2)
    return total / len(body)


@pytest.mark.parametrize("turns", ["first", "last", "mean", "min", "all"])
def test_turns_are_scored_as_their_pairs_would_be(scorer: Scorer, turns: Turns) -> None:
    """Against `Scorer.score` and a plain sum, for chats beside rows of one turn."""
    pairs = [(ASKED_FIRST, "Seven."), (ASKED_LAST, CHAT[4]["content"])]
    both = scorer.score(pairs)
    tokens = [len(ids(scorer.tokenizer, response)) - 2 for _, response in pairs]
    expected = {
        "first": both[0],
        "last": both[1],
        "mean": sum(both) / 2,
        "min": min(both),
        "all": (both[0] * tokens[0] + both[1] * tokens[1]) / sum(tokens),
    }[turns]
    chats = [CHAT, [USER, ANSWER], CHAT]
    scored = score_rows(
        pa.table({"messages": [json.dumps(chat) for chat in chats]}),
        scorer,
        columns=PairColumns(turns=turns),
    )
    alone = scorer.score([("q", "a")])[0]
    assert scored.scores == pytest.approx([expected, alone, expected], abs=1e-5)
    if turns in ("first", "last"):
        assert "turn_scores" not in scored.table.column_names
    else:
        told = scored.table["turn_scores"].to_pylist()
        assert told[0] == pytest.approx(both, abs=1e-5)
        assert told[1] == pytest.approx([alone], abs=1e-5)


def test_windows_are_averaged_by_tokens(scorer: Scorer) -> None:
    """Long responses against a plain loop; a short one is what it is without windows."""
    long = " ".join(f"word{i}" for i in range(300))
    rows = [("ask", long), ("ask", "short")]
    table = pa.table(dict(zip(("instruction", "response"), zip(*rows, strict=True), strict=True)))
    scored = score_rows(table, scorer, columns=PairColumns(long="windows"))
    assert scored.scores[0] == pytest.approx(windows_of(scorer, *rows[0]), abs=1e-5)
    assert scored.scores[1] == pytest.approx(scorer.score(rows)[1], abs=1e-5)
    assert scored.table["cut_tokens"].to_pylist() == [0, 0]
    head = score_rows(table, scorer)
    assert head.scores == scorer.score(rows)
    assert head.table["cut_tokens"][0].as_py() > 0
