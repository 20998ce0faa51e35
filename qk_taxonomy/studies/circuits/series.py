"""Graded series of words and their opposites: the built-in ones, and files of the same form."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qk_taxonomy.resources import TomlFile, builtin_catalog, read_toml


@dataclass(frozen=True)
class WordSeries:
    """Words ``graded`` from mild to strong, two or more, and one or more ``opposite`` ones."""

    graded: tuple[str, ...]
    opposite: tuple[str, ...]

    @property
    def base(self) -> str:
        """The mildest word, which scores are taken from."""
        return self.graded[0]

    @property
    def strong(self) -> str:
        return self.graded[-1]

    @property
    def words(self) -> tuple[str, ...]:
        return self.graded + self.opposite


def series_words(series: Sequence[WordSeries]) -> tuple[str, ...]:
    """All words of the series, in order: the columns that the scores of words are made of."""
    return tuple(word for one in series for word in one.words)


def _words(file: TomlFile, found: list[Any], fewest: int, *keys: str | int) -> tuple[str, ...]:
    for word in found:
        if not isinstance(word, str) or word.split() != [word]:
            raise file.error(f"wanted single words, found {word!r}.", *keys)
    if len(found) < fewest:
        wanted = "two words or more, mild to strong" if fewest == 2 else "at least one word"
        raise file.error(f"wanted {wanted}, found {found!r}.", *keys)
    return tuple(found)


def read_word_series(path: Path | None = None) -> tuple[WordSeries, ...]:
    """The series of a TOML file, in its order; the built-in ones where ``path`` is None.

    Raises CatalogError, with file, line and key, where it is not of the form of
    ``catalog/word_series.toml``: an array ``series`` of tables, each with the arrays ``graded`` and
    ``opposite``, and no word twice, in whatever case.
    """
    file = read_toml(builtin_catalog() / "word_series.toml" if path is None else path)
    file.check(file.data, (), {"series": list}, {})
    if not file.data["series"]:
        raise file.error("wanted at least one series of words.", "series")
    series, seen = [], set[str]()
    for index, table in enumerate(file.data["series"]):
        if not isinstance(table, dict):
            raise file.error(f"wanted a table, found {table!r}.", "series", index)
        file.check(table, ("series", index), {"graded": list, "opposite": list}, {})
        for key, fewest in (("graded", 2), ("opposite", 1)):
            for word in _words(file, table[key], fewest, "series", index, key):
                if word.casefold() in seen:
                    raise file.error(
                        f"the word {word!r} stands twice; take one away, since series are to be "
                        "independent of each other.",
                        *("series", index, key),
                    )
                seen.add(word.casefold())
        series.append(WordSeries(tuple(table["graded"]), tuple(table["opposite"])))
    return tuple(series)


def known_series(
    series: Sequence[WordSeries], known: Container[str]
) -> tuple[tuple[WordSeries, ...], tuple[str, ...]]:
    """The series as far as a model has their words as single tokens, and the words left out.

    ``known``: the words that are one token each. A series stays while it has its base, a stronger
    word and an opposite; words of a series that goes are left out with it.
    """
    kept = []
    for one in series:
        graded = tuple(word for word in one.graded if word in known)
        opposite = tuple(word for word in one.opposite if word in known)
        if one.base in known and len(graded) > 1 and opposite:
            kept.append(WordSeries(graded, opposite))
    words = set(series_words(kept))
    return tuple(kept), tuple(word for word in series_words(series) if word not in words)
