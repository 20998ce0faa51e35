"""What holds of a family's sizes, in sentences."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from qk_taxonomy.labels import statistic_axis, statistic_label
from qk_taxonomy.statistics.findings import LEVEL
from qk_taxonomy.statistics.moments import LOG_STATISTICS
from qk_taxonomy.statistics.slopes import THEIL_SEN
from qk_taxonomy.studies.sizes.family import FamilySizes
from qk_taxonomy.studies.sizes.trends import BY_DEPTH, BY_SIZE, UNTRAINED_BY_SIZE

# Theil and Sen's slope is named where it is off by more than this share of the larger one.
_APART = 0.25


def slope_label(name: str) -> str:
    """What figures and tables call a statistic whose slope they tell."""
    label = statistic_label(name)
    return f"ln {label}" if name in LOG_STATISTICS else label


def slope_axis(name: str) -> str:
    """What an axis of slopes calls a statistic, with its unit where it is no logarithm."""
    return slope_label(name) if name in LOG_STATISTICS else statistic_axis(name)


def summary(sizes: FamilySizes) -> Iterator[str]:
    """Of each stack, circuit and convention, what rises or falls with depth, and with size, where
    parameters are known; and of the last what the same models do before training.
    """
    for one in sizes.trends:
        yield f"{sizes.family}, {one.title}: {len(one.models)} models"
        for hypothesis, unit in ((BY_DEPTH, "whole depth"), (BY_SIZE, "factor of ten")):
            rows = one.rows[one.rows["hypothesis"] == hypothesis]
            if rows.empty:
                continue
            if not rows["p_value"].notna().any():
                yield f"  {hypothesis}: not tested: {rows['note'].iloc[0]}"
                continue
            held = rows[rows["q_value"] <= LEVEL]
            none = ": none" if held.empty else ":"
            yield f"  {hypothesis}, per {unit} (q ≤ {LEVEL}){none}"
            for _, row in held.iterrows():
                yield f"  {told_slope(row, one.rows)}"
    by_size = [one for one in sizes.trends if one.by_size]
    if any(not (one.untrained_known or one.are_untrained) for one in by_size):
        yield (
            "d_model and d_head alone move slopes with parameters: spectra of the same models at "
            "step 0, where the hub has them, tell how far (`qk-taxonomy download --revision step0`)"
        )


def told_slope(row: pd.Series, rows: pd.DataFrame) -> str:
    """A statistic's slope, Theil and Sen's where that is another, and that of untrained models."""
    # The number first: "λ₁ / 1000 -0.5" would be read as a difference.
    said = f"{row['effect']:>+8.3g}  {slope_label(row['statistic'])}"
    if row["hypothesis"] == BY_DEPTH:
        return said
    own = rows[rows["statistic"] == row["statistic"]]
    median = float(own.loc[own["method"] == THEIL_SEN, "effect"].iloc[0])
    apart = abs(median - row["effect"]) > _APART * max(abs(median), abs(row["effect"]))
    if apart or not row["low"] <= median <= row["high"]:
        said += f" (Theil–Sen {median:+.3g})"
    before = own.loc[own["hypothesis"] == UNTRAINED_BY_SIZE]
    if row["note"]:
        return f"{said}; {row['note']}"
    if len(before):
        first = before.iloc[0]
        said += f"; untrained: {first['effect']:+.3g} (q = {first['q_value']:.2g})"
    return said
