"""Rows as chats: every layout of a row that trainers know, read as messages.

A chat is a list of messages: dicts with a `role` of ROLES and a `content`, and whatever else came
with them (`tool_calls`, `name`, `reasoning_content`, …), untouched. A layout says where in a row
it is; `read_chat` gives the chat, or the reason why there is none. `forms` writes chats.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, get_args

from scar_core.pool.layouts import PARTS, Form, Layout

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Role = Literal["system", "user", "assistant", "tool"]
Message = dict[str, Any]
Chat = list[Message]
Row = Mapping[str, Any]

ROLES: tuple[Role, ...] = get_args(Role)

# Of published sets; LLaMA-Factory's own are human, gpt, observation, function_call and system.
SHAREGPT_ROLES: dict[str, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "tool": "tool",
}
SHAREGPT_TAGS: dict[str, str] = {
    "system": "system",
    "user": "human",
    "assistant": "gpt",
    "tool": "observation",
}

# As LLaMA-Factory joins them: what is trained on is what was scored.
INPUT_JOINT = "\n"

READ_REASONS = {
    "chat_null": "holds no messages but null",
    "chat_empty": "holds no messages",
    "message_null": "holds a message that is null, or no object",
    "role_unknown": f"holds a message whose role is none of {', '.join(ROLES)}",
    "content_missing": "holds a message without content",
    "content_not_text": "holds a message whose content is neither text nor parts",
    "system_twice": "has a system text, and beside it a system message that says another thing",
    "calls_not_json": "holds a function_call that is no JSON of a name and arguments",
    "history_not_pairs": "has a history that is no list of (instruction, response)",
}
"""Why a row cannot be read as a chat, beside `<part>_null` and `<part>_not_text`."""

_PART_FAULTS = {"_null": "is null", "_not_text": "holds what is no text, or no valid UTF-8"}


def told(reason: str) -> str:
    """What a reason means, as the rest of a sentence about the row."""
    for fault, means in _PART_FAULTS.items():
        if reason not in READ_REASONS and reason.endswith(fault):
            return f"has a part {reason.removesuffix(fault)!r} that {means}"
    return READ_REASONS[reason]


def read_chat(row: Row, layout: Layout) -> Chat | str:
    """The chat of a row, as Arrow gives rows to Python, or the reason why there is none.

    A reason is one of READ_REASONS, `<part>_null` or `<part>_not_text`. What a chat must be to be
    scored is not asked here: it may hold empty texts, and no answer.
    """
    parts = {part: row.get(layout.column(part)) for part in PARTS[layout.form]}
    try:
        return _READERS[layout.form](parts)
    except _NoChatError as error:
        return str(error)


class _NoChatError(Exception):
    """A reason why a row is no chat; never leaves this module."""


def _text(value: object, part: str) -> str:
    """A text, from bytes too: Parquet does not promise that a string is UTF-8."""
    if value is None:
        raise _NoChatError(f"{part}_null")
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise _NoChatError(f"{part}_not_text") from error
    if not isinstance(value, str):
        raise _NoChatError(f"{part}_not_text")
    return value


def _read_pair(parts: Row) -> Chat:
    return _asked(_text(parts["instruction"], "instruction"), _text(parts["response"], "response"))


def _asked(instruction: str, response: str) -> Chat:
    return [
        {"role": "user", "content": instruction},
        {"role": "assistant", "content": response},
    ]


def _read_alpaca(parts: Row) -> Chat:
    chat: Chat = []
    if parts["system"]:
        chat.append({"role": "system", "content": _text(parts["system"], "system")})
    for pair in parts["history"] or ():
        if not isinstance(pair, (list, tuple)) or len(pair) != len(("instruction", "response")):
            raise _NoChatError("history_not_pairs")
        chat += _asked(*(_text(text, "history") for text in pair))
    asked = [_text(parts["instruction"], "instruction")]
    if parts["input"]:
        asked.append(_text(parts["input"], "input"))
    # Either may be empty; LLaMA-Factory leaves it out then, and so does this.
    instruction = INPUT_JOINT.join(filter(None, asked))
    return chat + _asked(instruction, _text(parts["output"], "output"))


def _read_sharegpt(parts: Row) -> Chat:
    chat = []
    for message in _listed(parts["conversations"]):
        tag, value = message.get("from"), message.get("value")
        if tag not in SHAREGPT_ROLES:
            raise _NoChatError("role_unknown")
        read = {"role": SHAREGPT_ROLES[tag], "content": _content(value, message)}
        rest = _beside(message, "from", "value")
        if tag == "function_call":
            read = {**read, "content": "", "tool_calls": _read_calls(value)}
        chat.append(read | rest)
    system = parts["system"]
    if not system:
        return chat
    given = {"role": "system", "content": _text(system, "system")}
    if chat[0]["role"] != "system":
        return [given, *chat]
    if chat[0]["content"] != given["content"]:
        raise _NoChatError("system_twice")
    return chat


def _read_calls(value: object) -> list[dict[str, Any]]:
    """Calls as chat templates have them; LLaMA-Factory's are JSON, of one or of several."""
    try:
        calls = json.loads(_text(value, "content"))
    except ValueError as error:
        raise _NoChatError("calls_not_json") from error
    calls = calls if isinstance(calls, list) else [calls]
    if not all(isinstance(call, dict) and {"name", "arguments"} == call.keys() for call in calls):
        raise _NoChatError("calls_not_json")
    return [{"type": "function", "function": _call(call)} for call in calls]


def _call(call: dict[str, Any]) -> dict[str, str]:
    """One call; arguments as JSON text, so that a column of them has one type."""
    arguments = call["arguments"]
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {"name": call["name"], "arguments": text}


def _read_messages(parts: Row) -> Chat:
    return _messages(parts["messages"])


def _messages(value: object) -> Chat:
    chat = []
    for message in _listed(value):
        if message.get("role") not in ROLES:
            raise _NoChatError("role_unknown")
        read = {"role": message["role"], "content": _content(message.get("content"), message)}
        chat.append(read | _beside(message, "role", "content"))
    return chat


def _read_prompt_completion(parts: Row) -> Chat:
    chat: Chat = []
    for part, role in (("prompt", "user"), ("completion", "assistant")):
        if isinstance(parts[part], (list, tuple)):
            chat += _messages(parts[part])
        else:
            chat.append({"role": role, "content": _text(parts[part], part)})
    return chat


def _listed(value: object) -> Sequence[Message]:
    if value is None:
        raise _NoChatError("chat_null")
    if not isinstance(value, (list, tuple)) or not value:
        raise _NoChatError("chat_empty")
    if not all(isinstance(message, dict) for message in value):
        raise _NoChatError("message_null")
    return value


def _content(value: object, message: Message) -> Any:  # noqa: ANN401 - text, parts or None
    """Text or parts; None only beside calls."""
    if value is None and not message.get("tool_calls"):
        raise _NoChatError("content_missing")
    return value if value is None or isinstance(value, list) else _text(value, "content")


def _beside(message: Message, *known: str) -> Message:
    """What else a message holds; Arrow gives each all keys of a column, null where it lacks one."""
    return {
        name: value for name, value in message.items() if name not in known and value is not None
    }


_READERS: dict[Form, Callable[[Row], Chat]] = {
    "pair": _read_pair,
    "alpaca": _read_alpaca,
    "sharegpt": _read_sharegpt,
    "messages": _read_messages,
    "prompt-completion": _read_prompt_completion,
}


def text_of(message: Message) -> str | None:
    """What a message says; of parts the texts, a line each. None where it says nothing in words."""
    content: str | list[Message] | None = message["content"]
    if isinstance(content, list):
        texts = [part["text"] for part in content if part.get("type") == "text"]
        return "\n".join(text for text in texts if text) if texts else None
    return content
