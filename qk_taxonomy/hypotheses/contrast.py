"""Contrasts: a model against what it was before some training, head by matched head."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from qk_taxonomy.errors import HypothesisError
from qk_taxonomy.hypotheses.heads import HeadSet, common_statistics, untrained_like
from qk_taxonomy.hypotheses.table import as_rows, corrected, finding_rows, subject
from qk_taxonomy.statistics.changes import SPECTRAL_DISTANCES, SpectralChanges, spectral_changes
from qk_taxonomy.statistics.findings import Finding
from qk_taxonomy.statistics.moments import effective_rank_lambda, with_logs
from qk_taxonomy.statistics.shifts import (
    FEWEST_UNITS,
    FLIP_GROUPS,
    FLIP_LAYERS,
    paired_shifts,
    signed_rank,
)

SHIFT, CHANGE, KIND = "contrast: shift", "contrast: changed head", "contrast: kind"

PERMUTATIONS = 9999

#: The column of a head table of a contrast that tells in which direction a spectrum changed.
RANK_SHIFT = "effective_rank_shift"

ORIGINS = "Wilcoxon signed-rank over origins of models; of rank-biserial correlations"

_NULLS = {
    "untrained": "against pairs of untrained heads of this shape",
    "within": "against pairs of heads of the control",
}

#: How heads are found to have changed, by distance and by null.
DISTANCE_METHODS = {
    (distance, null): f"{distance} distance of densities, {pairs}"
    for distance in SPECTRAL_DISTANCES
    for null, pairs in _NULLS.items()
}


@dataclass(frozen=True, eq=False)
class ContrastResult:
    """One contrast: rows of shifts and of changed heads, and the heads in order of change.

    ``heads``: one row a head, the most changed first: layer, head, both distances, their p-values
    and q-values against both nulls, and the shift of the effective rank of λ. ``changes``: the
    distances as computed.
    """

    name: str
    kind: str
    treatment: HeadSet
    control: HeadSet
    rows: pd.DataFrame
    heads: pd.DataFrame
    changes: SpectralChanges

    @property
    def overall(self) -> pd.DataFrame:
        """The shift of every statistic over all layers."""
        return overall_shifts(self.rows, self.treatment)


def check_comparable(sides: Sequence[HeadSet], *, include_imported: bool = False) -> None:
    """Raises HypothesisError where heads are of several circuits, conventions or formulas."""
    for what, found in (
        ("circuits", {side.circuit for side in sides}),
        ("conventions", {side.convention for side in sides}),
    ):
        if len(found) > 1:
            raise HypothesisError(
                f"Heads of two {what} ({', '.join(sorted(found))}) are no one comparison: choose "
                "one for all."
            )
    imported = [side.name for side in sides if side.spectra.is_imported]
    if 0 < len(imported) < len(sides) and not include_imported:
        raise HypothesisError(
            f"{', '.join(imported)} holds the predecessor's numbers, which are not spectra of the "
            "circuit; the others are. Survey all of them, or ask for it with --include-imported."
        )


def shape_difference(treatment: HeadSet, control: HeadSet) -> str:
    """Why heads of two models cannot be matched by their place; "" where they can."""
    differ = two_shapes(treatment, control)
    return differ and (
        f"{differ}: no head has its match. Groups of models of any shapes can be compared: "
        "`qk-taxonomy test --treatment A --treatment B ... --control C --control D ...`"
    )


def two_shapes(first: HeadSet, second: HeadSet) -> str:
    """The beginning of a sentence on how two models' shapes differ; "" where they are one."""
    if first.shape == second.shape:
        return ""
    return f"{first.name} has {first.described_shape}, {second.name} {second.described_shape}"


def matched_contrast(
    name: str,
    kind: str,
    treatment: HeadSet,
    control: HeadSet,
    *,
    twins: Iterable[HeadSet] = (),
    permutations: int = PERMUTATIONS,
    seed: int = 0,
    include_imported: bool = False,
) -> ContrastResult:
    """Test matched heads of two models: shifts of every statistic, and every head's spectrum.

    q-values of shifts are over all statistics and layers, for each test, those of heads over the
    heads, for each distance and null: within this contrast, so that no other decides what it shows.
    Raises HypothesisError where the sides cannot be compared or differ in shape.
    """
    check_comparable((treatment, control), include_imported=include_imported)
    differ = shape_difference(treatment, control)
    if differ:
        raise HypothesisError(f"{differ}.")
    shifts = corrected(
        shift_rows(treatment, control, permutations=permutations, seed=seed), ["method"]
    )
    shared = subject(treatment, CHANGE, against=control.file)
    untrained = untrained_like(treatment, twins, include_imported=include_imported)
    changes = spectral_changes(
        treatment.lam, control.lam, treatment.layer, treatment.groups, untrained.lam, seed=seed
    )
    limits = {"untrained": untrained.limit(len(treatment.lam)), "within": ""}
    rows, heads = _change_rows(treatment, changes, shared, limits)
    heads[RANK_SHIFT] = effective_rank_lambda(treatment.lam) - effective_rank_lambda(control.lam)
    return ContrastResult(
        name=name,
        kind=kind,
        treatment=treatment,
        control=control,
        rows=pd.concat([shifts, rows], ignore_index=True),
        heads=heads.sort_values(
            ["wasserstein", "jensen_shannon"], ascending=False, kind="stable", ignore_index=True
        ),
        changes=changes,
    )


def shift_rows(
    treatment: HeadSet, control: HeadSet, *, permutations: int = PERMUTATIONS, seed: int = 0
) -> pd.DataFrame:
    """Shifts of every statistic between two models of one shape, over all layers and in each.

    Treatment less control, of logarithms for ``LOG_STATISTICS``; p-values are not corrected.
    """
    names = common_statistics((treatment, control))
    sides = (with_logs(heads.statistics[names], names) for heads in (treatment, control))
    with np.errstate(invalid="ignore"):  # dead heads on both sides: infinite less infinite
        differences = np.subtract(*sides)
    found = paired_shifts(
        differences, treatment.layer, treatment.groups, permutations=permutations, seed=seed
    )
    note = "" if treatment.groups_known else "key-value groups are not known: heads are the units"
    return finding_rows(
        {**subject(treatment, SHIFT, against=control.file), "note": note},
        (({"statistic": names[s.column], "layer": s.layer}, s.finding) for s in found),
    )


def overall_method(n_layers: int) -> str:
    """How shifts over all layers are tested: by flips of whole layers where there are enough of
    them, else of key-value groups.
    """
    return FLIP_LAYERS if n_layers >= FEWEST_UNITS else FLIP_GROUPS


def overall_shifts(rows: pd.DataFrame, heads: HeadSet) -> pd.DataFrame:
    """Of rows of shifts those over all layers, as rank-biserial correlations: one a statistic.

    Tested as :func:`overall_method` says.
    """
    method = overall_method(len(heads.layers))
    return rows[(rows["method"] == method) & rows["layer"].isna()]


def _change_rows(
    heads: HeadSet, changes: SpectralChanges, shared: dict[str, str], limits: dict[str, str]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of changed heads, and the same numbers with one row a head."""
    place = {"layer": heads.layer, "head": heads.table["head"].to_numpy()}
    parts, wide = [], pd.DataFrame(place)
    for column, distance in enumerate(SPECTRAL_DISTANCES):
        wide[distance] = changes.distances[:, column]
        for null, p_values in (("untrained", changes.p_untrained), ("within", changes.p_within)):
            part = as_rows(
                {
                    **shared,
                    **place,
                    "statistic": distance,
                    "effect": changes.distances[:, column],
                    "p_value": p_values[:, column],
                    "n": len(heads.lam),
                    "method": DISTANCE_METHODS[distance, null],
                    "note": limits[null],
                }
            )
            part = corrected(part, ["method"])
            parts.append(part)
            wide[f"p_{distance}_{null}"] = part["p_value"]
            wide[f"q_{distance}_{null}"] = part["q_value"]
    return pd.concat(parts, ignore_index=True), wide


def refused_contrast(treatment: HeadSet, control: HeadSet, reason: str) -> pd.DataFrame:
    """The row of a contrast that cannot be tested, with the reason."""
    shared = subject(treatment, SHIFT, against=control.file)
    return finding_rows(shared, [({}, Finding(note=reason))])


def kind_rows(results: Iterable[ContrastResult], origins: Mapping[str, str]) -> pd.DataFrame:
    """Does a kind of training shift a statistic? What models were trained from is the unit.

    A pair of models counts with its rank-biserial correlation over all layers, which has no units,
    and pairs that go back to one model (``origins``) with their mean. Refused below six units. Rows
    are named by the kind; q-values are over kinds and statistics.
    """
    rows = [
        result.overall.assign(kind=_kind(result), origin=_origin(result, origins))
        for result in results
    ]
    if not rows:
        return finding_rows({}, ())
    table = pd.concat(rows, ignore_index=True)
    keys = ["kind", "stack", "circuit", "convention", "statistic"]
    findings = []
    for values, group in table.groupby(keys, sort=False):
        kind, *rest = values
        units = group.groupby("origin", sort=False)["effect"].mean()
        found = signed_rank(units.to_numpy(np.float64))
        own = {**dict(zip(keys[1:], rest, strict=True)), "model": f"all {kind} contrasts"}
        findings.append((own, replace(found, method=ORIGINS)))
    return corrected(finding_rows({"hypothesis": KIND}, findings), ["hypothesis"])


def _kind(result: ContrastResult) -> str:
    """A contrast's kind; the predecessor's numbers are a kind of their own."""
    return f"{result.kind}, imported" if result.treatment.spectra.is_imported else result.kind


def _origin(result: ContrastResult, origins: Mapping[str, str]) -> str:
    control = result.control.spectra.model_id
    return origins.get(control, control)
