"""Trends with depth: does a statistic rise or fall from layer to layer of one model?"""

from __future__ import annotations

import numpy as np
import pandas as pd

from qk_taxonomy.hypotheses.heads import HeadSet
from qk_taxonomy.hypotheses.table import corrected, finding_rows, subject
from qk_taxonomy.statistics.findings import Finding
from qk_taxonomy.statistics.trends import DepthTrend, depth_trend, first_layer

HYPOTHESIS = "trend with depth"

MANN_KENDALL = "Mann–Kendall, autocorrelation allowed for; τ"
THEIL_SEN = "Theil–Sen slope per layer"
BDS = "BDS independence of layers, permutation p; BDS statistic"


def trend_rows(heads: HeadSet) -> pd.DataFrame:
    """Three rows a statistic: Mann–Kendall's τ, Theil and Sen's slope, BDS; the layer is the unit.

    Layers from :func:`~qk_taxonomy.statistics.trends.first_layer` on.
    q-values are over the statistics, for each test.
    """
    layers = np.unique(heads.layer)[first_layer(len(heads.layers)) :]
    findings = []
    for name, values in heads.statistics.items():
        column = values.to_numpy()
        trend = depth_trend([column[heads.layer == layer] for layer in layers])
        findings += [({"statistic": name}, finding) for finding in _findings(trend)]
    return corrected(finding_rows(subject(heads, HYPOTHESIS), findings), ["method"])


def _findings(trend: DepthTrend) -> list[Finding]:
    n, note = trend.n_layers, trend.note
    return [
        Finding(
            effect=trend.mann_kendall_tau,
            p_value=trend.mann_kendall_p_value,
            n=n,
            method=MANN_KENDALL,
            note=note,
        ),
        Finding(
            effect=trend.theil_sen_slope,
            low=trend.slope_low,
            high=trend.slope_high,
            n=n,
            method=THEIL_SEN,
            note=note,
        ),
        Finding(
            effect=trend.bds,
            p_value=trend.bds_permutation_p_value,
            n=n,
            method=BDS,
            note=note,
        ),
    ]
