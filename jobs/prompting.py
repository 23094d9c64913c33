"""Prompts: files with a name and a version, filled with texts that cannot break out of them.

A prompt file opens with a YAML header (name, version, written_for) between lines of three dashes;
then come messages, each after a line with its role in brackets: [system], [user]. Two kinds of
places are filled: `{{fenced:FIELD}}` with the text between marks that occur in no text of the
request, and `{{FIELD}}`, the text as it is, which must be a whole message: there is nothing around
it to break out to. Places are found in the file once; a text that looks like one stays as it is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from scar_core import storage
from scar_core.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

FOLDER = Path(__file__).parent / "prompts"

_HEADER = re.compile(r"\A---\n(.*?)\n---\n(.*)\Z", re.DOTALL)
_ROLE = re.compile(r"^\[(system|user|assistant)\]\n", re.MULTILINE)
_PLACE = re.compile(r"\{\{(fenced:)?(\w+)\}\}")

Message = dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One prompt file."""

    name: str
    version: str
    written_for: str
    """The model that it was written for and tried with."""
    sha256: str
    """Of the file's bytes."""
    messages: tuple[tuple[str, str], ...]
    """(role, template) in order."""

    def filled(self, texts: Mapping[str, str]) -> list[Message]:
        """The messages with texts in their places; the same texts give the same messages."""
        mark = _free_mark(list(texts.values()))

        def put(place: re.Match[str]) -> str:
            text = texts[place[2]]
            return f"<{mark}>\n{text}\n</{mark}>" if place[1] else text

        return [
            {"role": role, "content": _PLACE.sub(put, template)} for role, template in self.messages
        ]

    def described(self) -> dict[str, str]:
        """What a manifest says of it."""
        return {
            "name": self.name,
            "version": self.version,
            "written_for": self.written_for,
            "sha256": self.sha256,
        }


def _free_mark(texts: Sequence[str]) -> str:
    """A mark that is in none of the texts; settled by them, so that a request can be made again."""
    whole = "\0".join(texts).encode()
    number = 0
    while True:
        mark = f"text-{sha256(whole + str(number).encode()).hexdigest()[:12]}"
        if not any(mark in text for text in texts):
            return mark
        number += 1


def load_prompt(given: str, *, fields: Sequence[str]) -> Prompt:
    """A prompt by the name of one that comes with the package, or by its path or URL.

    Raises:
        InputError: there is none, it is malformed, or it does not use exactly these fields.
    """
    if re.fullmatch(r"[\w-]+", given):
        path = str(FOLDER / f"{given}.md")
        if not Path(path).is_file():
            known = ", ".join(sorted(file.stem for file in FOLDER.glob("*.md")))
            raise InputError(
                f"no prompt named {given!r}; there are {known}. Pass one of them, or a path with "
                "a slash or an ending: ./mine.md."
            )
    else:
        path = storage.absolute(given)
    try:
        data = storage.read_bytes(path)
        text = data.decode().replace("\r\n", "\n")
    except (FileNotFoundError, IsADirectoryError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: is no prompt file ({type(error).__name__}).") from error
    prompt = _parse(path, text, sha256(data).hexdigest())
    _check_fields(path, prompt, fields)
    return prompt


def _parse(path: str, text: str, digest: str) -> Prompt:
    wanted = (
        "wanted a header with name, version and written_for between lines of ---, then messages "
        "that open with [system] or [user]. Take one of jobs/prompts/ as a pattern."
    )
    parts = _HEADER.match(text)
    try:
        header = yaml.safe_load(parts[1]) if parts else None
    except yaml.YAMLError:
        header = None
    names = ("name", "version", "written_for")
    if not parts or not isinstance(header, dict) or not all(header.get(name) for name in names):
        raise InputError(f"{path}: has no header; {wanted}")
    before, *pieces = _ROLE.split(parts[2])
    messages = tuple(zip(pieces[::2], (piece.strip() for piece in pieces[1::2]), strict=True))
    if before.strip() or not messages or messages[-1][0] != "user":
        raise InputError(f"{path}: does not end with a [user] message; {wanted}")
    name, version, written_for = (str(header[name]) for name in names)
    return Prompt(
        name=name, version=version, written_for=written_for, sha256=digest, messages=messages
    )


def _check_fields(path: str, prompt: Prompt, fields: Sequence[str]) -> None:
    templates = [template for _, template in prompt.messages]
    used = {place[2] for template in templates for place in _PLACE.finditer(template)}
    if used != set(fields):
        shown = ", ".join(f"{{{{fenced:{field}}}}}" for field in fields)
        raise InputError(
            f"{path}: uses {sorted(used) or 'no fields'}; wanted {shown}, each of them."
        )
    for template in templates:
        bare = [place[0] for place in _PLACE.finditer(template) if not place[1]]
        if bare and template != bare[0]:
            raise InputError(
                f"{path}: {bare[0]} stands among other words, so a text could pass for them. Let "
                f"it be a whole message, or write {bare[0].replace('{{', '{{fenced:')}."
            )
