"""What the numbers of a row of the table of tests are: its effect's measure, and what n counts."""

from __future__ import annotations

from dataclasses import dataclass, replace

from qk_taxonomy.hypotheses.contrast import DISTANCE_METHODS, ORIGINS
from qk_taxonomy.hypotheses.rank import AGAINST_UNTRAINED, BEYOND_EDGE, SHARE_OF_HEADS
from qk_taxonomy.hypotheses.trend import BDS, MANN_KENDALL, THEIL_SEN
from qk_taxonomy.statistics.groups import DUNN, KRUSKAL_WALLIS, PERMANOVA
from qk_taxonomy.statistics.moments import LOG_STATISTICS
from qk_taxonomy.statistics.profiles import CLIFFS_DELTA
from qk_taxonomy.statistics.shifts import FLIP_GROUPS, FLIP_LAYERS, WILCOXON
from qk_taxonomy.statistics.unmatched import MIXED_MODEL, MODEL_MEDIANS


@dataclass(frozen=True)
class Measure:
    """``effect``: what the effect of a row is; ``none``: its value where there is no effect, ""
    where the row is a count or the like that has no such value; ``n``: what n counts;
    ``in_units``: whether the effect is in the statistic's units, and of logarithms where these are
    the weights'.
    """

    effect: str
    none: str
    n: str
    in_units: bool = False

    def __str__(self) -> str:
        return f"{self.effect} (none: {self.none})" if self.none else self.effect


_DISTANCES = {
    "jensen_shannon": Measure("JSD in nats", "0", "heads"),
    "wasserstein": Measure("Wasserstein distance", "0", "heads"),
}

_MEASURES = {
    AGAINST_UNTRAINED: Measure("ratio to the untrained median", "1", "untrained heads drawn"),
    BEYOND_EDGE: Measure("count of λ", "", "λ of the head"),
    SHARE_OF_HEADS: Measure("share of heads", "0", "heads of the layer"),
    MANN_KENDALL: Measure("Kendall's τ", "0", "layers"),
    THEIL_SEN: Measure("slope per layer", "0", "layers"),
    BDS: Measure("BDS statistic", "0", "layers"),
    WILCOXON: Measure("Hodges–Lehmann shift", "0", "key-value groups", in_units=True),
    FLIP_GROUPS: Measure("rank-biserial r", "0", "key-value groups"),
    FLIP_LAYERS: Measure("rank-biserial r", "0", "layers"),
    ORIGINS: Measure("Hodges–Lehmann median of r", "0", "origins"),
    KRUSKAL_WALLIS: Measure("ε²", "0", "models"),
    PERMANOVA: Measure("R²", "0", "models"),
    DUNN: Measure("Cliff's δ", "0", "models"),
    CLIFFS_DELTA: Measure("Cliff's δ", "0", "models"),
    MIXED_MODEL: Measure("difference", "0", "models", in_units=True),
    MODEL_MEDIANS: Measure("difference of medians", "0", "models", in_units=True),
    **{method: _DISTANCES[distance] for (distance, _), method in DISTANCE_METHODS.items()},
}


def measure_of(method: str, statistic: str) -> Measure:
    """What a row of this method on this statistic measures; empty for a method not known here."""
    found = _MEASURES.get(method, Measure("", "", ""))
    if found.in_units and statistic in LOG_STATISTICS:
        return replace(found, effect=f"{found.effect} of ln")
    return found
