"""Matched heads of two models of one shape: by how much did a statistic shift?

Heads are matched by place. Query heads that share a key-value head share half of their circuit, so
the key-value group is the unit: its heads' differences are averaged, and its sign is flipped as a
whole. Wilcoxon's test, its shift's interval, and flips of groups take the groups of a layer as
independent; in trained models they often are not (their differences correlate by 0.3 and more), and
p-values are then too small. Flipping whole layers allows for any dependence within a layer and
takes layers as independent; it is the one to read where there are six layers or more. The null
hypothesis of all three is that differences are symmetric about zero. All of it speaks of the two
models at hand: that another pair would show the same needs pairs as units.
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

WILCOXON = "Wilcoxon signed-rank of key-value groups; Hodges–Lehmann shift"
FLIP_GROUPS = "sign flips of key-value groups, ranks within layers; rank-biserial correlation"
FLIP_LAYERS = "sign flips of whole layers, ranks within layers; rank-biserial correlation"


@dataclass(frozen=True)
class Shift:
    """A finding on one statistic (its ``column``), in one ``layer``, or over all where None."""

    column: int
    layer: int | None
    finding: Finding


def _signed_rank_law(doubled_ranks: NDArray[np.int64]) -> Array:
    """Probability of each value of twice the sum of positive ranks: each sign is a fair coin."""
    law = np.ones(1)
    for rank in doubled_ranks:
        longer = np.zeros(len(law) + rank)
        longer[: len(law)] += law / 2
        longer[rank:] += law / 2
        law = longer
    return law


def _signed_rank_count(n: int) -> int:
    """The largest k with P(W⁺ ≤ k) ≤ 0.025 for n untied differences; −1 where there is none."""
    if n > _LARGEST_EXACT:
        mean, std = n * (n + 1) / 4, np.sqrt(n * (n + 1) * (2 * n + 1) / 24)
        return int(np.floor(mean - 1.959964 * std))
    law = _signed_rank_law(2 * np.arange(1, n + 1))[::2]
    return int((np.cumsum(law) <= _TAIL * (1 + 1e-9)).sum()) - 1


def _signed_rank_p_value(differences: Array) -> float:
    """Two-sided p-value of differences that are not zero; exact, with ties, for up to 50."""
    from scipy.stats import rankdata, wilcoxon

    if len(differences) > _LARGEST_EXACT:
        return float(wilcoxon(differences).pvalue)
    doubled = np.rint(2 * rankdata(np.abs(differences))).astype(np.int64)
    law, observed = _signed_rank_law(doubled), int(doubled[differences > 0].sum())
    tails = law[: observed + 1].sum(), law[observed:].sum()
    return float(min(1.0, 2 * min(tails)))


def hodges_lehmann(differences: Array) -> tuple[float, float, float]:
    """Hodges–Lehmann shift of paired differences (n,), with its 95 % interval.

    The median of the Walsh averages (dᵢ + dⱼ) / 2, i ≤ j; the interval inverts the signed-rank test
    of differences without zeros or ties, and is nan below six. Hollander & Wolfe (1999), 3.2.
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
    """Wilcoxon's signed-rank test of differences (n,) of independent units.

    The test leaves zeros out, and is refused below six units that differ; the effect is
    :func:`hodges_lehmann`'s, which keeps them. Wilcoxon (1945).
    """
    n = len(differences)
    changed = differences[differences != 0]
    shift, low, high = hodges_lehmann(differences)
    p = _signed_rank_p_value(changed) if len(changed) >= FEWEST_UNITS else nan
    return Finding(shift, low, high, p, n, WILCOXON, _note(len(changed), n))


def _note(changed: int, n: int) -> str:
    """What limits a test of signs: too few units that differ, or that only some do."""
    if changed < FEWEST_UNITS:
        return f"{changed} of {n} units differ, which cannot give p ≤ 0.05; needs {FEWEST_UNITS}"
    return f"{changed} of {n} units differ" if changed < n else ""


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


def _biserial_interval(biserial: float, n: int) -> tuple[float, float]:
    """95 % interval of a rank-biserial correlation of n independent units.

    (1 + r) / 2 is the share of pairs of units with a positive mean, a U-statistic of degree two,
    whose variance is at most that of a share of n / 2 trials (Hoeffding 1948): hence the score
    interval for so many trials, which covers at large effects too. Wilson (1927).
    """
    if n < 2:
        return nan, nan
    z, trials, share = 1.959964, n / 2, (1 + biserial) / 2
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = share * (1 - share) / trials + z * z / (4 * trials * trials)
    half = z / (1 + z * z / trials) * np.sqrt(half)
    low, high = 2 * (centre - half) - 1, 2 * (centre + half) - 1
    # At the ends of the range the interval ends there too, whatever rounding makes of it.
    return float(min(low, biserial)), float(max(high, biserial))


def _overall_interval(biserial: Array, n: int) -> tuple[float, float]:
    """95 % interval of the mean over layers: by Student's t with the layer as unit, or, where that
    is narrower (layers that agree by chance), that of ``n`` independent groups.
    """
    from scipy.stats import t

    layers, mean = len(biserial), float(biserial.mean())
    low, high = _biserial_interval(mean, n)
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
    shape = (len(names), units.means.shape[1])
    biserial, counts, changed = np.full(shape, nan), np.zeros(shape, int), np.zeros(shape, int)
    by_groups = np.zeros((permutations, shape[1]))
    for row, layer in enumerate(names.tolist()):
        means = units.of_layer(layer)
        counts[row] = np.isfinite(means).sum(0)
        changed[row] = (np.nan_to_num(means) != 0).sum(0)
        contributions = _rank_contributions(means)
        # A layer without a finite value has no correlation, and is not part of the mean.
        biserial[row] = np.where(counts[row] > 0, contributions.sum(0), nan)
        permuted = rng.choice((-1.0, 1.0), (permutations, len(means))) @ contributions
        by_groups += permuted
        p_values = _exceeding(np.nan_to_num(biserial[row]), permuted)
        for column in range(shape[1]):
            n = int(counts[row, column])
            interval = _biserial_interval(float(biserial[row, column]), n)
            yield Shift(
                column,
                layer,
                _flip_finding(
                    biserial[row, column], interval, p_values[column],
                    n, int(changed[row, column]), FLIP_GROUPS,
                ),
            )  # fmt: skip
    flips = rng.choice((-1.0, 1.0), (permutations, len(names)))
    ways = (
        (FLIP_GROUPS, by_groups, counts.sum(0), changed.sum(0)),
        (FLIP_LAYERS, flips @ np.nan_to_num(biserial), (counts > 0).sum(0), (changed > 0).sum(0)),
    )
    for method, permuted, n_units, n_changed in ways:
        p_values = _exceeding(np.nansum(biserial, axis=0), permuted)
        for column in range(shape[1]):
            found = biserial[np.isfinite(biserial[:, column]), column]
            interval = (nan, nan)
            if len(found):
                interval = _overall_interval(found, int(counts[:, column].sum()))
            effect = found.mean() if len(found) else nan
            n, differ = int(n_units[column]), int(n_changed[column])
            finding = _flip_finding(effect, interval, p_values[column], n, differ, method)
            yield Shift(column, None, finding)


def _flip_finding(
    effect: float, interval: tuple[float, float], p_value: float, n: int, changed: int, method: str
) -> Finding:
    """A sign-flip test; refused for so few units that differ that it could not reject."""
    p = float(p_value) if changed >= FEWEST_UNITS else nan
    return Finding(float(effect), *interval, p, n, method, _note(changed, n))
