"""The tokenizer of a folder of files: tokenizer.json, or the vocabularies that came before it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from qk_taxonomy.checkpoints.base import LONGEST_JSON, TokenizerDefinition, parse_json
from qk_taxonomy.errors import CheckpointError

# Gemma 3's tokenizer.json has 33 MB, 515,000 lists (its merges) and 1.3 million commas.
_LONGEST = 64 << 20
_MOST_PARTS = 1 << 20
_MOST_COMMAS = 3 << 20

_TOKENIZER = "tokenizer.json"
_WORD_PIECES = "vocab.txt"
_BYTE_LEVEL = ("vocab.json", "merges.txt")

# Tokenizers that transformers makes a tokenizer.json of.
_CONVERTIBLE = (
    *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "spm.model"),
    *("vocab.json", "tekken.json"),
)

#: Reads a whole file of at most so many bytes.
ReadWhole = Callable[[str, int], bytes]


def read_tokenizer(
    read: ReadWhole, names: Collection[str], place: str
) -> TokenizerDefinition | None:
    """The tokenizer among the files ``names``; None where there is none. Raises CheckpointError."""
    if _TOKENIZER in names:
        where = f"{_TOKENIZER} of {place}"
        return TokenizerDefinition(_parsed(read, _TOKENIZER, where), where)
    if _WORD_PIECES in names:
        where = f"{_WORD_PIECES} of {place}"
        vocabulary = {line: number for number, line in enumerate(_lines(read, _WORD_PIECES, where))}
        return TokenizerDefinition(word_pieces(vocabulary, _lowercase(read, names, place)), where)
    if all(name in names for name in _BYTE_LEVEL):
        return _read_byte_level(read, names, place)
    other = next((name for name in _CONVERTIBLE if name in names), None)
    if other is None:
        return None
    raise CheckpointError(
        f"The tokenizer of {place} is in {other}, which is not read. With transformers, "
        "AutoTokenizer.from_pretrained(...).save_pretrained(...) makes a tokenizer.json of it: put "
        "that beside the weights."
    )


def word_pieces(vocabulary: Mapping[str, int], lowercase: bool | None) -> dict[str, Any]:
    """A tokenizer of BERT's kind; where no piece continues a word, one of whole words.

    ``lowercase``: whether it knows no upper case; None: as its vocabulary says.
    """
    unknown = next((piece for piece in _UNKNOWN if piece in vocabulary), _UNKNOWN[0])
    if not any(piece.startswith("##") for piece in vocabulary):
        return {
            "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": unknown},
            "pre_tokenizer": {"type": "WhitespaceSplit"},
        }
    if lowercase is None:
        lowercase = all(piece == piece.lower() or piece[:1] in "[<" for piece in vocabulary)
    return {
        "model": {
            "type": "WordPiece",
            "vocab": vocabulary,
            "unk_token": unknown,
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
        },
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": lowercase,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
    }


_UNKNOWN = ("[UNK]", "<unk>", "<UNK>")


def byte_level(
    vocabulary: Mapping[str, Any],
    merges: Sequence[Sequence[str]],
    added: Iterable[Mapping[str, Any]],
    *,
    whole_first: bool = False,
) -> dict[str, Any]:
    """A tokenizer of GPT-2's kind; ``whole_first``: a word that is a token needs no merges."""
    step = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "model": {
            "type": "BPE",
            "vocab": vocabulary,
            "merges": merges,
            "ignore_merges": whole_first,
        },
        "pre_tokenizer": step,
        "decoder": step,
        "added_tokens": list(added),
    }


def added_token(number: Any, content: str, *, special: bool) -> dict[str, Any]:
    """A token that text is searched for before all others."""
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": content, "special": special} | plain


def split_merges(lines: Iterable[str], place: str) -> list[list[str]]:
    """The pairs of lines such as "Ġ t". Raises CheckpointError where one holds no pair."""
    merges = [line.split(" ") for line in lines]
    for merge in merges:
        if len(merge) != 2:
            raise CheckpointError(
                f"{place} has the line {' '.join(merge)[:120]!r}; two parts of a token are wanted, "
                "with a space between them. Fetch the file again."
            )
    return merges


def _read_byte_level(read: ReadWhole, names: Collection[str], place: str) -> TokenizerDefinition:
    vocabulary_file, merges_file = _BYTE_LEVEL
    where = f"{vocabulary_file} of {place}"
    vocabulary = _parsed(read, vocabulary_file, where)
    if any(piece.endswith("</w>") for piece in vocabulary):
        raise CheckpointError(
            f"{where} marks the ends of words, as GPT-2's does not: how it cuts text is not known. "
            "Put the model's tokenizer.json beside its weights."
        )
    lines = _lines(read, merges_file, f"{merges_file} of {place}")
    if lines and lines[0].startswith("#version"):
        del lines[0]
    added: dict[str, Any] = {}
    if "added_tokens.json" in names:
        added = _parsed(read, "added_tokens.json", f"added_tokens.json of {place}")
    parts = byte_level(
        vocabulary,
        split_merges(lines, f"{merges_file} of {place}"),
        (added_token(number, content, special=False) for content, number in added.items()),
    )
    return TokenizerDefinition(parts, where)


def _parsed(read: ReadWhole, file: str, where: str) -> dict[str, Any]:
    # What is not ASCII, as in every tokenizer, may be four times as large in memory.
    return parse_json(
        read(file, _LONGEST),
        where,
        longest=4 * _LONGEST,
        most_parts=_MOST_PARTS,
        most_commas=_MOST_COMMAS,
    )


def _lines(read: ReadWhole, file: str, where: str) -> list[str]:
    """A file's lines. Raises CheckpointError where it is no text, or of too many lines."""
    data = read(file, _LONGEST)
    if data.count(b"\n") > _MOST_PARTS:
        raise CheckpointError(
            f"{where} has more than {_MOST_PARTS} lines, which no model's has. Fetch the file "
            "again."
        )
    try:
        lines = data.decode().replace("\r\n", "\n").split("\n")
    except ValueError as err:
        raise CheckpointError(f"{where} is no text: {err}. Fetch the file again.") from err
    if lines[-1] == "":
        del lines[-1]
    return lines


def _lowercase(read: ReadWhole, names: Collection[str], place: str) -> bool | None:
    """What a model says of upper case, if anything."""
    file = "tokenizer_config.json"
    if file not in names:
        return None
    said = parse_json(read(file, LONGEST_JSON), f"{file} of {place}").get("do_lower_case")
    return said if isinstance(said, bool) else None
