"""Numbers and names in words."""

from __future__ import annotations

from qk_taxonomy.wording import counted, some


def test_things_are_counted() -> None:
    assert [counted(n) for n in (0, 1, 12)] == ["0 heads", "1 head", "12 heads"]
    assert [counted(n, "class", "classes") for n in (1, 2)] == ["1 class", "2 classes"]


def test_of_many_names_the_first_are_told() -> None:
    assert some([], 2) == ""
    assert some(["a", "b"], 2) == "a, b"
    assert some(dict.fromkeys("abcde"), 2) == "a, b and 3 more"
