"""How matched heads of two models moved: in the shape, the scale and the rank of their spectra.

The three have no unit in common, so each is told in one that the first model sets: how far two of
its own heads, of different layers, are apart. A move of 1 is as far as one such pair in twenty is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qk_taxonomy.statistics.changes import (
    SPECTRAL_DISTANCES,
    SpectralChanges,
    pairs_within,
    spectral_changes,
)
from qk_taxonomy.statistics.moments import effective_rank_lambda
from qk_taxonomy.statistics.ranks import monte_carlo_p_values

Array = NDArray[np.float64]
Places = NDArray[np.int64]

#: What can move, in the order of the columns of :class:`HeadMoves`.
MOVES = ("shape", "scale", "rank")

_SHAPE = SPECTRAL_DISTANCES.index("wasserstein")


@dataclass(frozen=True, eq=False)
class HeadMoves:
    """Moves of matched heads, columns as in :data:`MOVES`.

    ``moves`` (heads, 3): Wasserstein-1 distance of λ over its mean, which unlike a divergence of
    histograms does not depend on where bins end; log of Σλ after over Σλ before; effective rank of
    λ after, less before. ``usual`` (3,): sizes that one pair in twenty of different heads of the
    first model exceeds. ``p_values`` (heads, 3): one-sided, against these pairs. nan where there
    are none. ``changes``: the distances of the shapes and their tests.
    """

    moves: Array
    usual: Array
    p_values: Array
    changes: SpectralChanges

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
    """How every head moved from one model to another, and whether farther than heads differ.

    before, after: λ (heads, d_head) of matched heads; ``layers``, ``groups`` (heads,): layer and
    key-value group in the first model; untrained: λ (N, d_head) of untrained heads, or None. The
    tests are those of :func:`~qk_taxonomy.statistics.changes.spectral_changes`, with its limits.
    Raises ShapeError.
    """
    changes = spectral_changes(after, before, layers, groups, untrained, seed=seed)
    first, second = pairs_within(layers, groups, seed=seed)
    moves, p_values = [changes.distances[:, _SHAPE]], [changes.p_within[:, _SHAPE]]
    usual = [changes.usual_within[_SHAPE]]
    old, new = (np.stack([_log_sum(x), effective_rank_lambda(x)]) for x in (before, after))
    for one, other in zip(old, new, strict=True):
        moves.append(_less(other, one))
        null = np.abs(_less(one[first], one[second]))
        # No head is usually dead: what it differs in scale from others has no size.
        null = null[np.isfinite(null)]
        p_values.append(
            monte_carlo_p_values(np.abs(moves[-1]), null, "greater")
            if len(null)
            else np.full(len(one), np.nan)
        )
        usual.append(np.quantile(null, 0.95) if len(null) else np.nan)
    return HeadMoves(
        moves=np.stack(moves, axis=-1),
        usual=np.array(usual),
        p_values=np.stack(p_values, axis=-1),
        changes=changes,
    )


def _log_sum(lam: Array) -> Array:
    """log Σλ, −inf of a dead head."""
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(lam.sum(-1)))


def _less(x: Array, y: Array) -> Array:
    """x − y; 0 between two dead heads, whose logarithms are infinite."""
    return np.subtract(x, y, out=np.zeros_like(x), where=x != y)
