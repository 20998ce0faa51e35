"""Slopes over models: the mean of each model's own, and against a number that each model has."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qk_taxonomy.statistics.findings import Finding, join_notes
from qk_taxonomy.statistics.relabelling import left_out

Array = NDArray[np.float64]

#: Models below which there is no slope over models.
FEWEST_MODELS = 3

MEAN_SLOPE = "mean over models of Theil–Sen slopes; Student's t"
LEAST_SQUARES = "least squares over models; Student's t"
THEIL_SEN = "Theil–Sen over models; interval of Kendall's S"

# Below it no order of models has a two-sided 95 % interval of Kendall's S (4! = 24).
_FEWEST_RANKED = 5

_TAIL = 0.975


def mean_slope(slopes: Array) -> Finding:
    """Mean of one slope a model (models,), its 95 % interval and the p-value of no mean slope.

    For models like these, of which each counts once. nan are left out.
    """
    from scipy.stats import t, ttest_1samp

    usable = np.isfinite(slopes)
    x, n = slopes[usable], int(usable.sum())
    refusal = _refusal(n)
    if refusal:
        return Finding(n=n, method=MEAN_SLOPE, note=join_notes(left_out(usable), refusal))
    mean, spread = float(x.mean()), float(x.std(ddof=1))
    if spread == 0:
        note = join_notes(left_out(usable), "all models have one slope")
        return Finding(effect=mean, n=n, method=MEAN_SLOPE, note=note)
    half = float(t.ppf(_TAIL, n - 1)) * spread / np.sqrt(n)
    return Finding(
        effect=mean,
        low=mean - half,
        high=mean + half,
        p_value=float(ttest_1samp(x, 0.0).pvalue),
        n=n,
        method=MEAN_SLOPE,
        note=left_out(usable),
    )


def slopes_against(x: Array, y: Array) -> tuple[Finding, Finding]:
    """Slope of y against x, (models,) each: by least squares, tested, and by Theil and Sen.

    The first takes the models' deviations for independent and normal; the second, which a model
    that deviates much does not move, is a description without a p-value. nan are left out.
    """
    from scipy.stats import linregress, t, theilslopes

    usable = np.isfinite(x) & np.isfinite(y)
    n, note = int(usable.sum()), left_out(usable)
    a, b = x[usable], y[usable]
    refusal = _refusal(n) or ("all models are of one size" if np.ptp(a) == 0 else "")
    if refusal:
        note = join_notes(note, refusal)
        least, median = (Finding(n=n, method=m, note=note) for m in (LEAST_SQUARES, THEIL_SEN))
        return least, median
    line = linregress(a, b)
    half = float(t.ppf(_TAIL, n - 2)) * float(line.stderr)
    slope, _, low, high = (float(value) for value in theilslopes(b, a))
    ranked = n >= _FEWEST_RANKED
    few = "" if ranked else f"{n} models are too few for an interval (wanted {_FEWEST_RANKED})"
    return (
        Finding(
            effect=float(line.slope),
            low=float(line.slope) - half,
            high=float(line.slope) + half,
            p_value=float(line.pvalue),
            n=n,
            method=LEAST_SQUARES,
            note=note,
        ),
        Finding(
            effect=slope,
            low=low if ranked else np.nan,
            high=high if ranked else np.nan,
            n=n,
            method=THEIL_SEN,
            note=join_notes(note, few),
        ),
    )


def _refusal(n: int) -> str:
    return f"{n} models are too few (wanted {FEWEST_MODELS})" if n < FEWEST_MODELS else ""
