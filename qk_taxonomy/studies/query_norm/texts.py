"""Texts, cut into the windows of tokens that a model is shown."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qk_taxonomy.errors import StudyError

# Fewer tokens than this have no correlation worth the name.
_FEWEST_TOKENS = 32

# Of a longer text, the beginning of this many characters, or as many for each token asked for: a
# tokenizer takes some 200 bytes of memory and a microsecond a character.
_LONGEST_TEXT, _CHARACTERS_A_TOKEN = 2_000_000, 8


@dataclass(frozen=True)
class Text:
    """A text and where it is from."""

    name: str
    text: str


@dataclass(frozen=True, eq=False)
class Window:
    """Consecutive tokens of one text, (T,), with the model's special tokens around them.

    text: the text's name. name: that, and which window of it, counted from 0.
    """

    text: str
    name: str
    tokens: NDArray[np.int64]


def built_in_text() -> Text:
    """The topics of Python's own documentation, in the order of their names.

    They come with every Python (``pydoc_data``) and differ a little from version to version.
    """
    from pydoc_data.topics import topics

    whole = "\n\n".join(topics[name].strip() for name in sorted(topics))
    return Text(f"documentation topics of Python {platform.python_version()}", whole)


def read_texts(paths: Iterable[str | Path]) -> tuple[Text, ...]:
    """Text files in UTF-8.

    Raises StudyError for one that cannot be read, is none, is empty, or has the same text as
    another: texts are what is counted.
    """
    texts: list[Text] = []
    for path in map(Path, paths):
        try:
            text = path.read_text(encoding="utf-8-sig")  # some editors begin with a mark
        except UnicodeDecodeError as err:
            raise StudyError(
                f"{path} is no text in UTF-8 (byte {err.start}). Convert it, or leave it out."
            ) from err
        except OSError as err:
            raise StudyError(f"{path} cannot be read: {err.strerror}.") from err
        if not text.strip():
            raise StudyError(f"{path} has no text. Leave it out, or give another file.")
        same = next((one.name for one in texts if one.text == text), None)
        if same is not None:
            raise StudyError(
                f"{path} has the same text as {same} before it, and a text counts once. Leave it "
                "out."
            )
        alike = sum(one.name.partition(" (")[0] == path.name for one in texts)
        texts.append(Text(f"{path.name} ({alike + 1})" if alike else path.name, text))
    return tuple(texts)


def windows(
    texts: Sequence[Text], tokenizer: Any, context: int, n_samples: int
) -> tuple[tuple[Window, ...], tuple[str, ...]]:
    """Up to ``n_samples`` windows of ``context`` tokens, and what there is to say of them.

    Windows lie in one text each, do not overlap, are taken from all texts in turn, and evenly over
    each of them. A text shorter than the context gives one window, of all it has; of one of
    millions of characters, the beginning is taken. tokenizer: of transformers; what it puts around
    a text is put around each window. Raises StudyError where
    there is next to no text, or no room for it.
    """
    before, after = _special_tokens(tokenizer)
    room = context - len(before) - len(after)
    if room < _FEWEST_TOKENS:
        raise StudyError(
            f"Wanted a context of at least {_FEWEST_TOKENS + len(before) + len(after)} tokens, "
            f"found {context}: a correlation over fewer says nothing."
        )
    found: list[list[NDArray[np.int64]]] = []
    notes = []
    longest = max(_LONGEST_TEXT, n_samples * room * _CHARACTERS_A_TOKEN)
    for text in texts:
        if len(text.text) > longest:
            notes.append(
                f"{text.name} has {len(text.text):,} characters, of which the first {longest:,} "
                "are used."
            )
        tokens = np.array(
            tokenizer(text.text[:longest], add_special_tokens=False, verbose=False)["input_ids"],
            dtype=np.int64,
        )
        n_whole = len(tokens) // room
        if n_whole:
            found.append([tokens[i * room : (i + 1) * room] for i in range(n_whole)])
            continue
        found.append([tokens] if len(tokens) >= _FEWEST_TOKENS else [])
        used = "all of them are used" if found[-1] else "it is left out"
        notes.append(
            f"{text.name} has {len(tokens)} tokens, of the {room} that a window takes: {used}."
        )
    shares = _shares([len(pieces) for pieces in found], n_samples)
    if not sum(shares):
        raise StudyError(f"There is not enough text. {' '.join(notes)} Give a longer --text.")
    if sum(shares) < n_samples:
        notes.append(
            f"There is text for {sum(shares)} of the {n_samples} windows asked for; more --text, "
            "or a shorter --context, gives more."
        )
    out = []
    for text, pieces, share in zip(texts, found, shares, strict=True):
        for number in _evenly(len(pieces), share):
            tokens = np.concatenate([before, pieces[number], after])
            out.append(Window(text.name, f"{text.name}, window {number}", tokens))
    return tuple(out), tuple(notes)


def _special_tokens(tokenizer: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """What the tokenizer puts before a text and after it."""
    plain = tokenizer("text", add_special_tokens=False)["input_ids"]
    whole = tokenizer("text")["input_ids"]
    starts = [i for i in range(len(whole)) if whole[i : i + len(plain)] == plain]
    start, end = (starts[0], starts[0] + len(plain)) if starts else (0, len(whole))
    return np.array(whole[:start], dtype=np.int64), np.array(whole[end:], dtype=np.int64)


def _shares(available: Sequence[int], wanted: int) -> list[int]:
    """How many windows each text gives, one by one in turn, until there are ``wanted``."""
    shares = [0] * len(available)
    while sum(shares) < min(wanted, sum(available)):
        for place, there in enumerate(available):
            if shares[place] < there and sum(shares) < wanted:
                shares[place] += 1
    return shares


def _evenly(n: int, k: int) -> list[int]:
    """k of n places, from all over them."""
    return [(2 * i + 1) * n // (2 * k) for i in range(k)]
