"""What figures and the page call things, and the colours they give them."""

from __future__ import annotations

#: Colours of classes, in order: ten that are told apart in all kinds of sight. Petroff (2021),
#: "Accessible color sequences for data visualization".
CLASS_COLOURS = (
    *("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6"),
    *("#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"),
)

#: Colours of models and families, none of them a class's: Tol's "bright" scheme, with another in
#: seventh place, before its grey.
MODEL_COLOURS = (
    *("#4477aa", "#ee6677", "#228833", "#ccbb44"),
    *("#66ccee", "#aa3377", "#ee945e", "#bbbbbb"),
)

# What is called a statistic, and the unit of its values: λ is a squared singular value of a product
# of two matrices of weights.
_WEIGHTS = "weights⁴"
_STATISTICS = {
    "MIN": ("MIN: smallest λ", _WEIGHTS),
    "MAX": ("MAX: largest λ", _WEIGHTS),
    "MEAN": ("MEAN: mean λ", _WEIGHTS),
    "STD": ("STD: standard deviation of λ", _WEIGHTS),
    "SKEW": ("SKEW: skewness of λ", "pure number"),
    "KURTOSIS": ("KURTOSIS: excess kurtosis of λ", "pure number"),
    "stable_rank": ("stable rank of λ", "dimensions"),
    "effective_rank_sigma": ("effective rank of σ", "dimensions"),
    "effective_rank_lambda": ("effective rank of λ", "dimensions"),
    "participation_ratio": ("participation ratio of λ", "dimensions"),
    "r90": ("r90: number of λ for 90 % of Σλ", "dimensions"),
    "near_zero_ratio": ("share of λ below λ₁ / 1000", "of d_head"),
    "power_law_alpha": ("power-law exponent α of λ", "pure number"),
}


def statistic_label(name: str) -> str:
    """What a figure or a table calls a statistic of λ."""
    return _STATISTICS[name][0] if name in _STATISTICS else f"{name.replace('_', ' ')} of λ"


def statistic_axis(name: str) -> str:
    """What an axis of a statistic's values calls it, with their unit."""
    return f"{statistic_label(name)} ({_STATISTICS[name][1]})"
