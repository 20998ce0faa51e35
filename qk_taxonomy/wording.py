"""Numbers and names in words, for titles and for what is printed."""

from __future__ import annotations

from collections.abc import Collection
from itertools import islice


def counted(n: int, noun: str = "head", plural: str | None = None) -> str:
    """A number of things: 1 layer, 12 heads. ``plural``: where it is not the noun with an s."""
    return f"{n} {noun if n == 1 else plural or f'{noun}s'}"


def some(names: Collection[str], most: int) -> str:
    """The first names of many, and how many more there are: a, b and 3 more."""
    shown = ", ".join(islice(names, most))
    more = len(names) - most
    return f"{shown} and {more} more" if more > 0 else shown
