"""Which head of one model is compared with which of another: by place, or by their spectra."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from qk_taxonomy.hypotheses.heads import HeadSet
from qk_taxonomy.records import N_BINS
from qk_taxonomy.statistics.densities import (
    histogram_densities,
    jensen_shannon_divergence,
    mean_normalised,
    pool_edges,
)
from qk_taxonomy.statistics.findings import Finding

Array = NDArray[np.float64]
Places = NDArray[np.int64]
Matching = Literal["place", "spectra"]

# Nats for the whole depth of a model: a thousandth of a thousandth of what one λ in another bin
# makes, so that depth decides between heads of equal spectra and never against a spectrum.
_DEPTH_WEIGHT = 1e-9

# Below it no order of layers has a two-sided p-value under 0.05 (3! = 6).
_FEWEST_LAYERS = 4
_PERMUTATIONS = 9999


@dataclass(frozen=True, eq=False)
class Matched:
    """Positions of matched heads in either model's order, (n,) each, and how they were found."""

    how: Matching
    first: Places
    second: Places


def matched_by_place(n_heads: int) -> Matched:
    """Every head with the one in its place, of two models of one shape."""
    places = np.arange(n_heads)
    return Matched("place", places, places)


def matched_by_spectra(first: HeadSet, second: HeadSet) -> Matched:
    """The matching of least total Jensen–Shannon divergence; of the larger model some stay alone.

    Between histograms of λ over its mean, on the bins of both models' heads together. Between equal
    spectra the nearer depth decides. In order of the first model's heads. Kuhn (1955).
    """
    from scipy.optimize import linear_sum_assignment

    x, y = mean_normalised(first.lam), mean_normalised(second.lam)
    edges = pool_edges(np.concatenate([x, y]), N_BINS)
    ours, theirs = histogram_densities(x, edges), histogram_densities(y, edges)
    # Row by row: all pairs of large models at once would take gigabytes.
    rows = [jensen_shannon_divergence(np.broadcast_to(h, theirs.shape), theirs) for h in ours]
    # A head without a λ on the bins is as far from others as can be.
    costs = np.nan_to_num(np.stack(rows), nan=np.log(2))
    costs += _DEPTH_WEIGHT * np.abs(first.depth[:, None] - second.depth)
    one, other = linear_sum_assignment(costs)
    return Matched("spectra", one.astype(np.int64), other.astype(np.int64))


def depth_agreement(
    depths: Array, layers: Places, other_depths: Array, *, seed: int = 0
) -> Finding:
    """Do heads that were matched by their spectra sit at like depths?

    Correlation of matched heads' depths, ``depths`` and ``other_depths`` (n,), tested by putting
    the second model's ``layers`` (n,) in random order: layers, not heads, are exchanged.
    """
    numbers, layer = np.unique(layers, return_inverse=True)
    n = len(numbers)
    method = "correlation of matched heads' depths; layers of the second model in random order"
    if min(np.ptp(depths), np.ptp(other_depths)) == 0:
        return Finding(n=n, method=method, note="the heads of a model are of one layer")
    own = np.array([other_depths[layer == i][0] for i in range(n)])
    rng = np.random.default_rng(seed)
    orders = np.vstack([own, rng.permuted(np.tile(own, (_PERMUTATIONS, 1)), axis=1)])
    found = _correlations(depths, orders[:, layer])
    if n < _FEWEST_LAYERS:
        note = f"{n} layers are too few (wanted {_FEWEST_LAYERS})"
        return Finding(effect=float(found[0]), n=n, method=method, note=note)
    # Sums in another order must not make an equal order less extreme.
    p_value = float((np.abs(found) >= abs(found[0]) - 1e-9).mean())
    return Finding(effect=float(found[0]), p_value=p_value, n=n, method=method)


def _correlations(x: Array, rows: Array) -> Array:
    """Pearson's r of (n,) with each of (m, n); 0 where a row does not vary."""
    a, b = x - x.mean(), rows - rows.mean(-1, keepdims=True)
    norms = np.sqrt((a @ a) * np.square(b).sum(-1))
    return np.divide(b @ a, norms, out=np.zeros_like(norms), where=norms > 0)
