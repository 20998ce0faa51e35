"""The bridge to the survey: do a head's spectra, or its class, tell what it does?

Heads of one depth are alike in spectra and behaviour both, so that what is tested is what spectra
say within layers: values less their layer's mean, on both sides. All tests permute heads within
layers, and heads that share a key-value head together, so that neither depth nor grouped keys alone
can pass them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from qk_taxonomy.errors import StudyError
from qk_taxonomy.statistics.correlations import pearson
from qk_taxonomy.statistics.findings import LEVEL, benjamini_hochberg
from qk_taxonomy.statistics.prediction import (
    centred_within,
    normal_scores,
    permutations_within,
    predict,
    ranks_within,
)
from qk_taxonomy.studies.query_norm.correlations import HEAD
from qk_taxonomy.studies.query_norm.records import MEASURES

Array = NDArray[np.float64]
Places = NDArray[np.int64]

# Of associations and classes, which cost little: few enough, and corrected over hundreds of pairs
# three that no permutation reaches still hold.
_PERMUTATIONS = 1999

# Of sums of squares that are 1.
_ROUNDING = 1e-9

# A statistic that more heads than this lack is left out, and else the heads that lack it.
_MOST_MISSING = 0.1


@dataclass(frozen=True, eq=False)
class Bridge:
    """What spectral statistics and classes tell of the behaviour of one model's heads.

    ``prediction``: a row a behaviour: n_heads, n_layers; r2_within, predictive R² of the layers
    held out, of behaviour and spectra less their layers' means; spearman_within, of those
    predictions; null_low and null_high, the central 95 % of r2_within with heads permuted within
    layers; its p and q; and, to describe and not tested, R² of values as they are: r2_spectra,
    r2_depth (depth and its square alone) and r2_both.
    ``associations``: a row a behaviour and statistic: spearman within layers, p and q.
    ``classes``: a row a behaviour: eta_squared, the share of the variance within layers that lies
    between classes, n_heads, n_classes, p and q; no rows where there are no classes. All q are
    Benjamini and Hochberg's over the table's rows. ``heads``: the heads that all this is of, with
    behaviours, statistics and, where there are classes, ``class``. ``line``: what it says in a
    sentence; ``notes``: what was left out.
    """

    prediction: pd.DataFrame
    associations: pd.DataFrame
    classes: pd.DataFrame
    heads: pd.DataFrame
    line: str
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Heads:
    """Heads with all their numbers: ``layers`` and ``blocks`` (n,), a number for each layer of each
    stack, and for each key-value head.
    """

    table: pd.DataFrame
    behaviours: list[str]
    statistics: list[str]
    layers: Places
    blocks: Places
    notes: list[str]

    @property
    def scores(self) -> Array:
        """Behaviours as normal scores, so that a few heads of extreme values do not decide."""
        return normal_scores(self.table[self.behaviours].to_numpy(np.float64))


def bridge(
    behaviour: pd.DataFrame,
    spectral: pd.DataFrame,
    classes: pd.DataFrame | None,
    *,
    behaviours: Sequence[str] = MEASURES,
    n_permutations: int = 200,
    seed: int = 0,
) -> Bridge:
    """Predict behaviour from spectra, in layers held out, and test each statistic and the classes.

    behaviour: of :func:`~qk_taxonomy.studies.query_norm.behaviour.head_behaviour`; spectral: of
    :func:`~qk_taxonomy.studies.query_norm.behaviour.spectral_table`, whose ``kv_head`` may be
    missing; classes: layer, head, class and, in a model of several stacks, stack. behaviours: those
    that are to count, such as
    :func:`~qk_taxonomy.studies.query_norm.behaviour.distinct_measures`. n_permutations: of
    predictions. Predictions and classes are of the behaviours' normal scores. Raises StudyError
    where no head has both.
    """
    heads = _join(behaviour, spectral, behaviours)
    prediction = _prediction(heads, n_permutations, seed)
    associations = _associations(heads, seed)
    by_class = _classes(heads, classes, seed)
    return Bridge(
        prediction,
        associations,
        by_class,
        heads.table if classes is None else heads.table.merge(_keyed(classes), how="left", on=HEAD),
        _line(prediction, associations, by_class),
        tuple(heads.notes),
    )


def _keyed(classes: pd.DataFrame) -> pd.DataFrame:
    table = classes if "stack" in classes else classes.assign(stack="")
    return table[[*HEAD, "class"]]


def predicted(prediction: pd.DataFrame) -> pd.Series:
    """Which behaviours of :attr:`Bridge.prediction` spectra predict within layers: beyond chance,
    and better than a layer's mean, since a prediction may beat permuted heads and yet be worse.
    """
    return (prediction["q"] <= LEVEL) & (prediction["r2_within"] > 0)


def _join(behaviour: pd.DataFrame, spectral: pd.DataFrame, wanted: Sequence[str]) -> _Heads:
    statistics = [name for name in spectral if name.startswith(("qk_", "ov_"))]
    joined = behaviour.merge(spectral, on=HEAD, how="inner")
    if joined.empty:
        raise StudyError(
            f"Wanted spectra of the heads whose attention was measured, found none: "
            f"{_places(behaviour)} were measured and {_places(spectral)} surveyed."
        )
    known = [name for name in wanted if joined[name].nunique() > 1]
    notes = _unmatched(len(behaviour), len(spectral), len(joined))
    varying = [
        name
        for name in statistics
        if joined[name].nunique() > 1 and joined[name].isna().mean() <= _MOST_MISSING
    ]
    if left_out := [name for name in statistics if name not in varying]:
        notes.append(
            f"Statistics that do not vary, or that more than {_MOST_MISSING:.0%} of the heads "
            f"lack, are left out: {', '.join(left_out)}."
        )
    if not varying or not known:
        what = "behaviours" if varying else "spectral statistics (qk_…, ov_…)"
        raise StudyError(f"Wanted {what} that vary over heads, found none.")
    if missing := [name for name in wanted if name not in known]:
        notes.append(f"Behaviours that do not vary are left out: {', '.join(missing)}.")
    table = joined.dropna(subset=[*known, *varying]).reset_index(drop=True)
    if len(table) < len(joined):
        notes.append(
            f"{len(joined) - len(table)} of {len(joined)} heads lack a behaviour or a statistic "
            "and are left out."
        )
    if table.empty:
        raise StudyError("Wanted heads with all behaviours and statistics, found none.")
    layers = table.groupby(["stack", "layer"], sort=True).ngroup().to_numpy(np.int64)
    kv_head = table["kv_head"] if "kv_head" in table else table["head"]
    blocks = kv_head.fillna(table["head"]).to_numpy(np.int64)
    heads = _Heads(table, known, varying, layers, blocks, notes)
    notes.extend(_dependence(heads))
    return heads


def _places(table: pd.DataFrame) -> str:
    """Heads as the reader tells them: by stack, if any, and layer."""
    stacks = ", ".join(repr(name) for name in sorted(set(table["stack"])))
    layers = f"layers {table['layer'].min()} to {table['layer'].max()}" if len(table) else "none"
    return f"{len(table)} heads (stack {stacks or 'none'}, {layers})"


def _unmatched(measured: int, surveyed: int, both: int) -> list[str]:
    notes = []
    if measured > both:
        notes.append(f"{measured - both} of {measured} measured heads have no spectra.")
    if surveyed > both:
        notes.append(f"{surveyed - both} of {surveyed} surveyed heads were not measured.")
    return notes


def _dependence(heads: _Heads) -> list[str]:
    """How much of one behaviour is another: they are counted, and should not be taken for many."""
    scores = centred_within(heads.scores, heads.layers)
    first, second = np.triu_indices(len(heads.behaviours), 1)
    r = np.abs(pearson(scores.T[first], scores.T[second]))
    if not np.isfinite(r).any():
        return []
    largest = np.nanargmax(r)
    pair = (heads.behaviours[place[largest]] for place in (first, second))
    return [
        f"Behaviours depend on each other, so that {len(heads.behaviours)} are not as many "
        f"findings: within layers, two of them have |r| = {np.nanmedian(r):.2f} in the median, and "
        f"{r[largest]:.2f} at most ({' and '.join(map(_spoken, pair))})."
    ]


def _prediction(heads: _Heads, n_permutations: int, seed: int) -> pd.DataFrame:
    n_layers = len(np.unique(heads.layers))
    rows = pd.DataFrame(
        {"behaviour": heads.behaviours, "n_heads": len(heads.table), "n_layers": n_layers}
    )
    columns = (
        *("r2_within", "spearman_within", "null_low", "null_high", "p", "q"),
        *("r2_spectra", "r2_depth", "r2_both"),
    )
    rows = rows.assign(**dict.fromkeys(columns, np.nan))
    if n_layers < 2:
        heads.notes.append(
            "There is one layer, so that none can be held out: nothing is predicted."
        )
        return rows
    spectra, depth = heads.table[heads.statistics].to_numpy(np.float64), _depth(heads.table)
    x, y = (centred_within(side, heads.layers) for side in (spectra, heads.scores))
    found = predict(x, y, heads.layers, heads.blocks, n_permutations=n_permutations, seed=seed)
    rows["r2_within"], rows["spearman_within"] = found.r2, found.spearman
    if n_permutations:
        rows["null_low"], rows["null_high"] = np.quantile(found.null, [0.025, 0.975], axis=0)
    rows["p"] = found.p_values
    rows["q"] = benjamini_hochberg(found.p_values)
    for name, features in (
        ("spectra", spectra), ("depth", depth), ("both", np.hstack([spectra, depth]))
    ):  # fmt: skip
        rows[f"r2_{name}"] = predict(features, heads.scores, heads.layers).r2
    return rows


def _depth(table: pd.DataFrame) -> Array:
    """Place of each head's layer in its stack, from 0 to 1, and the square of that: (n, 2)."""
    place = table.groupby("stack")["layer"].rank(method="dense") - 1
    last = place.groupby(table["stack"]).transform("max").clip(lower=1)
    depth = (place / last).to_numpy(np.float64)
    return np.column_stack([depth, np.square(depth)])


def _associations(heads: _Heads, seed: int) -> pd.DataFrame:
    """Spearman's ρ of ranks within layers, over all layers, against permuted heads."""
    y, x = (
        _columns_of_length_1(ranks_within(heads.table[names].to_numpy(np.float64), heads.layers))
        for names in (heads.behaviours, heads.statistics)
    )
    rho = y.T @ x
    p_values = _permutation_p_values(
        np.abs(rho), lambda rows: np.abs(y[rows].T @ x), heads.layers, heads.blocks, seed
    )
    pairs = pd.MultiIndex.from_product(
        [heads.behaviours, heads.statistics], names=["behaviour", "statistic"]
    )
    table = pd.DataFrame({"spearman": rho.ravel(), "p": p_values.ravel()}, index=pairs)
    return table.assign(q=benjamini_hochberg(table["p"])).reset_index()


def _columns_of_length_1(values: Array) -> Array:
    """nan for a column of zeros: ranks of a statistic that does not vary within any layer."""
    size = np.sqrt(np.square(values).sum(0))
    return np.divide(values, size, out=np.full_like(values, np.nan), where=size > 0)


def _classes(heads: _Heads, classes: pd.DataFrame | None, seed: int) -> pd.DataFrame:
    """η² of class within layers: of layer-centred scores, the share that layer-centred indicators
    of class explain.
    """
    columns = ["behaviour", "eta_squared", "n_heads", "n_classes", "p", "q"]
    if classes is None:
        return pd.DataFrame(columns=columns)
    label = heads.table[HEAD].merge(_keyed(classes), on=HEAD, how="left")["class"]
    known = label.notna().to_numpy()
    if not known.all():
        heads.notes.append(f"{(~known).sum()} of {len(known)} heads have no class.")
    table = pd.DataFrame({"behaviour": heads.behaviours, "eta_squared": np.nan})
    table = table.assign(n_heads=known.sum(), n_classes=label.nunique(), p=np.nan, q=np.nan)
    layers, blocks = heads.layers[known], heads.blocks[known]
    basis = _basis(centred_within(pd.get_dummies(label[known]).to_numpy(np.float64), layers))
    if not basis.shape[1]:
        heads.notes.append("Heads of a layer do not differ in class: classes are not tested.")
        return table[columns]
    y = _columns_of_length_1(centred_within(heads.scores[known], layers))
    eta = np.square(basis.T @ y).sum(0)
    table["eta_squared"] = eta
    table["p"] = _permutation_p_values(
        eta, lambda rows: np.square(basis.T @ y[rows]).sum(0), layers, blocks, seed
    )
    return table.assign(q=benjamini_hochberg(table["p"]))[columns]


def _basis(indicators: Array) -> Array:
    """An orthonormal basis of the columns (n, k) but for what is rounding: (n, at most k)."""
    u, sigma, _ = np.linalg.svd(indicators, full_matrices=False)
    return np.asarray(u[:, sigma > _ROUNDING * np.sqrt(len(indicators))])


def _permutation_p_values(
    observed: Array,
    statistic: Callable[[Places], Array],
    layers: Places,
    blocks: Places,
    seed: int,
) -> Array:
    """(1 + #{permuted ≥ observed}) / (1 + N), of heads permuted within layers; nan for nan."""
    extreme = np.ones_like(observed)
    for rows in permutations_within(layers, blocks, _PERMUTATIONS, seed):
        # Sums in another order must not make an equal permutation a smaller one.
        extreme += statistic(rows) >= observed - _ROUNDING
    return np.where(np.isnan(observed), np.nan, extreme / (1 + _PERMUTATIONS))


def _line(prediction: pd.DataFrame, associations: pd.DataFrame, classes: pd.DataFrame) -> str:
    """One sentence: how many behaviours each of the three explains, and if any, the best."""
    parts = [_said_of_prediction(prediction), _said_of_associations(associations)]
    tested = classes[classes["eta_squared"].notna()]
    if len(tested):
        holding = tested[tested["q"] <= LEVEL]
        said = f"classes tell {len(holding)} of {len(tested)} behaviours apart within layers"
        if len(holding):
            best = holding.loc[holding["eta_squared"].idxmax()]
            said += f" (best η² = {best['eta_squared']:.2f}, of {_spoken(best['behaviour'])})"
        parts.append(said)
    return "; ".join(parts) + "."


def _said_of_prediction(prediction: pd.DataFrame) -> str:
    tested = prediction[prediction["r2_within"].notna()]
    if tested.empty:
        return "Nothing could be predicted in layers held out"
    holding = tested[predicted(tested)]
    said = (
        f"In layers held out, spectra predict {len(holding)} of {len(tested)} behaviours beyond "
        "what depth and chance do"
    )
    if holding.empty:
        return said
    best = holding.loc[holding["r2_within"].idxmax()]
    return (
        f"{said} (R² within layers: at best {best['r2_within']:.2f}, of "
        f"{_spoken(best['behaviour'])}, and {tested['r2_within'].median():.2f} in the median of "
        "all)"
    )


def _said_of_associations(associations: pd.DataFrame) -> str:
    tested = associations[associations["spearman"].notna()]
    if tested.empty:
        return "no statistic varies within layers"
    holding = tested[tested["q"] <= LEVEL]
    said = (
        f"within layers {len(holding)} of {len(tested)} pairs of a statistic and a behaviour go "
        "together"
    )
    if holding.empty:
        return said
    best = holding.loc[holding["spearman"].abs().idxmax()]
    return (
        f"{said} (strongest ρ = {best['spearman']:.2f}, of {best['statistic']} and "
        f"{_spoken(best['behaviour'])})"
    )


def _spoken(behaviour: str) -> str:
    return behaviour.replace("_", " ")
