"""The rank hypothesis, head by head: H0, the spectrum is as high-rank as an untrained head's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from qk_taxonomy.hypotheses.heads import HeadSet, untrained_like
from qk_taxonomy.hypotheses.table import as_rows, finding_rows, subject
from qk_taxonomy.statistics.findings import LEVEL, Finding
from qk_taxonomy.statistics.ranks import RANK_STATISTICS, RankTest, rank_test

HYPOTHESIS = "rank"

ABOVE, BELOW = "above_untrained_edge", "below_untrained_edge"

#: Methods of its rows: tests of heads, and descriptions of heads and of layers, without p.
AGAINST_UNTRAINED = "against n untrained heads; ratio to their median"
BEYOND_EDGE = "number of λ beyond the edge, in units of the head's median λ"
SHARE_OF_HEADS = f"share of the layer's heads with q ≤ {LEVEL}"


@dataclass(frozen=True, eq=False)
class RankResult:
    """The rank test of one set of heads, None where there was no null, and its rows."""

    heads: HeadSet
    test: RankTest | None
    rows: pd.DataFrame


def rank_hypothesis(
    heads: HeadSet, twins: Iterable[HeadSet] = (), *, include_imported: bool = False
) -> RankResult:
    """Test the rank hypothesis for every head of one model.

    Rows of a head: the effect is its statistic over the untrained median, with the interval that
    the central 95 % of untrained heads give it; then the numbers of λ beyond the untrained edges.
    Rows of a layer: the share of its heads that are rejected (q ≤ 0.05). ``twins``: heads of random
    twins, for architectures without an analytic null.
    """
    shared = subject(heads, HYPOTHESIS)
    untrained = untrained_like(heads, twins, include_imported=include_imported)
    if untrained.lam is None:
        refused = Finding(note=untrained.reason)
        findings = [({"statistic": name}, refused) for name in RANK_STATISTICS]
        return RankResult(heads, None, finding_rows(shared, findings))
    test = rank_test(heads.lam, untrained.lam)
    parts = []
    for column, name in enumerate(RANK_STATISTICS):
        own = {**shared, "statistic": name, "note": untrained.limit(len(heads.lam))}
        parts += _statistic_rows(heads, test, column, own, len(untrained.lam))
    for name, count in ((ABOVE, test.above), (BELOW, test.below)):
        parts.append(
            as_rows(
                {
                    **shared,
                    "statistic": name,
                    "layer": heads.layer,
                    "head": heads.table["head"].to_numpy(),
                    "effect": count.astype(np.float64),
                    "n": heads.lam.shape[1],
                    "method": BEYOND_EDGE,
                }
            )
        )
    return RankResult(heads, test, pd.concat(parts, ignore_index=True))


def _ratio(values: np.ndarray, reference: float) -> np.ndarray:
    return np.divide(values, reference, out=np.full_like(values, np.nan), where=reference > 0)


def _statistic_rows(
    heads: HeadSet, test: RankTest, column: int, shared: dict[str, str], draws: int
) -> list[pd.DataFrame]:
    """One statistic's rows of heads, then of layers."""
    observed = test.observed[:, column]
    rejected = test.q_values[:, column] <= LEVEL
    of_heads = as_rows(
        {
            **shared,
            "layer": heads.layer,
            "head": heads.table["head"].to_numpy(),
            "effect": _ratio(observed, test.null_median[column]),
            "low": _ratio(observed, test.null_high[column]),
            "high": _ratio(observed, test.null_low[column]),
            "p_value": test.p_values[:, column],
            "q_value": test.q_values[:, column],
            "n": draws,
            "method": AGAINST_UNTRAINED,
        }
    )
    layers = np.unique(heads.layer)
    shares = [rejected[heads.layer == layer] for layer in layers]
    of_layers = as_rows(
        {
            **shared,
            "layer": layers,
            "effect": [share.mean() for share in shares],
            "n": [len(share) for share in shares],
            "method": SHARE_OF_HEADS,
        }
    )
    return [of_heads, of_layers]
