"""What the numbers of a row of the table of tests are: its effect's measure, and what n counts."""

from __future__ import annotations

from dataclasses import dataclass, replace

from qk_taxonomy.hypotheses.rank import AGAINST_UNTRAINED, BEYOND_EDGE, SHARE_OF_HEADS
from qk_taxonomy.hypotheses.trend import BDS, MANN_KENDALL, THEIL_SEN
from qk_taxonomy.statistics.moments import LOG_STATISTICS
from qk_taxonomy.statistics.shifts import FLIP_GROUPS, FLIP_LAYERS, WILCOXON


@dataclass(frozen=True)
class Measure:
    """``effect``: what the effect of a row is; ``none``: its value where there is no effect, ""
    where the row is a count or the like that has no such value; ``n``: what n counts.
    """

    effect: str
    none: str
    n: str

    def __str__(self) -> str:
        return f"{self.effect} (none: {self.none})" if self.none else self.effect


_SHIFT = "Hodges–Lehmann shift"

_MEASURES = {
    AGAINST_UNTRAINED: Measure("ratio to the untrained median", "1", "untrained heads drawn"),
    BEYOND_EDGE: Measure("count of λ", "", "λ of the head"),
    SHARE_OF_HEADS: Measure("share of heads", "0", "heads of the layer"),
    MANN_KENDALL: Measure("Kendall's τ", "0", "layers"),
    THEIL_SEN: Measure("slope per layer", "0", "layers"),
    BDS: Measure("BDS statistic", "0", "layers"),
    WILCOXON: Measure(_SHIFT, "0", "key-value groups"),
    FLIP_GROUPS: Measure("rank-biserial r", "0", "key-value groups"),
    FLIP_LAYERS: Measure("rank-biserial r", "0", "layers"),
}

# Methods of tests of models begin with these.
_OF_MODELS = {
    "Wilcoxon signed-rank over origins": Measure("Hodges–Lehmann median of r", "0", "origins"),
    "Kruskal–Wallis": Measure("ε²", "0", "models"),
    "PERMANOVA": Measure("R²", "0", "models"),
    "Dunn": Measure("Cliff's δ", "0", "models"),
    "Cliff's delta": Measure("Cliff's δ", "0", "models"),
    "linear mixed model": Measure("difference", "0", "models"),
    "permutation of models": Measure("difference of medians", "0", "models"),
    "wasserstein distance": Measure("Wasserstein distance", "0", "heads"),
    "jensen_shannon distance": Measure("JSD in nats", "0", "heads"),
}

# Differences of these are of the logarithm of statistics that span decades.
_DIFFERENCES = (_SHIFT, "difference", "difference of medians")


def measure_of(method: str, statistic: str) -> Measure:
    """What a row of this method on this statistic measures; empty for a method not known here."""
    found = _MEASURES.get(method) or next(
        (measure for start, measure in _OF_MODELS.items() if method.startswith(start)),
        Measure("", "", ""),
    )
    if found.effect in _DIFFERENCES and statistic in LOG_STATISTICS:
        return replace(found, effect=f"{found.effect} of ln")
    return found
