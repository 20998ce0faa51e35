"""Numbers in words, for titles and for what is printed."""

from __future__ import annotations


def counted(n: int, noun: str = "head") -> str:
    """A number of things: 1 layer, 12 heads."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
