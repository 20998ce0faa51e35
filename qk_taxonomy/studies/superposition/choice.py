"""Targets that depend on what representations have become: in one tegum factor, or in two."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from qk_taxonomy.studies.superposition.config import Choice, Target
from qk_taxonomy.studies.superposition.measures import directions, tegum_factors

# Factors of fewer features are no polytopes that could be spanned or split: a feature on its own,
# or two antipodes, which share one dimension.
_FEWEST = 3

# Two features of one factor with a larger |cos| are all but one direction.
_ONE_DIRECTION = 0.9

#: What an instance must have for its targets to be chosen.
WANTED: Mapping[Choice, str] = {
    "apart": f"two tegum factors of {_FEWEST} features or more",
    "within": f"tegum factor of {_FEWEST} features or more, two of them no antipodes",
}


def choose_targets(
    w: NDArray[np.floating], where: Choice, weights: tuple[float, float]
) -> tuple[Target, ...]:
    """Two targets over two features of a trained W (m, n), in "apart" or "within" tegum factors.

    The features f and g are the first (most important) one of each of the two largest factors, or
    the first two of the largest that are no antipodes (|cos| below .9). Factors of fewer than three
    features do not count, so that both choices are of the same kinds of polytopes; of factors alike
    in size that of the most important feature comes first. Targets are (f, g) and (g, f) with one
    of ``weights`` each: both sides of Ω have to tell f from g, and whether f and g share a factor
    is all that differs between the two choices. None where there are no such two.
    """
    factors = tegum_factors(w)
    members = [np.flatnonzero(factors == factor) for factor in range(factors.max() + 1)]
    polytopes = sorted((one for one in members if len(one) >= _FEWEST), key=len, reverse=True)
    pairs: list[tuple[int, int]] = []
    if where == "apart":
        pairs += [(int(one[0]), int(other[0])) for one, other in combinations(polytopes[:2], 2)]
    elif polytopes:
        unit = directions(w)
        pairs += [
            (int(f), int(g))
            for f, g in combinations(polytopes[0], 2)
            if abs(unit[:, f] @ unit[:, g]) < _ONE_DIRECTION
        ]
    if not pairs:
        return ()
    f, g = pairs[0]
    return (Target(f, g, weights[0]), Target(g, f, weights[1]))
