"""Matched heads of two models of one shape: which spectra changed more than spectra just differ?

Two distances of each head's density of λ over its mean, each against two nulls. How far two
untrained heads of that shape are apart tells a change from none for untrained models alone: spectra
of trained heads vary more. How far different heads of the control are apart is the stricter for
them; it takes the control's heads as exchangeable, and is too small (by half or so) where layers
differ much from each other. It is taken from the control alone: what training made unusual must not
count as usual. Its pairs are not independent, so that after correction some head is found in up to
one pair of unchanged models in ten, rather than in twenty.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qk_taxonomy.errors import ShapeError
from qk_taxonomy.records import N_BINS
from qk_taxonomy.statistics.densities import (
    histogram_densities,
    jensen_shannon_divergence,
    mean_normalised,
    pool_edges,
    wasserstein_distance,
)
from qk_taxonomy.statistics.ranks import monte_carlo_p_values

Array = NDArray[np.float64]
Places = NDArray[np.int64]

#: Names of the distances, in the order of the columns of :class:`SpectralChanges`.
SPECTRAL_DISTANCES = ("jensen_shannon", "wasserstein")

# With more pairs of heads of the control the null's quantiles no longer move.
_MOST_PAIRS = 10_000


@dataclass(frozen=True, eq=False)
class SpectralChanges:
    """Distances of matched heads, columns as in :data:`SPECTRAL_DISTANCES`, and their p-values.

    ``distances`` (heads, 2): Jensen–Shannon divergence of the histograms in nats, and Wasserstein-1
    distance of the spectra in units of the mean λ. ``p_untrained``, ``p_within`` (heads, 2):
    against pairs of untrained heads, and against pairs of heads within the control, one-sided; nan
    where there are no such pairs. ``usual_untrained``, ``usual_within`` (2,): distances that one
    pair in twenty of either null exceeds. ``pairs_within`` (2, pairs): the control's heads of the
    latter's pairs.
    """

    distances: Array
    p_untrained: Array
    p_within: Array
    usual_untrained: Array
    usual_within: Array
    pairs_within: Places


def _distances(x: Array, y: Array, edges: Array) -> Array:
    """Both distances (pairs, 2) between normalised spectra (pairs, d_head)."""
    histograms = histogram_densities(x, edges), histogram_densities(y, edges)
    return np.stack([jensen_shannon_divergence(*histograms), wasserstein_distance(x, y)], axis=-1)


def pairs_within(layers: Places, groups: Places, *, seed: int = 0) -> Places:
    """Indices of pairs of heads of one model, of different layers: (2, pairs).

    All of them, or 10,000 at random; of one layer, those that share no key-value head. Heads of a
    layer, and of a shared key, can be more alike than others, and not what matched heads of two
    models are to be compared with.
    """
    n = len(layers)
    if n * (n - 1) // 2 <= _MOST_PAIRS:
        first, second = np.triu_indices(n, 1)
    else:
        rng = np.random.default_rng(seed)
        first, second = rng.integers(n, size=_MOST_PAIRS), rng.integers(n - 1, size=_MOST_PAIRS)
        second = second + (second >= first)
    apart = layers[first] != layers[second]
    if not apart.any():
        apart = groups[first] != groups[second]
    return np.stack([first[apart], second[apart]])


def spectral_changes(
    treatment: Array,
    control: Array,
    layers: Places,
    groups: Places,
    untrained: Array | None,
    *,
    n_bins: int = N_BINS,
    seed: int = 0,
) -> SpectralChanges:
    """Distance of every head's spectrum between two models, tested against both nulls.

    treatment, control: λ (heads, d_head) of matched heads; ``layers``, ``groups`` (heads,): their
    layer and key-value group; untrained: λ (N, d_head) of untrained heads, which make N pairs, or
    None. Histograms have ``n_bins`` on [0, q], q the 0.96 quantile of both models' λ over
    their head's mean. Raises ShapeError.
    """
    if treatment.shape != control.shape or treatment.ndim != 2 or len(layers) != len(treatment):
        raise ShapeError(
            f"Wanted λ (heads, d_head) of two models of one shape, found {treatment.shape} and "
            f"{control.shape}."
        )
    x, y = mean_normalised(treatment), mean_normalised(control)
    edges = pool_edges(np.concatenate([x, y]), n_bins)
    if edges[-1] == 0:
        raise ShapeError("Nearly all λ of both models are zero: there are no densities to compare.")
    distances = _distances(x, y, edges)
    pairs = pairs_within(layers, groups, seed=seed)
    within = _distances(y[pairs[0]], y[pairs[1]], edges) if pairs.size else None
    apart = None
    if untrained is not None:
        free = mean_normalised(untrained)
        apart = _distances(free, far_heads(free), edges)
    p_untrained, usual_untrained = _against(distances, apart)
    p_within, usual_within = _against(distances, within)
    return SpectralChanges(distances, p_untrained, p_within, usual_untrained, usual_within, pairs)


def far_heads(of_heads: Array) -> Array:
    """Of untrained heads (n, ...), another one for each, every head once.

    One that is far from it in their order: in a twin's, neighbours share a key.
    """
    return np.roll(of_heads, len(of_heads) // 3 or 1, axis=0)


def _against(observed: Array, null: Array | None) -> tuple[Array, Array]:
    """p-values (heads, 2) of distances against a null (pairs, 2), and its 0.95 quantiles (2,)."""
    if null is None:
        return np.full_like(observed, np.nan), np.full(observed.shape[1], np.nan)
    columns = zip(observed.T, null.T, strict=True)
    p_values = [monte_carlo_p_values(o, n, "greater") for o, n in columns]
    return np.stack(p_values, axis=-1), np.quantile(null, 0.95, axis=0)
