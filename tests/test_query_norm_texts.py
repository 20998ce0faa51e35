"""Texts cut into windows, and samples on disk."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from qk_taxonomy.errors import StudyError
from qk_taxonomy.studies.query_norm.records import MEASURES, LayerMeasures, Sample
from qk_taxonomy.studies.query_norm.store import fingerprint, read_sample, sample_path, write_sample
from qk_taxonomy.studies.query_norm.texts import Text, built_in_text, read_texts, windows

START, END = 1, 2


class Words:
    """A tokenizer that numbers words from 10, and puts a start and an end around them."""

    def __init__(self, before: tuple[int, ...] = (START,), after: tuple[int, ...] = ()) -> None:
        self.around = (list(before), list(after))

    def __call__(self, text: str, add_special_tokens: bool = True, **_: Any) -> dict[str, Any]:
        ids = [10 + i for i, _ in enumerate(text.split())]
        before, after = self.around if add_special_tokens else ([], [])
        return {"input_ids": [*before, *ids, *after]}


def text(name: str, n_words: int) -> Text:
    return Text(name, " ".join(["word"] * n_words))


class TestWindows:
    def test_special_tokens_are_around_each_window(self) -> None:
        found, notes = windows([text("a", 200)], Words((START,), (END,)), 52, 4)
        assert not notes
        assert [len(one.tokens) for one in found] == [52] * 4
        for number, one in enumerate(found):
            assert one.name == f"a, window {number}"
            assert one.tokens[0] == START
            assert one.tokens[-1] == END
            inner = one.tokens[1:-1]
            np.testing.assert_array_equal(inner, 10 + 50 * number + np.arange(50))

    def test_windows_are_taken_from_all_over_a_text(self) -> None:
        found, _ = windows([text("a", 1000)], Words(()), 50, 4)
        assert [one.tokens[0] - 10 for one in found] == [100, 350, 600, 850]

    def test_texts_take_turns(self) -> None:
        found, notes = windows([text("a", 1000), text("b", 50), text("c", 120)], Words(()), 50, 6)
        assert not notes
        counts = pd.Series([one.name[0] for one in found]).value_counts()
        assert dict(counts) == {"a": 3, "b": 1, "c": 2}

    def test_a_short_text_is_used_whole_and_said(self) -> None:
        found, notes = windows([text("a", 40), text("b", 10)], Words(), 100, 4)
        assert [len(one.tokens) for one in found] == [41]
        assert notes[0] == ("a has 40 tokens, of the 99 that a window takes: all of them are used.")
        assert notes[1].endswith("it is left out.")
        assert notes[2] == (
            "There is text for 1 of the 4 windows asked for; more --text, or a shorter --context, "
            "gives more."
        )

    def test_a_text_of_millions_of_characters(self) -> None:
        whole = text("a", 1_000_000)
        found, notes = windows([whole], Words(()), 50, 4)
        assert notes == ("a has 4,999,999 characters, of which the first 2,000,000 are used.",)
        assert 340_000 < found[-1].tokens[0] < 400_000
        # As much as is asked for, all the same.
        assert not windows([whole], Words(()), 10_000, 70)[1]

    def test_next_to_no_text(self) -> None:
        with pytest.raises(StudyError, match=r"a has 10 tokens.*Give a longer --text"):
            windows([text("a", 10)], Words(), 100, 1)

    def test_next_to_no_context(self) -> None:
        with pytest.raises(StudyError, match=r"at least 33 tokens, found 20"):
            windows([text("a", 100)], Words(), 20, 1)

    def test_the_built_in_text_is_long_enough(self) -> None:
        built_in = built_in_text()
        assert built_in.name.startswith("documentation topics of Python 3.")
        found, notes = windows([built_in], Words(), 4096, 8)
        assert len(found) == 8
        assert not notes


class TestTexts:
    def test_files_of_one_name_are_told_apart(self, tmp_path: Path) -> None:
        paths = [tmp_path / folder / "a.txt" for folder in "xyz"]
        for number, path in enumerate(paths):
            path.parent.mkdir()
            path.write_text(f"Grüße {number}")
        assert [one.name for one in read_texts(paths)] == ["a.txt", "a.txt (2)", "a.txt (3)"]

    def test_a_text_counts_once(self, tmp_path: Path) -> None:
        paths = [tmp_path / "a.txt", tmp_path / "b.txt"]
        for path in paths:
            path.write_text("Grüße")
        with pytest.raises(StudyError, match=r"b\.txt has the same text as a\.txt"):
            read_texts(paths)

    def test_the_mark_of_unicode_is_no_text(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("Grüße", encoding="utf-8-sig")
        (one,) = read_texts([tmp_path / "a.txt"])
        assert one.text == "Grüße"

    @pytest.mark.parametrize(
        ("content", "said"),
        [(b"\xff\xfe\x00", r"no text in UTF-8 \(byte 0\)"), (b" \n", "has no text")],
    )
    def test_files_that_are_no_texts(self, tmp_path: Path, content: bytes, said: str) -> None:
        path = tmp_path / "a.txt"
        path.write_bytes(content)
        with pytest.raises(StudyError, match=said):
            read_texts([path])
        with pytest.raises(StudyError, match="cannot be read"):
            read_texts([tmp_path / "none.txt"])


def sample() -> Sample:
    rng = np.random.default_rng(0)
    layers = []
    for layer, n_heads in ((1, 2), (4, 3)):
        values = {name: rng.random((n_heads, 5)).astype(np.float32) for name in MEASURES}
        values["entropy"][:, :2] = np.nan
        layers.append(LayerMeasures(layer, "", np.arange(1, 6), values))
    return Sample("a, window 0", np.array([5, 3, 3, 9, 70_000]), True, tuple(layers))


SETTINGS = {"model": "a", "torch": "2.13"}
MARK = fingerprint(SETTINGS, sample().tokens)


class TestStore:
    def test_a_sample_comes_back(self, tmp_path: Path) -> None:
        wrote = sample()
        path = write_sample(tmp_path / "run" / "0.parquet", wrote, SETTINGS)
        found = read_sample(path, MARK)
        assert found is not None
        assert (found.name, found.causal) == (wrote.name, wrote.causal)
        np.testing.assert_array_equal(found.tokens, wrote.tokens)
        assert [(one.layer, one.stack) for one in found.layers] == [(1, ""), (4, "")]
        for a, b in zip(found.layers, wrote.layers, strict=True):
            np.testing.assert_array_equal(a.n_keys, b.n_keys)
            for name in MEASURES:
                np.testing.assert_array_equal(a.values[name], b.values[name])
                assert a.values[name].dtype == np.float32

    def test_pandas_opens_it(self, tmp_path: Path) -> None:
        table = pd.read_parquet(write_sample(tmp_path / "0.parquet", sample(), SETTINGS))
        assert len(table) == 25
        told = json.loads(pq.read_schema(tmp_path / "0.parquet").metadata[b"qk_taxonomy"])
        assert told["settings"] == SETTINGS
        row = table[(table["layer"] == 4) & (table["head"] == 2) & (table["position"] == 4)]
        assert row["token"].item() == 70_000
        assert row["entropy"].item() == sample().layers[1].values["entropy"][2, 4]

    def test_a_sample_of_something_else_is_not_taken(self, tmp_path: Path) -> None:
        path = write_sample(tmp_path / "0.parquet", sample(), SETTINGS)
        assert read_sample(path, "other") is None
        assert read_sample(tmp_path / "1.parquet", MARK) is None
        path.write_bytes(path.read_bytes()[:-10])
        with pytest.raises(StudyError, match=r"is no sample of this study, or is damaged"):
            read_sample(path, MARK)
        pd.DataFrame({"a": [1]}).to_parquet(path)
        with pytest.raises(StudyError, match="is no sample of this study"):
            read_sample(path, MARK)

    @pytest.mark.parametrize(
        ("name", "file"),
        [
            ("documentation topics of Python 3.11.2, window 5", "topics-of-Python-3.11.2-window-5"),
            ("Grüße/..\\, window 0", "Grüße-..-window-0"),
            ("文" * 300 + ", window 12", "window-12"),
        ],
    )
    def test_files_are_named_after_windows(self, tmp_path: Path, name: str, file: str) -> None:
        path = sample_path(tmp_path, name, MARK)
        assert path.name.endswith(f"{file}-{MARK[:16]}.parquet")
        assert path.parent == tmp_path
        write_sample(path, replace(sample(), name=name), SETTINGS)

    def test_fingerprints_tell_apart(self) -> None:
        tokens = np.arange(4)
        marks = {
            fingerprint({"model": "a", "dtype": "float32"}, tokens),
            fingerprint({"model": "a", "dtype": "bfloat16"}, tokens),
            fingerprint({"model": "a", "dtype": "float32"}, tokens + 1),
        }
        assert len(marks) == 3
        assert fingerprint({"dtype": "float32", "model": "a"}, tokens) in marks
