"""Names of spectra files, and of models at a revision."""

from __future__ import annotations

import doctest

import pytest

from qk_taxonomy.records import FileStem, at_revision, names, split_revision


def test_examples() -> None:
    assert doctest.testmod(names).failed == 0


@pytest.mark.parametrize("revision", [None, "step1000", "refs/pr/2", "100%", "at@noon", "ä ö"])
@pytest.mark.parametrize("control", ["", "random-0", "one-layer"])
def test_what_a_stem_was_made_of_is_read_from_it(revision: str | None, control: str) -> None:
    stem = FileStem("Llama-3.1-8B", revision, control)
    assert FileStem.parse(str(stem)) == stem
    assert "/" not in str(stem)


def test_a_stem_is_split_at_its_first_marks() -> None:
    assert FileStem.parse("m@v1@x~random-0~y") == FileStem("m", "v1@x", "random-0~y")
    assert FileStem.parse("m~one-layer@v1") == FileStem("m", None, "one-layer@v1")
    assert FileStem.parse("") == FileStem("")


@pytest.mark.parametrize("revision", ["", "main", "refs/pr/2"])
def test_a_reference_is_split_as_it_is_written(revision: str) -> None:
    assert split_revision(at_revision("org/model", revision)) == ("org/model", revision)
    assert at_revision("org/model", None) == "org/model"
