"""A family over its sizes: statistics against depth and against parameters; the model is the unit.

One value a layer, the median over its heads, and one a model, the median over its layers. Those in
the units of the weights are natural logarithms. d_model and d_head alone move the spectra of
untrained heads, so that slopes with parameters are set beside those of the same models at their
first step, where these are surveyed.
"""

from qk_taxonomy.studies.sizes.densities import ModelDensities, densities_of
from qk_taxonomy.studies.sizes.family import FamilySizes, family_sizes
from qk_taxonomy.studies.sizes.summary import slope_axis, slope_label, summary, told_slope
from qk_taxonomy.studies.sizes.trends import (
    ALSO_UNTRAINED,
    BY_DEPTH,
    BY_SIZE,
    UNTRAINED_BY_SIZE,
    SizeTrends,
    size_trends,
)

__all__ = [
    "ALSO_UNTRAINED",
    "BY_DEPTH",
    "BY_SIZE",
    "UNTRAINED_BY_SIZE",
    "FamilySizes",
    "ModelDensities",
    "SizeTrends",
    "densities_of",
    "family_sizes",
    "size_trends",
    "slope_axis",
    "slope_label",
    "summary",
    "told_slope",
]
