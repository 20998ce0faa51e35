"""Tables and numbers in Markdown, for reports and pages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, whose cells may hold bars, such as those of |r|."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def number(value: float, form: str) -> str:
    """A number with a true minus sign, or a dash where there is none; "d" of a float too."""
    if not np.isfinite(value):
        return "–"
    text = format(int(value) if form == "d" else value, form)
    # What is rounded to zero has no sign.
    return text.replace("-", "−") if set(text) & set("123456789") else text.removeprefix("-")
