"""The tokens of a checkpoint: what each stands for in running text, and those of a word."""

from __future__ import annotations

import functools
import itertools
import json
import math
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeGuard

from qk_taxonomy.checkpoints.base import Checkpoint, TokenizerDefinition
from qk_taxonomy.errors import CheckpointError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# What is shown of a token; the longest of real models are runs of spaces.
_LONGEST_TEXT = 200

# Characters of a word after normalisation: what the time of some tokenizers is the square of.
_LONGEST_WORD = 256

# Real tokenizers have a dozen steps, and a text grows by a factor of two or three in them.
_MOST_STEPS = 64
_MOST_GROWTH = 256
_LONGEST_SETTING = 1 << 14
_LONGEST_CHARSMAP = 4 << 20

# The longest tokens of real models are runs of a few hundred spaces or dashes.
_LONGEST_PIECE = 1 << 12

# XLM-V, of the largest vocabulary, has 901,629 tokens.
_MOST_TOKENS = 1 << 20

_SPACE = "▁"
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_MARKS = {" ": "␣", "\n": "↵", "\t": "⇥"}


class Tokens:
    """A tokenizer, as far as reading a vocabulary needs it.

    ``n_tokens``: one more than its largest id; an embedding may have more rows, or fewer.
    """

    def __init__(self, definition: TokenizerDefinition) -> None:
        """Raises CheckpointError where the definition is damaged."""
        self._place = definition.place
        with _damage_named(self._place):
            parts = _checked(definition)
            self._tokenizer = _load(parts)
            vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
            self._added = frozenset(self._tokenizer.get_added_tokens_decoder())
            self._unknown = _unknown(parts["model"], vocabulary)
            self._bytes_of = _spelling(definition.parts)
            self._byte_pieces = _falls_back_to_bytes(definition.parts)
            steps = _steps(parts["normalizer"])
            self._adds_space = any(step.get("type") == "Prepend" for step in steps)
        self._pieces = {number: piece for piece, number in vocabulary.items()}
        self.n_tokens = max(self._pieces, default=-1) + 1
        _check_number(self.n_tokens, self._place)

    def text(self, token: int) -> str:
        """What a token stands for in running text, in characters that can be seen.

        Spaces are ␣, ends of lines ↵, tabs ⇥; what has no glyph is <U+200B>, and bytes that are no
        whole character are <0xE4>. WordPiece's ## stays: it says that a token continues a word.
        An id that the tokenizer does not know (a padding row) is "<id>"; 200 characters at most.
        """
        piece = self._pieces.get(token)
        if piece is None:
            return f"<{token}>"
        byte = _BYTE.fullmatch(piece) if self._byte_pieces else None
        if byte is not None:
            data = bytes([int(byte[1], 16)])
        elif token in self._added and self._bytes_of is _from_byte_characters:
            data = piece.encode()  # added tokens are written as they are
        else:
            data = self._bytes_of(piece)
        shown = "".join(map(_visible, data.decode("utf-8", errors="surrogateescape")))
        return shown if len(shown) <= _LONGEST_TEXT else f"{shown[: _LONGEST_TEXT - 1]}…"

    def ids(self, word: str) -> tuple[int, ...]:
        """The tokens of a word in running text: with its leading space, where tokens have one.

        () where it is empty, or where the tokenizer has no tokens for some of its characters.
        Raises CheckpointError where it is longer than 256 characters, or the tokenizer fails at it.
        """
        word = word.strip()
        if not word:
            return ()
        spaced = () if self._adds_space else self._encoded(f" {word}")
        return spaced or self._encoded(word)

    def _encoded(self, text: str) -> tuple[int, ...]:
        with _damage_named(self._place):
            normalizer = self._tokenizer.normalizer
            normal = text if normalizer is None else normalizer.normalize_str(text)
            if len(normal) > _LONGEST_WORD:
                raise CheckpointError(
                    f"{text.strip()[:60]!r} has {len(normal)} characters for {self._place}; a word "
                    f"of at most {_LONGEST_WORD} is wanted."
                )
            encoding = self._tokenizer.encode(text, add_special_tokens=False)
        covered = {place for begin, end in encoding.offsets for place in range(begin, end)}
        # Normalisers leave out spaces, control characters and marks, which are no loss.
        told = {place for place, char in enumerate(text) if unicodedata.category(char)[0] in "LNPS"}
        return () if told - covered or self._unknown in encoding.ids else tuple(encoding.ids)


def open_tokens(checkpoint: Checkpoint) -> Tokens | None:
    """The tokens of a checkpoint, by the tokenizer that it was opened with.

    That is tokenizer.json, vocab.txt, vocab.json with merges.txt, or the lists in a GGUF file; a
    random twin has its original's, an adapter its own or its base's. None where there is none;
    raises CheckpointError naming the file where it is damaged, of another kind, or out of reach.
    """
    definition = checkpoint.tokenizer()
    return None if definition is None else Tokens(definition)


@contextmanager
def _damage_named(place: str) -> Iterator[None]:
    """Turns whatever a tokenizer makes the library raise into a CheckpointError."""
    try:
        yield
    except (CheckpointError, KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as err:  # a panic of its Rust is no Exception
        reason = " ".join(str(err).split())[:300]
        raise CheckpointError(
            f"{place} cannot be used by the tokenizers package: {reason}. Fetch the file again, or "
            "try pip install --upgrade tokenizers."
        ) from err


def _load(parts: Mapping[str, Any]) -> Tokenizer:
    from tokenizers import Tokenizer

    return Tokenizer.from_str(json.dumps(parts, ensure_ascii=False))


def _checked(definition: TokenizerDefinition) -> dict[str, Any]:
    """What is used of a definition: no padding, no truncation, no chance.

    Raises CheckpointError where a word might take for ever, or fill the memory.
    """
    given = definition.parts
    model = given.get("model")
    if not isinstance(model, Mapping):
        raise CheckpointError(f"{definition.place} has no model. Fetch the file again.")
    _check_number(len(model.get("vocab") or ()), definition.place)
    settings = (value for key, value in model.items() if key not in ("vocab", "merges"))
    longest = max(map(len, itertools.chain(_pieces(model), filter(_is_text, settings))), default=0)
    if longest > _LONGEST_PIECE:
        raise CheckpointError(
            f"The model of {definition.place} has a token or setting of {longest} characters; no "
            f"model's has more than {_LONGEST_PIECE}. Fetch the file again."
        )
    parts: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": given.get("added_tokens") or [],
        "model": {**model, "dropout": None} if "dropout" in model else model,
    }
    growth, longest = 1.0, 0
    for name, inner in (("normalizer", "normalizers"), ("pre_tokenizer", "pretokenizers")):
        steps = list(itertools.islice(_steps(given.get(name)), _MOST_STEPS + 1))
        for step in steps:
            growth *= _growth(step)
            texts = [text for key, text in step.items() if key != "precompiled_charsmap"]
            longest = max(longest, len(json.dumps(texts)))
        if len(steps) > _MOST_STEPS or growth > _MOST_GROWTH or longest > _LONGEST_SETTING:
            raise CheckpointError(
                f"The {name} of {definition.place} makes more of a text than any model's does. "
                "Fetch the file again, from a source you trust."
            )
        # One level of steps: the library takes long for deep ones.
        parts[name] = {"type": "Sequence", inner: steps} if steps else None
    return parts


def _check_number(n_tokens: int, place: str) -> None:
    if not 0 < n_tokens <= _MOST_TOKENS:
        raise CheckpointError(
            f"{place} has {n_tokens} tokens, by their number or their largest id; from 1 to "
            f"{_MOST_TOKENS} are wanted. Fetch the file again."
        )


def _pieces(model: Mapping[str, Any]) -> Iterator[str]:
    """The pieces of a vocabulary, which is a table or, in Unigram, a list of pairs."""
    vocabulary = model["vocab"]
    rows = vocabulary if isinstance(vocabulary, Mapping) else (row[0] for row in vocabulary)
    return filter(_is_text, rows)


def _is_text(value: Any) -> TypeGuard[str]:
    return isinstance(value, str)


def _steps(part: Any) -> Iterator[Mapping[str, Any]]:
    """The steps of a normaliser, pre-tokenizer or decoder, which may be sequences of sequences."""
    if part is None:
        return
    if not isinstance(part, Mapping):
        raise ValueError(f"{part!r:.60} stands where a step is wanted")
    if part.get("type") != "Sequence":
        yield part
        return
    for inner in ("normalizers", "pretokenizers", "decoders"):
        for step in part.get(inner) or ():
            yield from _steps(step)


def _growth(step: Mapping[str, Any]) -> float:
    """How many times as long a step may make a text, about; steps that cannot do so twice are 1."""
    kind = step.get("type")
    if kind == "Precompiled":
        return 16 if len(step["precompiled_charsmap"]) <= _LONGEST_CHARSMAP else math.inf
    if kind == "ByteLevel":
        return 2
    if kind != "Replace":
        return 1
    pattern, content = step["pattern"], step["content"]
    if "String" in pattern:
        return max(1, len(content) / len(pattern["String"]))
    return 1 + len(content)


def _unknown(model: Mapping[str, Any], vocabulary: Mapping[str, int]) -> int | None:
    """The id of the token for what a tokenizer does not know."""
    token, number = model.get("unk_token"), model.get("unk_id")
    return vocabulary.get(token) if isinstance(token, str) else number


def _all_steps(parts: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    names = ("normalizer", "pre_tokenizer", "decoder")
    return [step for name in names for step in _steps(parts.get(name))]


def _spelling(parts: Mapping[str, Any]) -> Callable[[str], bytes]:
    """What turns a piece into the bytes of the text that it stands for."""
    steps = _all_steps(parts)
    if any(step.get("type") == "ByteLevel" for step in steps):
        return _from_byte_characters
    if any(step.get("type") == "Metaspace" or step.get("content") == _SPACE for step in steps):
        return _from_marked_spaces
    return str.encode


def _falls_back_to_bytes(parts: Mapping[str, Any]) -> bool:
    fallback = any(step.get("type") == "ByteFallback" for step in _all_steps(parts))
    return fallback or parts["model"].get("byte_fallback") is True


def _from_marked_spaces(piece: str) -> bytes:
    return piece.replace(_SPACE, " ").encode()


def _from_byte_characters(piece: str) -> bytes:
    table = _byte_characters()
    if all(character in table for character in piece):
        return bytes(table[character] for character in piece)
    return piece.encode()


@functools.cache
def _byte_characters() -> dict[str, int]:
    """The bytes by the characters that byte-level tokenizers write for them (Radford et al. 2019).

    Printable ones stand for themselves, the others in turn for those from U+0100 on.
    """
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in plain)
    table = {chr(byte): byte for byte in plain}
    return table | {chr(0x100 + place): byte for place, byte in enumerate(others)}


def _visible(character: str) -> str:
    if character in _MARKS:
        return _MARKS[character]
    if character.isprintable():
        return character
    number = ord(character)
    # Python's own way to keep a byte that is no UTF-8: U+DC00 and the byte.
    return f"<0x{number - 0xDC00:02X}>" if 0xDC80 <= number <= 0xDCFF else f"<U+{number:04X}>"
