"""Layout of a text as Markdown: what a person sees as lists, headings, code and tables.

Parsed by markdown-it-py as CommonMark with GitHub's tables, with two exceptions: text that is
merely indented is no code, since in responses it is as often verse or a list gone wrong, and HTML
is text.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from scar_core.style.words import library

if TYPE_CHECKING:
    from collections.abc import Iterator


class Layout(NamedTuple):
    """How a text is laid out."""

    lines: int
    """Lines that hold more than white space."""
    line_characters: int
    """Characters of those lines, white space around them left out."""
    list_lines: int
    """Lines within lists."""
    code_lines: int
    """Lines within code blocks, fences included."""
    marks: Counter[str]
    """list_items, headings, code_blocks, tables, bold, paragraphs (outside of lists and quotes)."""
    prose: list[str]
    """Text without code blocks and markup: a paragraph, heading, list item or cell each."""


_COUNTED = {
    "list_item_open": "list_items",
    "heading_open": "headings",
    "fence": "code_blocks",
    "table_open": "tables",
}


@lru_cache(maxsize=1)
def _parser() -> Any:  # noqa: ANN401  - the extra may be missing
    parser = library("markdown_it").MarkdownIt("commonmark", {"html": False})
    return parser.enable("table").disable("code")


def layout_of(text: str) -> Layout:
    """The layout of a text."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    lines = [line.strip() for line in text.split("\n")]
    marks: Counter[str] = Counter()
    prose: list[str] = []
    in_list, in_code = set[int](), set[int]()
    for token in _parser().parse(text):
        if token.type in _COUNTED:
            marks[_COUNTED[token.type]] += 1
        if token.type == "paragraph_open" and token.level == 0:
            marks["paragraphs"] += 1
        if token.type == "inline":
            marks["bold"] += sum(child.type == "strong_open" for child in token.children)
            prose.append("".join(_visible(token.children)))
        elif token.type == "fence":
            in_code.update(range(*token.map))
        elif token.type in {"bullet_list_open", "ordered_list_open"} and token.level == 0:
            in_list.update(range(*token.map))
    filled = {number for number, line in enumerate(lines) if line}
    return Layout(
        lines=len(filled),
        line_characters=sum(map(len, lines)),
        list_lines=len(filled & in_list),
        code_lines=len(filled & in_code),
        marks=marks,
        prose=[block for block in prose if block.strip()],
    )


def _visible(children: list[Any]) -> Iterator[str]:
    """The text of a block without its markup; a line break within it is a space."""
    for child in children:
        yield " " if child.type in {"softbreak", "hardbreak"} else child.content
