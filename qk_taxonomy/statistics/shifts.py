"""Matched heads of two models of one shape: by how much did a statistic shift?

Heads are matched by place. Query heads that share a key-value head share half of their circuit, so
the key-value group is the unit: its heads' differences are averaged, and its sign is flipped as a
whole. Layers may depend on each other's training too; flipping whole layers allows for any
dependence within one, at the price of fewer units. All of it speaks of the two models at hand:
that another pair would show the same needs pairs as units.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qk_taxonomy.errors import ShapeError
from qk_taxonomy.statistics.findings import Finding, nan

Array = NDArray[np.float64]
Places = NDArray[np.int64]

#: Units below which no two-sided signed-rank test reaches p ≤ 0.05 (2 / 2⁵ = 0.0625).
FEWEST_UNITS = 6

_TAIL = 0.025

# Up to here the signed-rank sum's exact law is cheap; beyond, the normal one agrees to a rank.
_LARGEST_EXACT = 50

WILCOXON = "Wilcoxon signed-rank; Hodges–Lehmann shift"
FLIP_GROUPS = "sign flips of key-value groups, ranks within layers; rank-biserial correlation"
FLIP_LAYERS = "sign flips of whole layers, ranks within layers; rank-biserial correlation"


@dataclass(frozen=True)
class Shift:
    """A finding on one statistic (its ``column``), in one ``layer``, or over all where None."""

    column: int
    layer: int | None
    finding: Finding


def _signed_rank_count(n: int) -> int:
    """The largest k with P(W⁺ ≤ k) ≤ 0.025 for n untied differences; −1 where there is none."""
    if n > _LARGEST_EXACT:
        mean, std = n * (n + 1) / 4, np.sqrt(n * (n + 1) * (2 * n + 1) / 24)
        return int(np.floor(mean - 1.959964 * std))
    ways = np.ones(1)
    for rank in range(1, n + 1):
        longer = np.zeros(len(ways) + rank)
        longer[: len(ways)] += ways
        longer[rank:] += ways
        ways = longer
    return int((np.cumsum(ways) <= _TAIL * 2.0**n).sum()) - 1


def hodges_lehmann(differences: Array) -> tuple[float, float, float]:
    """Hodges–Lehmann shift of paired differences (n,), with its 95 % interval.

    The median of the Walsh averages (dᵢ + dⱼ) / 2, i ≤ j; the interval inverts the signed-rank test
    and is nan below six differences. Hollander & Wolfe (1999), section 3.2.
    """
    n = len(differences)
    if n == 0:
        return nan, nan, nan
    walsh = np.concatenate([(differences[i] + differences[i:]) / 2 for i in range(n)])
    walsh.sort()
    cut = _signed_rank_count(n) + 1
    if cut < 1:
        return float(np.median(walsh)), nan, nan
    return float(np.median(walsh)), float(walsh[cut - 1]), float(walsh[-cut])


def signed_rank(differences: Array) -> Finding:
    """Wilcoxon's signed-rank test of differences (n,) of independent units, zeros left out.

    The effect is :func:`hodges_lehmann`'s. Refused below six units that differ. Wilcoxon (1945).
    """
    from scipy.stats import wilcoxon

    n = len(differences)
    changed = differences[differences != 0]
    if n and not len(changed):
        return Finding(0.0, 0.0, 0.0, 1.0, n, WILCOXON, "no unit differs")
    shift, low, high = hodges_lehmann(differences)
    if len(changed) < FEWEST_UNITS:
        note = f"{len(changed)} units differ, fewer than the {FEWEST_UNITS} that a test needs"
        return Finding(shift, low, high, nan, n, WILCOXON, note)
    return Finding(shift, low, high, float(wilcoxon(changed).pvalue), n, WILCOXON)


def _rank_contributions(differences: Array) -> Array:
    """Signed ranks of |d| over their sum: what each unit adds to the rank-biserial correlation.

    differences: (units, statistics); nan and zero have no rank and add nothing.
    """
    from scipy.stats import rankdata

    size = np.where(np.nan_to_num(differences) == 0, np.nan, np.abs(differences))
    ranks = np.nan_to_num(rankdata(size, axis=0, nan_policy="omit"))
    total = ranks.sum(0)
    shares = np.divide(ranks, total, out=np.zeros_like(ranks), where=total > 0)
    return np.sign(np.nan_to_num(differences)) * shares


def _exceeding(observed: Array, permuted: Array) -> Array:
    """Two-sided permutation p-values; rounding must not make a permutation of ties less extreme."""
    extreme = (np.abs(permuted) >= np.abs(observed) - 1e-12).sum(0)
    return np.asarray((1.0 + extreme) / (1.0 + len(permuted)))


def _fisher_interval(biserial: float, n: int) -> tuple[float, float]:
    """95 % interval of a rank-biserial correlation of n units, by Fisher's z. Kerby (2014).

    Units that all agree are taken as if the smallest difference lay half the other way, so that
    the interval keeps a width.
    """
    if n < 2:
        return nan, nan
    furthest = 1 - 2 / (n * (n + 1))
    error = np.sqrt((2 * n**3 + 3 * n**2 + n) / 6) / ((n**2 + n) / 2)
    z = np.arctanh(np.clip(biserial, -furthest, furthest))
    low, high = np.tanh(z - 1.96 * error), np.tanh(z + 1.96 * error)
    return float(min(low, biserial)), float(max(high, biserial))


def _overall_interval(biserial: Array, n: int) -> tuple[float, float]:
    """95 % interval of the mean over layers: by Student's t with the layer as unit, or, where that
    is narrower (layers that agree by chance), by Fisher's z with the ``n`` groups as units.
    """
    from scipy.stats import t

    layers, mean = len(biserial), float(biserial.mean())
    low, high = _fisher_interval(mean, n)
    if layers < 3:
        return low, high
    half = float(t.ppf(1 - _TAIL, layers - 1) * biserial.std(ddof=1) / np.sqrt(layers))
    return max(-1.0, min(low, mean - half)), min(1.0, max(high, mean + half))


@dataclass(frozen=True, eq=False)
class _Units:
    """Mean differences of key-value groups: ``means`` (units, statistics), ``layers`` (units,)."""

    means: Array
    layers: Places

    def of_layer(self, layer: int) -> Array:
        return self.means[self.layers == layer]


def _units(differences: Array, layers: Places, groups: Places) -> _Units:
    places, unit = np.unique(np.stack([layers, groups]), axis=1, return_inverse=True)
    finite = np.isfinite(differences)
    sums = np.zeros((places.shape[1], differences.shape[1]))
    counts = np.zeros_like(sums)
    np.add.at(sums, unit.ravel(), np.where(finite, differences, 0.0))
    np.add.at(counts, unit.ravel(), finite)
    means = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
    return _Units(means, places[0])


def paired_shifts(
    differences: Array, layers: Places, groups: Places, *, permutations: int = 9999, seed: int = 0
) -> list[Shift]:
    """Tests of paired differences, over all layers and in each, for every statistic.

    differences: (heads, statistics), treatment less control, not finite where they do not exist;
    ``layers`` and ``groups`` (heads,): each head's layer and its key-value group within it. For
    each statistic three findings over all layers (:data:`WILCOXON`, :data:`FLIP_GROUPS`,
    :data:`FLIP_LAYERS`) and the first two in each layer; p-values are two-sided and not corrected,
    and nan below six units.
    Raises ShapeError.
    """
    if differences.ndim != 2 or not len(differences) == len(layers) == len(groups) > 0:
        raise ShapeError(
            f"Wanted differences (heads, statistics) with a layer and group a head, found "
            f"{differences.shape}, {layers.shape} and {groups.shape}."
        )
    units = _units(differences, layers, groups)
    return [*_wilcoxon_shifts(units), *_permutation_shifts(units, permutations, seed)]


def _wilcoxon_shifts(units: _Units) -> Iterator[Shift]:
    for layer in (None, *np.unique(units.layers).tolist()):
        means = units.means if layer is None else units.of_layer(layer)
        for column, values in enumerate(means.T):
            yield Shift(column, layer, signed_rank(values[np.isfinite(values)]))


def _permutation_shifts(units: _Units, permutations: int, seed: int) -> Iterator[Shift]:
    rng = np.random.default_rng(seed)
    names = np.unique(units.layers)
    biserial = np.zeros((len(names), units.means.shape[1]))
    by_groups = np.zeros((permutations, units.means.shape[1]))
    for row, layer in enumerate(names.tolist()):
        means = units.of_layer(layer)
        contributions = _rank_contributions(means)
        biserial[row] = contributions.sum(0)
        flips = rng.choice((-1.0, 1.0), (permutations, len(means)))
        permuted = flips @ contributions
        by_groups += permuted / len(names)
        p_values = _exceeding(biserial[row], permuted)
        counts = np.isfinite(means).sum(0)
        for column, effect in enumerate(biserial[row].tolist()):
            n = int(counts[column])
            low, high = _fisher_interval(effect, n)
            finding = _flip_finding(effect, low, high, p_values[column], n, FLIP_GROUPS)
            yield Shift(column, layer, finding)
    overall = biserial.mean(0)
    flips = rng.choice((-1.0, 1.0), (permutations, len(names)))
    exists = np.isfinite(units.means)
    units_of = exists.sum(0)
    layers_of = sum(exists[units.layers == layer].any(0).astype(int) for layer in names)
    ways = (
        (FLIP_GROUPS, by_groups, units_of),
        (FLIP_LAYERS, flips @ biserial / len(names), layers_of),
    )
    for method, permuted, counts in ways:
        p_values = _exceeding(overall, permuted)
        for column, effect in enumerate(overall.tolist()):
            n = int(counts[column])
            low, high = _overall_interval(biserial[:, column], int(units_of[column]))
            finding = _flip_finding(effect, low, high, p_values[column], n, method)
            yield Shift(column, None, finding)


def _flip_finding(
    effect: float, low: float, high: float, p_value: float, n: int, method: str
) -> Finding:
    """A sign-flip test; refused for so few units that it could not reject."""
    if n >= FEWEST_UNITS:
        return Finding(effect, low, high, float(p_value), n, method)
    note = f"{n} units cannot give p ≤ 0.05; needs {FEWEST_UNITS}"
    return Finding(effect, low, high, nan, n, method, note)
