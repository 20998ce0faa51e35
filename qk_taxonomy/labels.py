"""What figures and the page call things, and the colours they give them."""

from __future__ import annotations

#: Colours of classes, in order: Okabe and Ito's colour-blind-safe ones, as seaborn has them. Those
#: that are easily told apart come first; pale ones, hard to see on white, last.
CLASS_COLOURS = (
    *("#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc"),
    *("#56b4e9", "#949494", "#ca9161", "#ece133", "#fbafe4"),
)

#: Colours of models and families, none of them a class's: ColorBrewer's Dark2.
MODEL_COLOURS = (
    *("#1b9e77", "#d95f02", "#7570b3", "#e7298a"),
    *("#66a61e", "#e6ab02", "#a6761d", "#666666"),
)

_STATISTICS = {
    "MIN": "MIN: smallest λ",
    "MAX": "MAX: largest λ",
    "MEAN": "MEAN: mean λ",
    "STD": "STD: standard deviation of λ",
    "SKEW": "SKEW: skewness of λ",
    "KURTOSIS": "KURTOSIS: excess kurtosis of λ",
    "effective_rank_sigma": "effective rank of σ",
    "effective_rank_lambda": "effective rank of λ",
    "r90": "r90: number of λ for 90 % of Σλ",
    "near_zero_ratio": "share of λ below λ₁ / 1000",
    "power_law_alpha": "power-law exponent α of λ",
}


def statistic_label(name: str) -> str:
    """What an axis or a table calls a statistic of λ."""
    return _STATISTICS.get(name, name.replace("_", " ") + " of λ")
