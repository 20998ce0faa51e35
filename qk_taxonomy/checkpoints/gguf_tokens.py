"""The tokenizer in a GGUF file's metadata.

Which kinds there are, and what each makes of the lists: ``llama_vocab`` in
https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp, and the converter, which
writes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import ReaderField, TokenType

from qk_taxonomy.checkpoints.base import TokenizerDefinition
from qk_taxonomy.checkpoints.gguf_reader import plain_value, readable, strings
from qk_taxonomy.checkpoints.tokenizer_files import (
    added_token,
    byte_level,
    split_merges,
    word_pieces,
)
from qk_taxonomy.errors import CheckpointError

_PREFIX = "tokenizer.ggml."

_SPACE = "▁"

# What the converter names the tokenizers of files that have none.
_NONE = ("none", "no_vocab")

# Llama 3's tokenizers take a word that is a token whole, whatever the merges.
_WHOLE_FIRST = ("llama3", "llama-v3", "llama-bpe")

# SentencePiece's own pieces have 16 characters at most, unless a model asks for more.
_LONGEST_MERGED = 64

# Gemma's 262,144 pieces have half a million pairs.
_MOST_MERGES = 1 << 21


@dataclass(frozen=True)
class _Vocabulary:
    """The lists of a file that are as long as its vocabulary: ``kinds`` as in ``TokenType``."""

    pieces: Sequence[str]
    kinds: Sequence[int]
    scores: Sequence[float]
    unknown: int | None

    @property
    def numbers(self) -> dict[str, int]:
        return {piece: number for number, piece in enumerate(self.pieces)}

    @property
    def added(self) -> list[dict[str, Any]]:
        """The tokens that text is not cut into, but searched for."""
        searched = (TokenType.CONTROL, TokenType.USER_DEFINED)
        return [
            added_token(number, piece, special=kind == TokenType.CONTROL)
            for number, (piece, kind) in enumerate(zip(self.pieces, self.kinds, strict=True))
            if kind in searched and piece
        ]


def read_tokenizer(path: Path) -> TokenizerDefinition | None:
    """The tokenizer of a GGUF file (of a split model's first one); None where it has none.

    Raises CheckpointError where it is damaged or of a kind that is not read. Text is cut before
    the merges as GPT-2 cuts it: others cut numbers and punctuation, but no words, elsewhere.
    """
    place = f"The tokenizer of {path.name}"
    with readable(path) as reader:
        fields = {
            name.removeprefix(_PREFIX): field
            for name, field in reader.fields.items()
            if name.startswith(_PREFIX)
        }
        kind = _value(fields, "model")
        if kind in (None, *_NONE) or "tokens" not in fields:
            return None
        if not isinstance(kind, str) or kind not in _KINDS:
            raise CheckpointError(
                f"{place} is of the kind {kind!r:.60}; read are {', '.join(_KINDS)}. Is there a "
                "repository of this model with a tokenizer.json?"
            )
        return TokenizerDefinition(_KINDS[kind](fields, _vocabulary(fields), place), place)


def _value(fields: Mapping[str, ReaderField], name: str) -> Any:
    return plain_value(fields[name], 0) if name in fields else None


def _vocabulary(fields: Mapping[str, ReaderField]) -> _Vocabulary:
    """Raises ValueError where lists differ in length."""
    pieces = strings(fields["tokens"])
    kinds = _column(fields, "token_type", len(pieces), int(TokenType.NORMAL))
    scores = _column(fields, "scores", len(pieces), 0.0)
    unknown = _value(fields, "unknown_token_id")
    known = isinstance(unknown, int) and 0 <= unknown < len(pieces)
    return _Vocabulary(pieces, kinds, scores, unknown if known else None)


def _column(fields: Mapping[str, ReaderField], name: str, length: int, default: Any) -> list[Any]:
    """A list of numbers, one a token; all ``default`` where there is none."""
    if name not in fields:
        return [default] * length
    stored = plain_value(fields[name], length)
    if not isinstance(stored, list) or len(stored) != length:
        raise ValueError(f"its {name} are not those of {length} tokens")
    return stored


def _byte_level(
    fields: Mapping[str, ReaderField], vocabulary: _Vocabulary, place: str
) -> dict[str, Any]:
    if "merges" not in fields:
        raise ValueError("it has tokens, but no merges to make them by")
    merges = split_merges(strings(fields["merges"]), place)
    whole_first = _value(fields, "pre") in _WHOLE_FIRST
    return byte_level(vocabulary.numbers, merges, vocabulary.added, whole_first=whole_first)


def _by_scores(
    fields: Mapping[str, ReaderField], vocabulary: _Vocabulary, place: str
) -> dict[str, Any]:
    """SentencePiece's merging: of all neighbours, those whose union has the best score first."""
    unknown = None if vocabulary.unknown is None else vocabulary.pieces[vocabulary.unknown]
    return {
        "model": {
            "type": "BPE",
            "vocab": vocabulary.numbers,
            "merges": _merges_by_score(vocabulary, place),
            "unk_token": unknown,
            "fuse_unk": True,
            "byte_fallback": TokenType.BYTE in vocabulary.kinds,
        },
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE},
        "added_tokens": vocabulary.added,
    }


def _merges_by_score(vocabulary: _Vocabulary, place: str) -> list[tuple[str, str]]:
    scores = {
        piece: score
        for piece, kind, score in zip(
            vocabulary.pieces, vocabulary.kinds, vocabulary.scores, strict=True
        )
        if kind == TokenType.NORMAL and len(piece) <= _LONGEST_MERGED
    }
    merges: list[tuple[str, str]] = []
    for piece in sorted(scores, key=lambda piece: -scores[piece]):
        cuts = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        merges += (pair for pair in cuts if pair[0] in scores and pair[1] in scores)
        if len(merges) > _MOST_MERGES:
            raise CheckpointError(
                f"{place} has pieces with more than {_MOST_MERGES} ways to make them, as no "
                "model's has. Fetch the file again."
            )
    return merges


def _word_pieces(
    fields: Mapping[str, ReaderField], vocabulary: _Vocabulary, place: str
) -> dict[str, Any]:
    """BERT's pieces, of which the converter marks those that begin a word, not the others."""
    numbers = {}
    for number, piece in enumerate(vocabulary.pieces):
        if piece.startswith(_SPACE):
            piece = piece.removeprefix(_SPACE)
        elif not (piece.startswith("[") and piece.endswith("]")):
            piece = f"##{piece}"
        numbers[piece] = number
    return word_pieces(numbers, None)


def _unigram(
    fields: Mapping[str, ReaderField], vocabulary: _Vocabulary, place: str
) -> dict[str, Any]:
    """SentencePiece's most probable cut; its normalisation is NFKC as far as words go."""
    return {
        "model": {
            "type": "Unigram",
            "vocab": list(zip(vocabulary.pieces, vocabulary.scores, strict=True)),
            "unk_id": vocabulary.unknown,
            "byte_fallback": TokenType.BYTE in vocabulary.kinds,
        },
        "normalizer": {"type": "NFKC"},
        "pre_tokenizer": {
            "type": "Metaspace",
            "replacement": _SPACE,
            "prepend_scheme": "always",
            "split": True,
        },
        "added_tokens": vocabulary.added,
    }


_Make = Callable[[Mapping[str, ReaderField], _Vocabulary, str], dict[str, Any]]

_KINDS: Mapping[str, _Make] = {
    "gpt2": _byte_level,
    "llama": _by_scores,
    "bert": _word_pieces,
    "t5": _unigram,
}
