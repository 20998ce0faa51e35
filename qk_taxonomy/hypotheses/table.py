"""The table of tests: one row a test, and the correction of p-values over rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from qk_taxonomy.hypotheses.heads import HeadSet
from qk_taxonomy.statistics.findings import Finding, benjamini_hochberg, join_notes

#: What a test is about. ``against``: the other side of a comparison; ``layer`` and ``head`` are
#: empty where the test is about all of them.
SUBJECT = (
    *("family", "model", "against", "stack", "circuit", "convention", "layer", "head"),
    *("hypothesis", "statistic"),
)
_RESULT = ("effect", "low", "high", "p_value", "q_value", "n", "method", "note")
COLUMNS = (*SUBJECT, *_RESULT)

_TEXT = (
    *("family", "model", "against", "stack", "circuit", "convention", "hypothesis", "statistic"),
    *("method", "note"),
)


def subject(heads: HeadSet, hypothesis: str, *, against: str = "") -> dict[str, str]:
    """The columns that every test on one set of heads shares."""
    return {
        "family": heads.family,
        "model": heads.model,
        "against": against,
        "stack": heads.stack,
        "circuit": heads.circuit,
        "convention": heads.convention,
        "hypothesis": hypothesis,
    }


def as_rows(columns: Mapping[str, Any]) -> pd.DataFrame:
    """Rows of the table from some of its columns, scalars or arrays; the others are empty."""
    table = pd.DataFrame(dict(columns))
    for name in COLUMNS:
        if name not in table:
            empty: Any = "" if name in _TEXT else np.nan
            table[name] = empty
    whole = table[list(COLUMNS)]
    return whole.astype({"layer": "Int64", "head": "Int64", "n": "Int64"})


def finding_rows(
    shared: Mapping[str, Any], findings: Iterable[tuple[Mapping[str, Any], Finding]]
) -> pd.DataFrame:
    """A row a finding: ``shared`` columns, its own, and its numbers; notes of both are joined."""
    rows = [
        {
            **shared,
            **own,
            **{name: getattr(finding, name) for name in _RESULT if name != "q_value"},
            "note": join_notes(shared.get("note", ""), finding.note),
        }
        for own, finding in findings
    ]
    return as_rows(pd.DataFrame(rows)) if rows else empty_table()


def empty_table() -> pd.DataFrame:
    """The table without rows, each column of its kind."""
    return as_rows(
        {name: pd.Series(dtype=object if name in _TEXT else np.float64) for name in COLUMNS}
    )


def corrected(table: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """The table with q-values: Benjamini and Hochberg's over the p-values of each group of ``by``.

    Rows without a p-value have no q-value and do not count.
    """
    groups = table.groupby(list(by), sort=False, dropna=False)["p_value"]
    return table.assign(q_value=groups.transform(benjamini_hochberg))
