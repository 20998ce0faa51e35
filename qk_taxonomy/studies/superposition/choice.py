"""Targets that depend on what representations have become: in one tegum factor, or in two."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qk_taxonomy.studies.superposition.config import Choice, Target
from qk_taxonomy.studies.superposition.measures import tegum_factors


def choose_targets(w: NDArray[np.floating], where: Choice) -> tuple[Target, ...]:
    """Two targets over two features of a trained W (m, n), in "apart" or "within" tegum factors.

    The features f and g are the first (most important) two of the largest factor, or those that
    come first in the two factors that hold the most important features. Targets are (f, g) with
    weight 2 and (g, f) with weight 1: both sides of Ω have to tell f from g, and whether f and g
    share a factor is all that differs between the two choices. None where there are no such two.
    """
    factors = tegum_factors(w)
    members = [np.flatnonzero(factors == factor) for factor in range(factors.max() + 1)]
    if where == "within":
        largest = max(members, key=len, default=np.array([], dtype=int))
        features = largest[:2]
    else:
        features = np.array([factor[0] for factor in members[:2]], dtype=int)
    if len(features) < 2:
        return ()
    f, g = (int(feature) for feature in features)
    return (Target(f, g, 2.0), Target(g, f, 1.0))
