"""How matched heads of two models moved: in the shape, the scale and the rank of their spectra.

The three have no unit in common, so each is told in one that the first model sets: how far two of
its own heads, of different layers, are apart. A move of 1 is as far as one such pair in twenty is.
That is a size and no test of whether anything moved: a model trained further stays far nearer to
itself than its heads are to one another. Of models that are drawn apart, about one head in twenty
exceeds 1 where all heads are of one law (6 %); where layers differ, fewer do, since heads in one
place are then more alike than heads of different layers: 1 to 2 % where scale and decay vary as
much between layers as within them, below 1 % where twice as much.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qk_taxonomy.statistics.changes import SPECTRAL_DISTANCES, spectral_changes
from qk_taxonomy.statistics.moments import effective_rank_lambda

Array = NDArray[np.float64]
Places = NDArray[np.int64]

#: What can move, in the order of the columns of :class:`HeadMoves`.
MOVES = ("shape", "scale", "rank")

_DIVERGENCE, _SHAPE = map(SPECTRAL_DISTANCES.index, ("jensen_shannon", "wasserstein"))


@dataclass(frozen=True, eq=False)
class HeadMoves:
    """Moves of matched heads, columns as in :data:`MOVES`.

    ``moves`` (heads, 3): Wasserstein-1 distance of λ over its mean, which unlike a divergence of
    histograms does not depend on where bins end, and counts the λ beyond the last; log of Σλ after
    over Σλ before; effective rank of λ after, less before. ``usual`` (3,): sizes that one pair in
    twenty of different heads of the first model exceeds, nan where there are none.
    ``divergences`` (heads,): Jensen–Shannon, of the histograms, in nats. ``p_untrained`` (heads,):
    is a head's shape farther from what it was than two untrained heads are from each other? Of the
    Wasserstein distance, one-sided; nan without untrained heads.
    """

    moves: Array
    usual: Array
    divergences: Array
    p_untrained: Array

    @property
    def in_units(self) -> Array:
        """Sizes of the moves over the usual ones, (heads, 3); nan where there are none."""
        sizes = np.abs(self.moves)
        known = np.broadcast_to(self.usual > 0, sizes.shape)
        return np.divide(sizes, self.usual, out=np.full_like(sizes, np.nan), where=known)


def head_moves(
    before: Array,
    after: Array,
    layers: Places,
    groups: Places,
    untrained: Array | None,
    *,
    seed: int = 0,
) -> HeadMoves:
    """How far every head moved from one model to another.

    before, after: λ (heads, d_head) of matched heads; ``layers``, ``groups`` (heads,): layer and
    key-value group in the first model; untrained: λ (N, d_head) of untrained heads, or None. Raises
    ShapeError.
    """
    changes = spectral_changes(after, before, layers, groups, untrained, seed=seed)
    first, second = changes.pairs_within
    moves, usual = [changes.distances[:, _SHAPE]], [changes.usual_within[_SHAPE]]
    old, new = (np.stack([_log_sum(x), effective_rank_lambda(x)]) for x in (before, after))
    for one, other in zip(old, new, strict=True):
        moves.append(_less(other, one))
        apart = np.abs(_less(one[first], one[second]))
        # No head is usually dead: what it differs in scale from others has no size.
        apart = apart[np.isfinite(apart)]
        usual.append(np.quantile(apart, 0.95) if len(apart) else np.nan)
    return HeadMoves(
        moves=np.stack(moves, axis=-1),
        usual=np.array(usual),
        divergences=changes.distances[:, _DIVERGENCE],
        p_untrained=changes.p_untrained[:, _SHAPE],
    )


def _log_sum(lam: Array) -> Array:
    """log Σλ, −inf of a dead head."""
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(lam.sum(-1)))


def _less(x: Array, y: Array) -> Array:
    """x − y; 0 between two dead heads, whose logarithms are infinite."""
    return np.subtract(x, y, out=np.zeros_like(x), where=x != y)
