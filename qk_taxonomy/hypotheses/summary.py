"""An outcome in a few lines, for whoever has just run the tests."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from qk_taxonomy.hypotheses.contrast import KIND, SHIFT, ContrastResult
from qk_taxonomy.hypotheses.family import COMPOSITION, PROFILE, UNMATCHED
from qk_taxonomy.hypotheses.rank import RankResult
from qk_taxonomy.hypotheses.run import Outcome
from qk_taxonomy.hypotheses.trend import HYPOTHESIS as TREND
from qk_taxonomy.hypotheses.trend import MANN_KENDALL
from qk_taxonomy.labels import statistic_label
from qk_taxonomy.statistics.findings import LEVEL
from qk_taxonomy.statistics.ranks import RANK_STATISTICS

_NAMED = 3


def summary(outcome: Outcome) -> Iterator[str]:
    """One line a model and rank test, contrast, comparison of families, and model's trends."""
    for rank in outcome.ranks:
        yield _rank_line(rank)
    for contrast in outcome.contrasts:
        yield from _contrast_lines(contrast)
    table = outcome.table
    refused = table[(table["hypothesis"] == SHIFT) & (table["statistic"] == "")]
    for note in refused["note"]:
        yield f"contrast refused: {note}"
    yield from _group_lines(table)
    yield from _trend_lines(table)


def _rank_line(rank: RankResult) -> str:
    if rank.test is None:
        return f"rank  {rank.heads.name}: not tested: {rank.rows['note'].iloc[0]}"
    rejected = (rank.test.q_values <= LEVEL).sum(0)
    counts = ", ".join(
        f"{count} by {statistic_label(name)}"
        for name, count in zip(RANK_STATISTICS, rejected, strict=True)
    )
    n = len(rank.heads.lam)
    return f"rank  {rank.heads.name}: of {n} heads, lower-rank than untrained ones: {counts}"


def effects_found(rows: pd.DataFrame) -> str:
    """The statistics of rows that are rejected after correction, with their effects."""
    found = rows[rows["q_value"] <= LEVEL]
    effects = zip(found["statistic"], found["effect"], strict=True)
    return (
        ", ".join(f"{statistic_label(name)} ({effect:+.2f})" for name, effect in effects) or "none"
    )


def _contrast_lines(contrast: ContrastResult) -> Iterator[str]:
    name = f"{contrast.treatment.name} against {contrast.control.name}"
    effects = effects_found(contrast.overall)
    yield f"contrast  {name}: shifted: {effects} (rank-biserial, q ≤ {LEVEL})"
    heads = contrast.heads
    counts = [
        f"{int((heads[f'q_wasserstein_{null}'] <= LEVEL).sum())} by more than {what} differ"
        for null, what in (("untrained", "untrained heads"), ("within", "the control's heads"))
        if heads[f"q_wasserstein_{null}"].notna().any()
    ]
    most = ", ".join(f"{row.layer}.{row.head}" for row in heads.head(_NAMED).itertuples())
    counted = "".join(f", {count}" for count in counts)
    yield f"  changed, of {len(heads)} heads{counted}; most: {most} (layer.head)"


def _group_lines(table: pd.DataFrame) -> Iterator[str]:
    for (model, stack), rows in _by(table, KIND, ["model", "stack"]):
        name = f"{model} {stack}".rstrip()
        if rows["p_value"].notna().any():
            yield f"contrast  {name}: shifted: {effects_found(rows)} (rank-biserial, q ≤ {LEVEL})"
        else:
            yield f"contrast  {name}: not tested together: {rows['note'].iloc[0]}"
    for (stack,), rows in _by(table, COMPOSITION, ["stack"]):
        row = rows.iloc[0]
        known = f"R² = {row['effect']:.2f}, " if row["effect"] == row["effect"] else ""
        tested = row["p_value"] == row["p_value"]
        result = f"p = {row['p_value']:.3g}" if tested else f"not tested: {row['note']}"
        yield f"families  {f'{stack}, ' if stack else ''}class composition: {known}{result}"
    for hypothesis, what in ((PROFILE, "families  by depth"), (UNMATCHED, "contrast  of groups")):
        for (stack,), rows in _by(table, hypothesis, ["stack"]):
            name = f"{what}{f', {stack}' if stack else ''}"
            differ = dict.fromkeys(rows.loc[rows["q_value"] <= LEVEL, "statistic"])
            if rows["p_value"].notna().any():
                yield f"{name}: {', '.join(map(statistic_label, differ)) or 'none'} (q ≤ {LEVEL})"
            else:
                yield f"{name}: not tested: {rows['note'].iloc[0]}"


def _by(
    table: pd.DataFrame, hypothesis: str, keys: list[str]
) -> Iterator[tuple[tuple[str, ...], pd.DataFrame]]:
    """The rows of a hypothesis, by the values of ``keys``."""
    rows = table[table["hypothesis"] == hypothesis]
    yield from rows.groupby(keys, sort=False)


def _trend_lines(table: pd.DataFrame) -> Iterator[str]:
    for names, rows in _by(table, TREND, ["family", "model", "stack"]):
        trends = rows[rows["method"] == MANN_KENDALL]
        name = "/".join(filter(None, names))
        yield f"trend  {name}: {effects_found(trends)} (Mann–Kendall τ, q ≤ {LEVEL})"
