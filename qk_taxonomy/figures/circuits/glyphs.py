"""Tokens as text that can be drawn: one font, and escapes for what it has no sign for."""

from __future__ import annotations

import functools
import unicodedata

from matplotlib.font_manager import findfont, get_font

#: The font of tokens: it comes with matplotlib.
TOKEN_FONT = "DejaVu Sans"

_SPACE, _ELLIPSIS = "␣", "…"
_ESCAPES = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}


@functools.cache
def _known() -> frozenset[int]:
    return frozenset(get_font(findfont(TOKEN_FONT)).get_charmap())


def _drawn(character: str) -> str:
    """A character, or its escape: \\n, \\u4e2d, \\U0001f642.

    Escaped is what the font lacks; and what has no place of its own on a line, such as controls,
    joiners, directions and marks that combine. Spaces are drawn as a sign.
    """
    if character == " ":
        return _SPACE
    if character in _ESCAPES:
        return _ESCAPES[character]
    if ord(character) in _known() and unicodedata.category(character)[0] not in "CMZ":
        return character
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def token_text(token: str, longest: int) -> str:
    """A token as it is drawn, of at most ``longest`` characters; escapes are not cut in two."""
    if not token:
        return "(empty)"
    parts = [_drawn(character) for character in token]
    if sum(map(len, parts)) <= longest:
        return "".join(parts)
    kept, room = [], longest - 1
    for part in parts:
        if len(part) > room:
            break
        kept.append(part)
        room -= len(part)
    return "".join(kept) + _ELLIPSIS
