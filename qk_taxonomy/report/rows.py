"""Which rows of the tables of tests the page shows, and what it says of the others."""

from __future__ import annotations

from dataclasses import dataclass, field

import pandas as pd

from qk_taxonomy.hypotheses.contrast import RANK_SHIFT, SHIFT, overall_method
from qk_taxonomy.hypotheses.measures import measure_of
from qk_taxonomy.records import FileStem
from qk_taxonomy.statistics.findings import LEVEL
from qk_taxonomy.statistics.shifts import FLIP_LAYERS

#: Rows of the table of tests that the page carries, as far as tests of single heads go.
MOST_TESTS = 100_000

#: Columns of a test that the page shows; ``measure``: what the effect is, ``unit``: what n counts.
TEST_COLUMNS = (
    *("hypothesis", "family", "model", "against", "stack", "layer", "head", "statistic"),
    *("effect", "measure", "low", "high", "p_value", "q_value", "n", "unit", "method", "note"),
)

#: Columns of texts, which may be empty throughout; all others are of numbers.
TEXTS = (
    *("hypothesis", "family", "model", "against", "stack", "statistic"),
    *("measure", "unit", "method", "note"),
)

_SUBJECT = ("family", "model", "against", "stack")


@dataclass(frozen=True, eq=False)
class ListedTests:
    """Rows as the page lists them, and a sentence where they are fewer than the tests."""

    table: pd.DataFrame = field(repr=False)
    n_tests: int
    hypotheses: tuple[str, ...]
    note: str

    @property
    def has_p_values(self) -> bool:
        return bool(self.table["p_value"].notna().any())


def listed_tests(tests: pd.DataFrame, most: int = MOST_TESTS) -> ListedTests:
    """The table of tests; where it has more than ``most`` rows, heads are summed up by layer.

    A row that sums up has the median of effects, no interval, the smallest p and q, and the number
    of heads as n; its note tells how many heads have q ≤ 0.05.
    """
    table = _measured(tests)
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


def _measured(tests: pd.DataFrame) -> pd.DataFrame:
    """The tests, each with what its effect and its n are."""
    keys = ["method", "statistic"]
    kinds = tests[keys].drop_duplicates()
    found = [measure_of(str(method), str(name)) for method, name in kinds.itertuples(index=False)]
    kinds = kinds.assign(measure=[str(one) for one in found], unit=[one.n for one in found])
    return tests.merge(kinds, on=keys, how="left").reindex(columns=list(TEST_COLUMNS))


def _by_layer(single: pd.DataFrame) -> pd.DataFrame:
    keys = [*_SUBJECT, "layer", "hypothesis", "statistic", "method", "measure"]
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
    summed["unit"] = "heads"
    summed["note"] = [
        f"{rejected} of {n} heads with q ≤ {LEVEL}; median effect, smallest p and q"
        for rejected, n in zip(summed["rejected"], summed["n"], strict=True)
    ]
    return summed


@dataclass(frozen=True)
class ContrastChoice:
    """A contrast to choose on the page: both sides, the method of its forest plot, and what the
    control is: the model before some training, or a twin that was never trained.
    """

    family: str
    model: str
    against: str
    stack: str
    method: str

    @property
    def is_twin(self) -> bool:
        """Whether the control is a twin, whose heads have no match in the model."""
        return bool(FileStem.parse(self.against).control)


def listed_contrasts(contrasts: pd.DataFrame) -> tuple[ContrastChoice, ...]:
    """The contrasts that have shifts, each with the method of those over all layers."""
    if contrasts.empty:
        return ()
    shifts = contrasts[(contrasts["hypothesis"] == SHIFT) & contrasts["layer"].isna()]
    choices = []
    for subject, rows in shifts.groupby(list(_SUBJECT), sort=False, dropna=False):
        flips = rows[rows["method"] == FLIP_LAYERS]
        method = overall_method(int(flips["n"].max()) if len(flips) else 0)
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
