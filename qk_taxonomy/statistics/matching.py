"""Do matched pairs score higher than the same sides matched anew?

n objects have a left side each and a right side each, and a square matrix holds the score of every
left side (row) with every right side (column); the matched ones are on the diagonal. Dealing the
right sides anew keeps both sides as they are, so that what a side scores with any other (how large
it is, how common) is in the null as well. Objects that are alike make the test cautious: their
sides match each other too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qk_taxonomy.errors import ShapeError

Array = NDArray[np.float64]
Shuffles = NDArray[np.int64]

#: Objects below which sides cannot be told from what they score with others.
FEWEST_OBJECTS = 3

#: Objects below which no two-sided p-value reaches 0.05 with certainty (4! = 24 matchings).
FEWEST_MATCHED = 5

_TAIL = 0.025

# Matrices whose shuffles are held at once: some 20 MB for 10,000 of them.
_BLOCK = 256


@dataclass(frozen=True, eq=False)
class MatchedEffects:
    """Effects of m matrices (m,), their 95 % intervals and two-sided p-values, not corrected.

    ``effect``: mean of the matched scores less the mean of all others, in the scores' unit.
    ``low``, ``high``: Student's t over the objects, for others like them. ``p_values``: nan below
    five objects. ``by_object`` (m, n): what each object says of the effect, which is their mean:
    its matched score less what its sides would score if rows and columns only added up, by least
    squares over the scores of sides that do not match. All nan for a matrix that is not finite.
    """

    effect: Array
    low: Array
    high: Array
    p_values: Array
    by_object: Array


def shuffles(n: int, n_shuffles: int, seed: int = 0) -> Shuffles:
    """Random matchings (n_shuffles, n): the right side that each left side is dealt."""
    rng = np.random.default_rng([seed, n])
    return rng.permuted(np.tile(np.arange(n), (n_shuffles, 1)), axis=1)


def _check(matrices: Array) -> int:
    n = matrices.shape[-1]
    if matrices.ndim != 3 or matrices.shape[1] != n or n < FEWEST_OBJECTS:
        raise ShapeError(
            f"Wanted square matrices (matrices, n, n) of {FEWEST_OBJECTS} objects or more, found "
            f"{matrices.shape}."
        )
    return n


def shuffled_effects(matrices: Array, dealt: Shuffles) -> Iterator[tuple[slice, Array]]:
    """The effect after each shuffle, block by block of matrices: (which ones, (m, shuffles)).

    matrices: (m, n, n); ``dealt``: of :func:`shuffles`, (shuffles, n). Raises ShapeError.
    """
    n = _check(matrices)
    if dealt.shape[1] != n:
        raise ShapeError(f"Wanted shuffles of {n}, found {dealt.shape}.")
    # Mean of n matched cells less that of the n(n − 1) others, as weights of all n² cells.
    weights = np.full((len(dealt), n * n), -1.0 / (n * (n - 1)))
    np.put_along_axis(weights, n * np.arange(n) + dealt, 1.0 / n, axis=1)
    cells = matrices.reshape(len(matrices), n * n)
    for start in range(0, len(matrices), _BLOCK):
        block = slice(start, start + _BLOCK)
        yield block, cells[block] @ weights.T


def matched_effects(matrices: Array, dealt: Shuffles) -> MatchedEffects:
    """The effect of matching in each of ``matrices`` (m, n, n), against the same shuffles.

    p = (1 + #{shuffles with an effect as far from 0}) / (1 + #shuffles). Raises ShapeError.
    """
    from scipy.stats import t

    n = _check(matrices)
    finite = np.asarray(np.isfinite(matrices).all((1, 2)))
    scores = np.where(finite[:, None, None], matrices, np.nan)
    diagonal = np.diagonal(scores, axis1=1, axis2=2)
    sides = scores.sum(1) + scores.sum(2) - 2 * diagonal
    unmatched = sides.sum(-1, keepdims=True) / (2 * n * (n - 1))
    by_object = diagonal - unmatched - (sides - 2 * (n - 1) * unmatched) / (n - 2)
    effect = by_object.mean(-1)
    half = t.ppf(1 - _TAIL, n - 1) * by_object.std(-1, ddof=1) / np.sqrt(n)
    p_values = np.full(len(scores), np.nan)
    if n >= FEWEST_MATCHED:
        # Sums in another order must not make an equal shuffle less extreme.
        slack = 1e-9 * np.abs(scores).max((1, 2))
        for block, null in shuffled_effects(scores, dealt):
            least = (np.abs(effect) - slack)[block]
            extreme = (np.abs(null) >= least[:, None]).sum(1)
            p_values[block] = (1.0 + extreme) / (1.0 + len(dealt))
        p_values[~finite] = np.nan
    return MatchedEffects(effect, effect - half, effect + half, p_values, by_object)
