"""An outcome in a few lines, for whoever has just run the tests."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from qk_taxonomy.hypotheses.contrast import SHIFT, ContrastResult
from qk_taxonomy.hypotheses.family import COMPOSITION, PROFILE, UNMATCHED
from qk_taxonomy.hypotheses.rank import LEVEL, RankResult
from qk_taxonomy.hypotheses.run import Outcome
from qk_taxonomy.hypotheses.trend import HYPOTHESIS as TREND
from qk_taxonomy.hypotheses.trend import MANN_KENDALL
from qk_taxonomy.statistics.ranks import RANK_STATISTICS
from qk_taxonomy.statistics.shifts import FLIP_GROUPS

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
    yield from _trend_lines(table[table["hypothesis"] == TREND])


def _rank_line(rank: RankResult) -> str:
    if rank.test is None:
        return f"rank  {rank.heads.name}: not tested: {rank.rows['note'].iloc[0]}"
    rejected = (rank.test.q_values <= LEVEL).sum(0)
    shares = ", ".join(
        f"{name.replace('_', ' ')} {count}"
        for name, count in zip(RANK_STATISTICS, rejected, strict=True)
    )
    n = len(rank.heads.lam)
    return f"rank  {rank.heads.name}: heads of {n} below untrained ones, by {shares}"


def _contrast_lines(contrast: ContrastResult) -> Iterator[str]:
    rows = contrast.rows
    overall = rows[(rows["method"] == FLIP_GROUPS) & rows["layer"].isna()]
    shifted = overall[overall["q_value"] <= LEVEL]
    names = ", ".join(
        f"{statistic.replace('_', ' ')} {effect:+.2f}"
        for statistic, effect in zip(shifted["statistic"], shifted["effect"], strict=True)
    )
    name = f"{contrast.treatment.name} against {contrast.control.name}"
    yield f"contrast  {name}: shifted {names or 'none'} (rank-biserial, q ≤ {LEVEL})"
    heads = contrast.heads
    counts = [
        f"{int((heads[f'q_wasserstein_{null}'] <= LEVEL).sum())} more than {what}"
        for null, what in (("untrained", "untrained heads differ"), ("within", "its heads differ"))
        if heads[f"q_wasserstein_{null}"].notna().any()
    ]
    most = ", ".join(f"{row.layer}.{row.head}" for row in heads.head(_NAMED).itertuples())
    yield f"  heads changed of {len(heads)}: {'; '.join(counts)}; most: {most} (layer.head)"


def _group_lines(table: pd.DataFrame) -> Iterator[str]:
    for row in table[table["hypothesis"] == COMPOSITION].itertuples():
        result = f"p = {row.p_value:.3g}" if row.p_value == row.p_value else row.note
        yield f"families  class composition: R² = {row.effect:.2f}, {result}"
    for hypothesis, what in ((PROFILE, "families  by depth"), (UNMATCHED, "contrast  unmatched")):
        rows = table[table["hypothesis"] == hypothesis]
        if not len(rows):
            continue
        differ = sorted(set(rows.loc[rows["q_value"] <= LEVEL, "statistic"]))
        if rows["p_value"].notna().any():
            names = ", ".join(name.replace("_", " ") for name in differ) or "no statistic"
            yield f"{what}: {names} (q ≤ {LEVEL})"
        else:
            yield f"{what}: not tested: {rows['note'].iloc[0]}"


def _trend_lines(rows: pd.DataFrame) -> Iterator[str]:
    trends = rows[rows["method"] == MANN_KENDALL]
    for (family, model, stack), own in trends.groupby(["family", "model", "stack"], sort=False):
        found = own[own["q_value"] <= LEVEL]
        names = ", ".join(
            f"{statistic.replace('_', ' ')} {effect:+.2f}"
            for statistic, effect in zip(found["statistic"], found["effect"], strict=True)
        )
        name = "/".join(part for part in (family, model, stack) if part)
        yield f"trend  {name}: {names or 'none'} (Mann–Kendall τ, q ≤ {LEVEL})"
