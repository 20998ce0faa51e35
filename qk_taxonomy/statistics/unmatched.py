"""Contrasts between groups of models that share no architecture, so that no head has a partner."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qk_taxonomy.errors import ShapeError
from qk_taxonomy.statistics.findings import Finding, join_notes, nan
from qk_taxonomy.statistics.relabelling import memberships, obstacle, p_value, relabellings

Array = NDArray[np.float64]

MIXED_MODEL = "linear mixed model, model as random effect; difference"
MODEL_MEDIANS = "permutation of models; difference of mean model medians"


@dataclass(frozen=True)
class UnmatchedContrast:
    """Treatment less control, in the statistic's unit, by two tests with the model as unit.

    ``mixed``: linear mixed model of head values. ``medians``: permutation test of the models'
    medians.
    """

    mixed: Finding
    medians: Finding


def unmatched_contrast(
    values: ArrayLike,
    models: Sequence[Hashable],
    treated: ArrayLike,
    depths: ArrayLike | None = None,
    n_permutations: int = 9999,
    seed: int = 0,
) -> UnmatchedContrast:
    """Do head values of treated models differ from those of control models?

    values: (heads,), those that are not finite are left out; models: each head's model; treated:
    (heads,) of bool, one for all heads of a model; depths: (heads,) in [0, 1], a covariate of the
    mixed model where given. Both take the two sides to vary alike: 2 models against 8 that vary a
    third as much are rejected in over a third of cases. Raises ShapeError.
    """
    x, is_treated = np.asarray(values, dtype=np.float64), np.asarray(treated, dtype=bool)
    depth = None if depths is None else np.asarray(depths, dtype=np.float64)
    names = list(dict.fromkeys(models))
    number = {name: i for i, name in enumerate(names)}
    model = np.array([number[name] for name in models], dtype=np.intp)
    shapes = {x.shape, is_treated.shape, model.shape, x.shape if depth is None else depth.shape}
    if x.ndim != 1 or len(shapes) != 1:
        raise ShapeError(
            f"Wanted a value, a model, a group and a depth for each head, found {sorted(shapes)}."
        )
    for i, name in enumerate(names):
        if len(set(is_treated[model == i].tolist())) > 1:
            raise ShapeError(f"Model {name} is among the treated and the controls; wanted one.")
    finite = np.isfinite(x)
    dropped = "" if finite.all() else f"{int((~finite).sum())} of {len(x)} values are not finite"
    x, model, is_treated = x[finite], model[finite], is_treated[finite]
    mixed = _mixed_model(x, model, is_treated, None if depth is None else depth[finite])
    medians = _medians(x, model, is_treated, n_permutations, seed)
    return UnmatchedContrast(
        *(replace(finding, note=join_notes(finding.note, dropped)) for finding in (mixed, medians))
    )


def _sides(model: NDArray[np.intp], treated: NDArray[np.bool_]) -> tuple[int, int]:
    """Numbers of treated and of control models."""
    return len(np.unique(model[treated])), len(np.unique(model[~treated]))


def _mixed_model(
    x: Array, model: NDArray[np.intp], treated: NDArray[np.bool_], depth: Array | None
) -> Finding:
    """Fixed effect of treatment with a random intercept a model; REML.

    p and interval are of Student's t with (models − 2) degrees of freedom. Wald's z, which
    statsmodels gives, takes the variance between models for known: it is below 0.05 in 17 % (2
    models a side), 12 % (3), 9 % (4) and 7 % (6) of cases without a difference, t in 3–6 %.
    """
    from scipy.stats import t
    from statsmodels.regression.mixed_linear_model import MixedLM

    sides = _sides(model, treated)
    result = Finding(n=sum(sides), method=MIXED_MODEL)
    if min(sides) < 2:
        note = f"{sides[0]} treated and {sides[1]} control models; needs 2 of each"
        return replace(result, note=note)
    scale = float(x.std())
    if scale == 0:
        return replace(result, note="all values are equal")
    columns = [np.ones_like(x), treated.astype(np.float64)]
    if depth is not None:
        columns.append(depth - depth.mean())
    # In units of its own spread: statistics span many orders of magnitude.
    design = np.column_stack(columns)
    regression = MixedLM((x - x.mean()) / scale, design, groups=model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # What they say is in the fit, and in the note.
        try:
            # Gradient methods, the library's own choice, stop short or at a variance of zero in
            # most fits with little variance between models; Powell's finds the optimum there too.
            fit = regression.fit(method="powell")
        except (np.linalg.LinAlgError, ValueError) as err:
            return replace(result, note=f"the mixed model has no fit: {err}")
    effect, between = float(fit.params[1]), float(fit.cov_re[0, 0])
    error = _standard_error(design, model, between, float(fit.scale))
    if not (fit.converged and np.isfinite(error) and error > 0):
        return replace(result, effect=scale * effect, note="the mixed model did not converge")
    freedom = sum(sides) - 2
    half = float(t.ppf(0.975, freedom)) * error
    return replace(
        result,
        effect=scale * effect,
        low=scale * (effect - half),
        high=scale * (effect + half),
        statistic=effect / error,
        p_value=float(2 * t.sf(abs(effect / error), freedom)),
        note="" if between > 1e-8 else "no variance between models of a side",
    )


def _standard_error(design: Array, model: NDArray[np.intp], between: float, within: float) -> float:
    """Standard error of the second coefficient, by generalised least squares.

    statsmodels' own comes from a numerical Hessian, which is nan where the variance ``between``
    models is next to nothing. The covariance of n heads of a model is within·I + between·11ᵀ.
    """
    information = design.T @ design
    for number in np.unique(model):
        own = design[model == number]
        total = own.sum(0)
        information -= between / (within + between * len(own)) * np.outer(total, total)
    return float(np.sqrt(within * np.linalg.inv(information)[1, 1]))


def _medians(
    x: Array, model: NDArray[np.intp], treated: NDArray[np.bool_], n_permutations: int, seed: int
) -> Finding:
    """Difference of the groups' means of model medians, by relabelling models.

    The interval holds the shifts of the treated that the same relabellings do not reject.
    """
    sides = _sides(model, treated)
    result = Finding(n=sum(sides), method=MODEL_MEDIANS)
    if min(sides) < 1:
        note = f"{sides[0]} treated and {sides[1]} control models; needs both"
        return replace(result, note=note)
    order = [*np.unique(model[treated]), *np.unique(model[~treated])]
    medians = np.array([np.median(x[model == i]) for i in order])
    refusal = obstacle(sides)
    labels = relabellings(sides, 0 if refusal else n_permutations, seed)
    weights = memberships(labels, 2) @ np.array([1.0, -1.0]) / np.where(labels == 0, *sides)
    differences = weights @ medians
    result = replace(result, effect=float(differences[0]), statistic=float(differences[0]))
    if refusal:
        return replace(result, note=refusal)
    low, high = _shifts_not_rejected(differences, weights)
    return replace(result, low=low, high=high, p_value=p_value(np.abs(differences)))


def _shifts_not_rejected(differences: Array, weights: Array) -> tuple[float, float]:
    """95 % interval of the shift δ of the treated, who are the models of weight > 0 in row 0.

    Taking δ from the treated takes ``overlap`` · δ from a relabelling's difference, 1 · δ from the
    observed; each relabelling is as extreme as the observed from one δ on. Garthwaite (1996).
    """
    overlap = weights @ (weights[0] > 0)
    moved = overlap < 1 - 1e-9
    crossings = np.sort((differences[0] - differences[moved]) / (1 - overlap[moved]))
    beyond = int(0.025 * len(differences))
    if beyond < 1:
        return nan, nan
    return float(crossings[beyond - 1]), float(crossings[-beyond])
