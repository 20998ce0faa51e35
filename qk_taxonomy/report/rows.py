"""Which rows of the tables of tests the page shows, and what it says of the others."""

from __future__ import annotations

from dataclasses import dataclass, field

import pandas as pd

from qk_taxonomy.hypotheses.contrast import RANK_SHIFT, SHIFT
from qk_taxonomy.statistics.findings import LEVEL
from qk_taxonomy.statistics.shifts import FEWEST_UNITS, FLIP_GROUPS, FLIP_LAYERS

#: Rows of the table of tests that the page carries, as far as tests of single heads go.
MOST_TESTS = 100_000

#: Columns of a test that the page shows.
TEST_COLUMNS = (
    *("hypothesis", "family", "model", "against", "stack", "layer", "head", "statistic"),
    *("effect", "low", "high", "p_value", "q_value", "n", "method", "note"),
)

#: Columns of texts, which may be empty throughout; all others are of numbers.
TEXTS = ("hypothesis", "family", "model", "against", "stack", "statistic", "method", "note")

_SUBJECT = ("family", "model", "against", "stack")


@dataclass(frozen=True, eq=False)
class ListedTests:
    """Rows as the page lists them, and a sentence where they are fewer than the tests."""

    table: pd.DataFrame = field(repr=False)
    n_tests: int
    hypotheses: tuple[str, ...]
    note: str


def listed_tests(tests: pd.DataFrame, most: int = MOST_TESTS) -> ListedTests:
    """The table of tests; where it has more than ``most`` rows, heads are summed up by layer.

    A row that sums up has the median of effects, no interval, the smallest p and q, and the number
    of heads as n; its note tells how many heads have q ≤ 0.05.
    """
    table = tests.reindex(columns=list(TEST_COLUMNS))
    hypotheses = tuple(map(str, table["hypothesis"].dropna().unique()))
    if len(table) <= most:
        return ListedTests(table, len(tests), hypotheses, "")
    single = table["head"].notna()
    shown = pd.concat([table[~single], _by_layer(table[single])], ignore_index=True)
    note = (
        f"There are {len(tests):,} tests, more than the {most:,} that this page lists: tests of "
        "single heads are summed up by layer (median effect, smallest p and q). The file of tests "
        "has them all."
    )
    return ListedTests(shown[list(TEST_COLUMNS)], len(tests), hypotheses, note)


def _by_layer(single: pd.DataFrame) -> pd.DataFrame:
    keys = [*_SUBJECT, "layer", "hypothesis", "statistic", "method"]
    groups = single.assign(rejected=single["q_value"] <= LEVEL).groupby(
        keys, sort=False, dropna=False
    )
    summed = groups.agg(
        effect=("effect", "median"),
        p_value=("p_value", "min"),
        q_value=("q_value", "min"),
        n=("head", "size"),
        rejected=("rejected", "sum"),
    ).reset_index()
    summed["note"] = [
        f"{rejected} of {n} heads with q ≤ {LEVEL}; median effect, smallest p and q"
        for rejected, n in zip(summed["rejected"], summed["n"], strict=True)
    ]
    return summed


@dataclass(frozen=True)
class ContrastChoice:
    """A contrast to choose on the page: both sides and the method of its forest plot."""

    family: str
    model: str
    against: str
    stack: str
    method: str


def listed_contrasts(contrasts: pd.DataFrame) -> tuple[ContrastChoice, ...]:
    """The contrasts that have shifts, each with the method that its figure shows.

    Flips of whole layers where there are enough of them, else of key-value groups, as in
    ``ContrastResult.overall``.
    """
    if contrasts.empty:
        return ()
    shifts = contrasts[(contrasts["hypothesis"] == SHIFT) & contrasts["layer"].isna()]
    choices = []
    for subject, rows in shifts.groupby(list(_SUBJECT), sort=False, dropna=False):
        flips = rows[rows["method"] == FLIP_LAYERS]
        layers = flips["n"].max() if len(flips) else 0
        method = FLIP_LAYERS if layers >= FEWEST_UNITS else FLIP_GROUPS
        family, model, against, stack = ("" if pd.isna(name) else str(name) for name in subject)
        choices.append(ContrastChoice(family, model, against, stack, method))
    return tuple(choices)


def listed_changes(changed: pd.DataFrame) -> pd.DataFrame:
    """The columns of the heads of contrasts that the page lists."""
    wanted = (
        *_SUBJECT, "layer", "head", "wasserstein", "q_wasserstein_untrained",
        "q_wasserstein_within", "jensen_shannon", "q_jensen_shannon_untrained",
        "q_jensen_shannon_within", RANK_SHIFT,
    )  # fmt: skip
    return changed.reindex(columns=list(wanted))
