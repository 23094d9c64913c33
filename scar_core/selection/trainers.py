"""What trainers need to be told of a selection's rows: LLaMA-Factory, Axolotl, TRL.

Each function gives the text of a file that lies beside `data/`, or None where the trainer would
leave something out of rows of that form, or cannot read them.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import yaml

from scar_core.pool.chats import SHAREGPT_ROLES
from scar_core.pool.forms import TOOL_CALLS
from scar_core.pool.layouts import PARTS
from scar_core.pool.rows import is_text

if TYPE_CHECKING:
    import pyarrow as pa

    from scar_core.pool.layouts import Layout

LLAMA_FACTORY = "dataset_info.json"
AXOLOTL = "axolotl.yaml"
TRL = "train_trl.py"

DATASET_NAME = "scar_selection"

# Theirs, for what ours are called.
_ALPACA_COLUMNS = {
    "instruction": "prompt",
    "input": "query",
    "output": "response",
    "response": "response",
    "prompt": "prompt",
    "completion": "response",
    "system": "system",
    "history": "history",
    "conversations": "messages",
    "messages": "messages",
}
_TAGS = {
    "sharegpt": {
        "role_tag": "from",
        "content_tag": "value",
        "user_tag": "human",
        "assistant_tag": "gpt",
        "observation_tag": "observation",
        "function_tag": "function_call",
        "system_tag": "system",
    },
    "messages": {
        "role_tag": "role",
        "content_tag": "content",
        "user_tag": "user",
        "assistant_tag": "assistant",
        "observation_tag": "tool",
        "function_tag": "function",
        "system_tag": "system",
    },
}


def _columns(layout: Layout, schema: pa.Schema) -> dict[str, str]:
    """Column by part, of the parts that the files have."""
    parts = ((part, layout.column(part)) for part in PARTS[layout.form])
    return {part: name for part, name in parts if name in schema.names}


def has_texts_alone(layout: Layout, schema: pa.Schema) -> bool:
    """Whether each part of a row is one text."""
    return all(is_text(schema.field(name).type) for name in _columns(layout, schema).values())


def llama_factory(layout: Layout, schema: pa.Schema) -> str | None:
    """`dataset_info.json`; pass the folder as `dataset_dir`, DATASET_NAME as `dataset`."""
    if layout.form == "prompt-completion" and not has_texts_alone(layout, schema):
        return None
    columns = {_ALPACA_COLUMNS[part]: name for part, name in _columns(layout, schema).items()}
    if "tools" in schema.names and is_text(schema.field("tools").type):
        columns["tools"] = "tools"
    entry: dict[str, Any] = {"file_name": "data", "columns": columns}
    if layout.form in _TAGS:
        # Its `openai` reads tool calls, and gives every chat without a system text one of its own.
        calls = layout.form == "messages" and _has_calls(layout, schema)
        entry |= {"formatting": "openai" if calls else "sharegpt", "tags": _TAGS[layout.form]}
    return json.dumps({DATASET_NAME: entry}, indent=2, ensure_ascii=False) + "\n"


def _has_calls(layout: Layout, schema: pa.Schema) -> bool:
    held = schema.field(layout.column("messages")).type.value_type
    return any(one.name == TOOL_CALLS for one in held.fields)


def axolotl(layout: Layout, schema: pa.Schema) -> str | None:
    """The `datasets` of a configuration."""
    columns = _columns(layout, schema)
    if "history" in columns:
        return None
    if layout.form in ("messages", "sharegpt"):
        kind = _axolotl_chat(layout, columns)
    elif has_texts_alone(layout, schema):
        kind = _axolotl_texts(columns)
    else:
        return None
    dataset = {"path": ".", "split": "train", **kind}
    text: str = yaml.safe_dump({"datasets": [dataset]}, sort_keys=False, allow_unicode=True)
    return (
        "# For a configuration of Axolotl; `path` is this folder, or where it was pushed to.\n"
        + text
    )


def _axolotl_chat(layout: Layout, columns: dict[str, str]) -> dict[str, Any]:
    kind: dict[str, Any] = {
        "type": "chat_template",
        "field_messages": columns[PARTS[layout.form][0]],
    }
    if layout.form == "messages":
        return kind | {"message_property_mappings": {"role": "role", "content": "content"}}
    roles: dict[str, list[str]] = {}
    for tag, role in SHAREGPT_ROLES.items():
        roles.setdefault(role, []).append(tag)
    return kind | {
        "message_property_mappings": {"role": "from", "content": "value"},
        "roles": roles,
        "roles_to_train": ["assistant"],
    }


def _axolotl_texts(columns: dict[str, str]) -> dict[str, Any]:
    """Texts as they are, one after the other; a chat template needs messages."""
    asked = next(columns[part] for part in ("instruction", "prompt") if part in columns)
    answer = next(columns[part] for part in ("output", "response", "completion") if part in columns)
    fields = {"field_instruction": asked, "field_output": answer}
    fields |= {f"field_{part}": columns[part] for part in ("input", "system") if part in columns}
    return {
        "type": {
            **fields,
            "system_format": "{system}\n\n",
            "format": "{instruction}\n{input}\n\n",
            "no_input_format": "{instruction}\n\n",
        }
    }


_TRL = '''"""Fine-tune a model on these rows with TRL: python {name} MODEL OUT."""

import sys
from pathlib import Path

from datasets import Dataset, load_dataset


{chat}

def rows() -> Dataset:
    """The selected rows as TRL takes them."""
    dataset = load_dataset(str(Path(__file__).resolve().parent), split="train")
    return dataset.map(chat, remove_columns=dataset.column_names)


if __name__ == "__main__":
    from trl import SFTConfig, SFTTrainer

    model, out = sys.argv[1:]
    trainer = SFTTrainer(model=model, args=SFTConfig(output_dir=out), train_dataset=rows())
    trainer.train()
    trainer.save_model(out)
'''

_TRL_TEXTS = '''def chat(row: dict) -> dict:
    """A row as a conversation."""
    asked = "\\n".join(filter(None, [row[name] for name in {asked!r}]))
    prompt = [{{"role": "user", "content": asked}}]{before}
    return {{"prompt": prompt, "completion": [{{"role": "assistant", "content": row[{answer!r}]}}]}}
'''

_TRL_HISTORY = """
    for question, answer in reversed(row[{history!r}] or []):
        prompt.insert(0, {{"role": "assistant", "content": answer}})
        prompt.insert(0, {{"role": "user", "content": question}})"""

_TRL_SYSTEM = """
    if row[{system!r}]:
        prompt.insert(0, {{"role": "system", "content": row[{system!r}]}})"""

_TRL_SHAREGPT = '''ROLES = {roles!r}


def chat(row: dict) -> dict:
    """A row as a conversation."""
    messages = [
        {{"role": ROLES[message["from"]], "content": message["value"]}}
        for message in row[{messages!r}]
    ]{before}
    return {{"messages": messages}}
'''

_TRL_AS_IT_IS = '''def chat(row: dict) -> dict:
    """A row as a conversation, without the columns that TRL has no use for."""
    return {{part: row[name] for part, name in {columns!r}.items()}}
'''


def trl(layout: Layout, schema: pa.Schema) -> str:
    """A script that trains, and whose `rows` give a dataset that TRL takes."""
    columns = _columns(layout, schema)
    before = ""
    if "history" in columns:
        before += _TRL_HISTORY.format(history=columns["history"])
    if "system" in columns:
        before += _TRL_SYSTEM.format(system=columns["system"])
    if layout.form == "sharegpt":
        chat = _TRL_SHAREGPT.format(
            roles=SHAREGPT_ROLES,
            messages=columns["conversations"],
            before=before.replace("prompt.", "messages."),
        )
    elif layout.form in ("messages", "prompt-completion"):
        if "tools" in schema.names:
            columns["tools"] = "tools"
        chat = _TRL_AS_IT_IS.format(columns=columns)
    else:
        asked = [columns[part] for part in ("instruction", "input") if part in columns]
        answer = columns["output" if layout.form == "alpaca" else "response"]
        chat = _TRL_TEXTS.format(asked=asked, answer=answer, before=before)
    return _TRL.format(name=TRL, chat=chat)
