"""The record every hypothesis test returns, and the correction of many p-values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

nan = float("nan")

#: What counts as rejected, of p-values and, after correction, of q-values (false discovery rate).
LEVEL = 0.05


@dataclass(frozen=True)
class Finding:
    """One test: ``effect`` with its 95 % interval [``low``, ``high``], ``p_value``, ``n`` units.

    ``effect``: size of the difference, in the unit that ``method`` names. ``n``: number of units
    of replication (models, unless ``method`` says otherwise). ``method``: test and effect by name.
    ``note``: why a number is missing, or what limits it; empty where there is nothing to say.
    ``statistic``: the test statistic. Floats are nan where they are not defined; a test that is
    refused has ``p_value`` nan and a note.
    """

    effect: float = nan
    low: float = nan
    high: float = nan
    p_value: float = nan
    n: int = 0
    method: str = ""
    note: str = ""
    statistic: float = nan


def join_notes(*notes: str) -> str:
    """Those notes that say something, in one line."""
    return "; ".join(filter(None, notes))


def benjamini_hochberg(p_values: ArrayLike) -> NDArray[np.float64]:
    """q-values over all p-values that are not nan, whatever their shape; nan for nan.

    Benjamini & Hochberg (1995), J. R. Stat. Soc. B 57, 289.
    """
    from scipy.stats import false_discovery_control

    p = np.asarray(p_values, dtype=np.float64)
    q = np.full_like(p, np.nan)
    tested = ~np.isnan(p)
    if tested.any():
        q[tested] = false_discovery_control(p[tested])
    return q
