"""A chat's turns: each answer with the conversation before it, as the ranker reads them."""

from __future__ import annotations

import json
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

from scar_core.pool.chats import text_of
from scar_core.pool.rows import HASH_BYTES, content_hash

if TYPE_CHECKING:
    from scar_core.pool.chats import Chat, Message
    from scar_core.pool.rows import Turns

ROLE_NAMES = {"system": "System", "user": "User", "assistant": "Assistant", "tool": "Tool"}

MOST_CONTEXT_CHARACTERS = 100_000
"""Of a conversation its last so many: a chat of a thousand turns is not read half a million times,
and encoders read some 30,000 at most."""

TURN_REASONS = {
    "no_instruction": "holds no message of a user",
    "no_response": "holds no answer in words",
    "roles_out_of_order": "does not begin with a user, after one system message at most, or holds "
    "messages that do not take turns",
}
"""Why a chat has no turns."""

# Who may speak after whom; an assistant that called tools is `calls`.
_NEXT = {
    "": {"system", "user"},
    "system": {"user"},
    "user": {"assistant"},
    "assistant": {"user"},
    "calls": {"tool"},
    "tool": {"tool", "assistant"},
}


class Turn(NamedTuple):
    """A pair to be scored."""

    instruction: str
    response: str
    conversation: bool
    """Whether the instruction is several messages; else it is the text of one."""


def turns_of(chat: Chat, which: Turns) -> list[Turn] | str:
    """The turns of a chat that are scored, or the reason why it cannot be.

    A turn is a message of the assistant, unless it is nothing but calls of tools. Its instruction
    is the text of the message before it; where there are several before it, all that hold words,
    each with its role's name (`User: …`), an empty line between them. What comes after the last
    answer is in no turn. A reason is one of TURN_REASONS, or `<instruction|response>_empty`.
    """
    if not any(message["role"] == "user" for message in chat):
        return "no_instruction"
    answers = [place for place, message in enumerate(chat) if _is_answer(message)]
    if not answers:
        return "no_response"
    if not _in_order(chat):
        return "roles_out_of_order"
    picked = {"first": answers[:1], "last": answers[-1:]}.get(which, answers)
    turns = []
    for place in picked:
        response = text_of(chat[place]) or ""
        asked = next(m for m in reversed(chat[:place]) if m["role"] == "user")
        for part, text in (("instruction", text_of(asked) or ""), ("response", response)):
            if not text.strip():
                return f"{part}_empty"
        turns.append(Turn(_rendered(chat[:place]), response, place > 1))
    return turns


def texts_of(chat: Chat) -> list[str]:
    """What a chat says in words, message by message."""
    return [text for message in chat if (text := text_of(message))]


def chat_hash(chat: Chat) -> bytes:
    """The 16 bytes that stand for a chat's content.

    Of one question and its answer they are the pair's, in whatever form it comes; else BLAKE2b of
    all messages with all that is in them.
    """
    if [message["role"] for message in chat] == ["user", "assistant"]:
        pair = [message["content"] for message in chat]
        if all(isinstance(text, str) for text in pair) and "tool_calls" not in chat[1]:
            return content_hash(*pair)
    told = json.dumps(_whole(chat), sort_keys=True, ensure_ascii=True, default=str)
    # No pair of texts has a first one of so many bytes.
    digest = blake2b(b"\xff" * 8, digest_size=HASH_BYTES)
    digest.update(told.encode())
    return digest.digest()


def _whole(value: Any) -> Any:  # noqa: ANN401 - whatever a message holds
    """The same without nulls: Arrow gives each message the keys of all."""
    if isinstance(value, dict):
        return {name: _whole(one) for name, one in value.items() if one is not None}
    return [_whole(one) for one in value] if isinstance(value, list | tuple) else value


def _is_answer(message: Message) -> bool:
    if message["role"] != "assistant":
        return False
    return not message.get("tool_calls") or bool((text_of(message) or "").strip())


def _in_order(chat: Chat) -> bool:
    before = ""
    for message in chat:
        if message["role"] not in _NEXT[before]:
            return False
        before = "calls" if message.get("tool_calls") else message["role"]
    return True


def _rendered(context: Chat) -> str:
    """The messages before a response as the encoder reads them."""
    if len(context) == 1:
        return text_of(context[0]) or ""
    parts: list[str] = []
    characters = 0
    for message in reversed(context):
        if text := text_of(message):
            parts.append(f"{ROLE_NAMES[message['role']]}: {text}")
            characters += len(parts[-1])
        if characters > MOST_CONTEXT_CHARACTERS:
            break
    return "\n\n".join(reversed(parts))[-MOST_CONTEXT_CHARACTERS:]
