"""What a Markdown document holds that a test can hold it to: code blocks, code spans, links."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parents[1]

#: A comment of a shell line: from a # that begins a word, outside quotes.
_COMMENT = re.compile(r"""((?:'[^']*'|"(?:\\.|[^"\\])*"|\\.|(?<=\S)\#|[^'"\\#])*)(?:\#.*)?""")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language ("" if none is named), and the number of its first line."""

    language: str
    text: str
    first_line: int

    def commands(self) -> list[tuple[int, str]]:
        """The commands of a shell block, each with its line's number.

        A line is one, comments and spaces at its ends left out; one that ends in a backslash goes
        on in the next.
        """
        found = []
        lines = enumerate(self.text.splitlines(), self.first_line)
        for number, line in lines:
            while line.endswith("\\"):
                line = line[:-1] + next(lines)[1]
            if command := without_comment(line):
                found.append((number, command))
        return found


def without_comment(line: str) -> str:
    """A shell line without its comment, and with one space where it has several."""
    match = _COMMENT.fullmatch(line)
    assert match is not None, f"quotes of {line!r} do not close on its line"
    return re.sub(r"(?<!\s)\s+(?=\S)", " ", match[1]).strip()


@dataclass(frozen=True)
class Document:
    """A Markdown file, by its path from the repository's root."""

    path: str

    @cached_property
    def text(self) -> str:
        return (ROOT / self.path).read_text()

    @cached_property
    def _tokens(self) -> list[Token]:
        return MarkdownIt("commonmark").enable("table").parse(self.text)

    @cached_property
    def blocks(self) -> list[Block]:
        """All fenced and indented code blocks, in order."""
        return [
            Block(token.info.strip(), token.content, token.map[0] + 1 + (token.type == "fence"))
            for token in self._tokens
            if token.type in ("fence", "code_block") and token.map is not None
        ]

    def _inline(self) -> Iterator[Token]:
        for token in self._tokens:
            yield from token.children or ()

    @cached_property
    def spans(self) -> list[str]:
        """All `code spans` of the text, tables and headings, with one space where lines break."""
        return [
            " ".join(token.content.split())
            for token in self._inline()
            if token.type == "code_inline"
        ]

    @cached_property
    def links(self) -> list[str]:
        """Where links and images lead."""
        kinds = {"link_open": "href", "image": "src"}
        return [str(t.attrs[kinds[t.type]]) for t in self._inline() if t.type in kinds]

    @cached_property
    def anchors(self) -> set[str]:
        """The names that GitHub gives to headings, which links end in after a #."""
        found: set[str] = set()
        for opening, heading in zip(self._tokens, self._tokens[1:], strict=False):
            if opening.type == "heading_open":
                words = "".join(
                    t.content for t in heading.children or () if t.type in ("text", "code_inline")
                )
                name = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
                known = [
                    other for other in found if re.fullmatch(rf"{re.escape(name)}(-\d+)?", other)
                ]
                found.add(f"{name}-{len(known)}" if known else name)
        return found

    @cached_property
    def prose(self) -> str:
        """The text on one line, so that a sentence is found wherever its lines break."""
        return " ".join(self.text.split())

    def __str__(self) -> str:
        return self.path


README = Document("README.md")

#: The documents that tests hold to what they say, in the order in which they are run.
DOCUMENTS = (
    README,
    Document("catalog/README.md"),
    Document("plots/README.md"),
    Document("tests/benchmarks/README.md"),
)
