"""Prediction of values of heads in layers that were held out, and what permuted heads would give.

Heads of one layer are alike, and so are heads that share a key-value head: groups (layers) are held
out whole, and permutations move values within a group only, and blocks (key-value heads) whole. So
neither depth nor grouping alone can make a prediction better than its null.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from qk_taxonomy.errors import ShapeError
from qk_taxonomy.statistics.correlations import pearson

Array = NDArray[np.float64]
Places = NDArray[np.int64]

# Penalties in units of a standardised feature's sum of squares over 100 to 1,000 heads: from none
# to all but a constant.
_PENALTIES = np.logspace(-2, 5, 15)

# Layers are held out in at most so many parts: more cost time, and hardly change the training set.
_MOST_PARTS = 10

# Sums of squares within groups, relative to those of the values, that are but rounding.
_ROUNDING = 1e-24

# Values fitted together, some 32 MiB.
_AT_ONCE = 1 << 22


@dataclass(frozen=True, eq=False)
class Prediction:
    """How well features predict each of t targets in groups that were held out, (t,) each.

    ``r2``: predictive R², 1 − Σ(y − ŷ)² / Σ(y − ȳ)² with ȳ the mean of the training groups, at most
    1, negative where predictions are worse than that mean. ``spearman``: of y and ŷ over all rows.
    ``null`` (n_permutations, t): R² of values permuted within groups; ``p_values``: (1 + #{null ≥
    R²}) / (1 + n_permutations); nan without permutations. All nan for a target that is constant.
    """

    r2: Array
    spearman: Array
    null: Array
    p_values: Array


def predict(
    x: Array,
    y: Array,
    groups: Places,
    blocks: Places | None = None,
    *,
    n_permutations: int = 0,
    seed: int = 0,
) -> Prediction:
    """Ridge regression of y (n, t) on x (n, features), cross-validated by group.

    groups: (n,), held out one by one, or in 10 parts where they are more; blocks: (n,), rows of a
    group that permutations keep together (:func:`permutations_within`). Features are standardised,
    and penalties chosen for each target by leave-one-out, in the training groups alone. Values are
    finite. Raises ShapeError, also for fewer than two groups.
    """
    from scipy.stats import rankdata

    if x.ndim != 2 or y.ndim != 2 or not len(x) == len(y) == len(groups):
        raise ShapeError(
            "Wanted features (n, p), targets (n, t) and n groups, found "
            f"{x.shape}, {y.shape} and {len(groups)}."
        )
    if len(np.unique(groups)) < 2:
        raise ShapeError("Wanted two groups or more, since one is to be held out, found one.")
    n, t = y.shape
    predicted, baseline = _held_out(x, y, groups)
    r2 = _predictive_r2(y, predicted, baseline)
    ranks = [rankdata(side, axis=0).T for side in (y, predicted)]
    null = np.empty((n_permutations, t))
    step = max(1, _AT_ONCE // (n * t))
    shuffled = permutations_within(groups, blocks, n_permutations, seed)
    for start in range(0, n_permutations, step):
        count = min(step, n_permutations - start)
        permuted = np.concatenate([y[rows] for rows in islice(shuffled, count)], axis=1)
        found = _predictive_r2(permuted, *_held_out(x, permuted, groups))
        null[start : start + count] = found.reshape(count, t)
    p_values = np.full(t, np.nan)
    if n_permutations:
        # Other rounding must not make an equal prediction a worse one.
        extreme = 1.0 + (null >= r2 - 1e-9).sum(0)
        p_values = np.where(np.isnan(r2), np.nan, extreme / (1.0 + n_permutations))
    return Prediction(r2, pearson(*ranks), null, p_values)


def _held_out(x: Array, y: Array, groups: Places) -> tuple[Array, Array]:
    """Predictions of each group from the others, and the means of those: (n, t) twice."""
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import GroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    parts = GroupKFold(min(_MOST_PARTS, len(np.unique(groups))))
    predicted, baseline = np.empty_like(y), np.empty_like(y)
    for training, held_out in parts.split(x, y, groups):
        model = make_pipeline(StandardScaler(), RidgeCV(_PENALTIES, alpha_per_target=True))
        model.fit(x[training], y[training])
        predicted[held_out] = model.predict(x[held_out]).reshape(len(held_out), -1)
        baseline[held_out] = y[training].mean(0)
    return predicted, baseline


def _predictive_r2(y: Array, predicted: Array, baseline: Array) -> Array:
    left, total = (np.square(y - guess).sum(0) for guess in (predicted, baseline))
    return 1 - np.divide(left, total, out=np.full_like(total, np.nan), where=total > 0)


def permutations_within(
    groups: Places, blocks: Places | None, n: int, seed: int = 0
) -> Iterator[Places]:
    """``n`` random permutations of rows within groups: row i takes the value of row result[i].

    Blocks of a group, if any are given, change places whole, those of one size with each other, and
    rows change places within their block. Under the null hypothesis heads of a block are alike for
    a reason of their own, and permuting them one by one would reject too often.
    """
    rng = np.random.default_rng(seed)
    rows = np.arange(len(groups))
    block = rows if blocks is None else blocks
    _, number, sizes = np.unique(
        np.stack([groups, block]), axis=1, return_inverse=True, return_counts=True
    )
    number = number.ravel()
    # Groups, and sizes of blocks in them, come in one order; blocks and rows in a random one.
    strata = np.unique(np.stack([groups, sizes[number]]), axis=1, return_inverse=True)[1].ravel()
    places = np.lexsort((number, strata))
    for _ in range(n):
        result = np.empty(len(rows), dtype=np.int64)
        order = rng.permutation(len(sizes))[number]
        result[places] = np.lexsort((rng.random(len(rows)), order, strata))
        yield result


def centred_within(values: Array, groups: Places) -> Array:
    """Values (n, k) less the mean of their group; 0 in a column that no group varies in."""
    _, number, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    sums = np.zeros((len(sizes), values.shape[1]))
    np.add.at(sums, number, values)
    rest = values - (sums / sizes[:, None])[number]
    # What is left of equal values is rounding, which a regression would scale up.
    varies = np.square(rest).sum(0) > _ROUNDING * np.square(values).sum(0)
    return np.where(varies, rest, 0.0)


def ranks_within(values: Array, groups: Places) -> Array:
    """Ranks of values (n, k) within their group, centred; ties share their mean rank."""
    from scipy.stats import rankdata

    ranks = np.empty(values.shape)
    for group in np.unique(groups):
        rows = groups == group
        ranks[rows] = rankdata(values[rows], axis=0) - (rows.sum() + 1) / 2
    return ranks


def normal_scores(values: Array) -> Array:
    """Each column's ranks as quantiles of the normal law, (r − 3/8) / (n + 1/4). Blom (1958)."""
    from scipy.special import ndtri
    from scipy.stats import rankdata

    return np.asarray(ndtri((rankdata(values, axis=0) - 0.375) / (len(values) + 0.25)))
