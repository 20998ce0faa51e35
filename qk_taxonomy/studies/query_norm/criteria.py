"""What the study decides by, fixed before it is run."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path

from qk_taxonomy.errors import StudyError
from qk_taxonomy.resources import builtin_catalog, read_toml

_TYPES = {"n_permutations": int, "seed": int}


@dataclass(frozen=True)
class Criteria:
    """Thresholds of the verdict.

    A head passes in a text where both Pearson's and Spearman's r of query norm and entropy have
    |r| ≥ ``correlation``, one sign, and q < ``p_value`` (p corrected over the text's heads). It is
    consistent where it passes with one sign in a share ``consistent`` of the texts.
    ``share_of_heads`` consistent heads make the verdict. The control, entropies shuffled
    ``n_permutations`` times in each text, fails with a |mean r|, or a share of |r| ≥
    ``correlation``, above ``control``; that of mismatched windows, with such a share of consistent
    heads. ``source``: the file they are of, "" for none. Raises StudyError for what cannot be
    decided by.
    """

    correlation: float
    p_value: float
    consistent: float
    share_of_heads: float
    control: float
    n_permutations: int
    seed: int
    source: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        for key in ("correlation", "p_value", "consistent", "share_of_heads", "control"):
            if not 0 < getattr(self, key) <= 1:
                raise StudyError(f"Wanted {key} above 0 and at most 1, found {getattr(self, key)}.")
        if self.n_permutations < 1 or self.seed < 0:
            raise StudyError(
                "Wanted at least 1 permutation and a seed that is not negative, found "
                f"{self.n_permutations} and {self.seed}."
            )


_NAMES = tuple(f.name for f in fields(Criteria) if f.compare)


def load_criteria(path: str | Path | None = None) -> Criteria:
    """The criteria of a TOML file; the built-in ones, ``catalog/query-norm.toml``, of None.

    All of them are to be there: none is decided by chance. Raises CatalogError, with file, line and
    key, and StudyError for numbers that cannot be decided by.
    """
    file = read_toml(builtin_catalog() / "query-norm.toml" if path is None else Path(path))
    file.check(file.data, (), {"criteria": dict}, {})
    table = file.data["criteria"]
    file.check(table, ("criteria",), {name: _TYPES.get(name, float) for name in _NAMES}, {})
    try:
        return Criteria(**table, source="" if path is None else str(path))
    except StudyError as err:
        raise StudyError(f"{file.path}: {err}") from err


def differing(criteria: Criteria) -> dict[str, tuple[float, float]]:
    """Those that differ from the built-in ones, each with the built-in value after its own."""
    built_in = load_criteria()
    both = {name: (getattr(criteria, name), getattr(built_in, name)) for name in _NAMES}
    return {name: (own, other) for name, (own, other) in both.items() if own != other}
