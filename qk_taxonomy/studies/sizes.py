"""A family over its sizes: statistics against depth and against parameters; the model is the unit.

One value a layer, the median over its heads, and one a model, the median over its layers. Those in
the units of the weights are natural logarithms.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from qk_taxonomy.cache import find_spectra
from qk_taxonomy.catalog import load_contrasts, load_families
from qk_taxonomy.errors import HypothesisError, PartialFailureError
from qk_taxonomy.hypotheses.contrast import LOG_STATISTICS, check_comparable
from qk_taxonomy.hypotheses.heads import HeadSet, common_statistics, load_heads
from qk_taxonomy.hypotheses.pairs import one_per_training
from qk_taxonomy.hypotheses.table import corrected, finding_rows
from qk_taxonomy.records import CIRCUITS, CONVENTIONS, Circuit, Convention
from qk_taxonomy.statistics.findings import LEVEL
from qk_taxonomy.statistics.slopes import FEWEST_MODELS, mean_slope, slopes_against
from qk_taxonomy.statistics.trends import first_layer, monotone_trend

Array = NDArray[np.float64]

BY_DEPTH, BY_SIZE = "sizes: slope with depth", "sizes: slope with parameters"


@dataclass(frozen=True, eq=False)
class SizeTrends:
    """Models of one family, in order of size, and the trends of one stack, circuit and convention.

    ``parameters`` (models,): of each model, nan where the catalogue does not know. ``layers``: a
    row a model and layer: ``model`` (its number), ``layer``, ``depth`` from 0 to 1, and the median
    over heads of each statistic. ``values``: a row a model, the median over layers of these.
    ``slopes``: a row a model, each statistic's slope from the first to the last layer. ``rows``:
    the tests, in the columns of ``hypotheses.table.COLUMNS``.
    """

    models: tuple[HeadSet, ...]
    parameters: Array
    layers: pd.DataFrame
    values: pd.DataFrame
    slopes: pd.DataFrame
    rows: pd.DataFrame

    @property
    def statistics(self) -> list[str]:
        return list(self.values)


@dataclass(frozen=True, eq=False)
class FamilySizes:
    """All trends of a family; ``notes``: what was left out, and why; ``failures``: by file."""

    family: str
    trends: tuple[SizeTrends, ...]
    notes: tuple[str, ...]
    failures: dict[str, Exception]

    @property
    def rows(self) -> pd.DataFrame:
        """The rows of all trends, one below the other."""
        return pd.concat([one.rows for one in self.trends], ignore_index=True)


def family_sizes(
    family: str,
    data_root: str | Path = ".",
    *,
    circuits: Iterable[Circuit] = CIRCUITS,
    conventions: Iterable[Convention] = CONVENTIONS,
    catalog: str | Path | None = None,
) -> FamilySizes:
    """The trends of a surveyed family, in each circuit and convention that its files have.

    Models that were trained from one another count once, imported ones only where there are no
    exact spectra, and revisions and controls not at all. Parameters are the catalogue's. Raises
    SpectraFileError where nothing is surveyed, HypothesisError where nothing has three models,
    PartialFailureError where no file can be read.
    """
    paths = find_spectra(data_root, family)
    contrasts, parameters = load_contrasts(catalog), _parameters(catalog)
    trends: list[SizeTrends] = []
    notes: list[str] = []
    failures: dict[str, Exception] = {}
    found: list[str] = []
    for circuit in circuits:
        for convention in conventions:
            surveyed = load_heads(paths, circuit, convention)
            failures |= surveyed.failures
            models, others = one_per_training(contrasts, surveyed.sets)
            if others:
                names = ", ".join(dict.fromkeys(heads.file for heads in others))
                notes.append(
                    f"revisions by name, or of the same training as others, and left out: {names}"
                )
            chosen = [heads for heads in models if not heads.spectra.is_imported] or models
            if len(chosen) < len(models):
                notes.append(
                    f"{len(models) - len(chosen)} imported models are left out, being the "
                    "predecessor's numbers"
                )
            for stack in dict.fromkeys(heads.stack for heads in chosen):
                of_stack = [heads for heads in chosen if heads.stack == stack]
                if len(of_stack) >= FEWEST_MODELS:
                    trends.append(size_trends(of_stack, parameters))
                else:
                    what = f"{circuit} {convention} {stack}".rstrip()
                    found.append(f"{len(of_stack)} with {what} spectra")
    if not trends:
        if failures and not found:
            raise PartialFailureError(failures)
        left_out = f" ({'; '.join(dict.fromkeys(notes))})" if notes else ""
        raise HypothesisError(
            f"Trends over the sizes of {family} want {FEWEST_MODELS} models or more that were "
            f"trained apart, found {', '.join(found) or 'none'}{left_out}. "
            f"`qk-taxonomy download --family {family}` surveys the others."
        )
    notes += [f"wanted {FEWEST_MODELS} models, found {what}" for what in found]
    for one in trends:
        unknown = [m.model for m, n in zip(one.models, one.parameters, strict=True) if np.isnan(n)]
        if unknown:
            notes.append(
                f"no number of parameters, so no slope with them: {', '.join(unknown)} (a family "
                "file of your own can tell: --catalog DIR)"
            )
    return FamilySizes(paths[0].parent.name, tuple(trends), tuple(dict.fromkeys(notes)), failures)


def size_trends(models: Sequence[HeadSet], parameters: Mapping[str, int]) -> SizeTrends:
    """Slopes of every statistic with depth, within models, and with parameters, between them.

    models: of one stack, circuit, convention and formula, trained apart from each other;
    parameters: by model id. A model's slope with depth is Theil and Sen's over its layers, from the
    first to the last, without the early ones that
    :func:`~qk_taxonomy.statistics.trends.first_layer` leaves out; slopes with parameters are per
    factor of ten. q-values are over the statistics, for each test. Raises HypothesisError where
    models cannot be compared.
    """
    check_comparable(models)
    known = np.array([parameters.get(heads.spectra.model_id, np.nan) for heads in models])
    # By parameters, those without a number last, and then by name.
    order = sorted(range(len(models)), key=lambda i: (np.isnan(known[i]), known[i], models[i].file))
    ordered = tuple(models[i] for i in order)
    sizes = known[order].astype(np.float64)
    names = common_statistics(ordered)
    layers = pd.concat(
        [_layer_medians(heads, names).assign(model=i) for i, heads in enumerate(ordered)],
        ignore_index=True,
    )
    values = layers.groupby("model")[names].median()
    slopes = pd.DataFrame(
        {name: [_depth_slope(part[name]) for _, part in layers.groupby("model")] for name in names}
    )
    shared = {
        "family": ordered[0].family,
        "stack": ordered[0].stack,
        "circuit": ordered[0].circuit,
        "convention": ordered[0].convention,
    }
    rows = []
    for name in names:
        own = {"statistic": name, "hypothesis": BY_DEPTH}
        rows.append((own, mean_slope(slopes[name].to_numpy(np.float64))))
        own = {**own, "hypothesis": BY_SIZE}
        both = slopes_against(np.log10(sizes), values[name].to_numpy(np.float64))
        rows += [(own, finding) for finding in both]
    table = corrected(finding_rows(shared, rows), ["method"])
    return SizeTrends(ordered, sizes, layers, values, slopes, table)


def _layer_medians(heads: HeadSet, names: Sequence[str]) -> pd.DataFrame:
    """Medians over heads, a row a layer, of logarithms where statistics have the weights' units."""
    table = heads.statistics[list(names)].copy()
    logs = [name for name in names if name in LOG_STATISTICS]
    with np.errstate(divide="ignore"):
        table[logs] = np.log(table[logs])
    places = {"layer": heads.layer, "depth": heads.depth}
    return table.assign(**places).groupby("layer", as_index=False).median()


def _depth_slope(values: pd.Series) -> float:
    """Theil and Sen's slope over a model's layers, times the number of steps between them."""
    series = values.to_numpy(np.float64)
    kept = series[first_layer(len(series)) :]
    if len(kept) < 2 or not np.isfinite(kept).all():
        return float("nan")
    return monotone_trend(kept).slope * (len(series) - 1) if np.ptp(kept) > 0 else 0.0


def _parameters(catalog: str | Path | None) -> dict[str, int]:
    return {
        entry.id: entry.parameters for family in load_families(catalog) for entry in family.models
    }


def summary(sizes: FamilySizes) -> Iterator[str]:
    """Two lines a stack, circuit and convention: what rises or falls with depth, and with size."""
    for one in sizes.trends:
        heads = one.models[0]
        what = f"{heads.circuit} {heads.convention} {heads.stack}".rstrip()
        yield f"{sizes.family}, {what}: {len(one.models)} models"
        for hypothesis, unit in ((BY_DEPTH, "whole depth"), (BY_SIZE, "factor of ten")):
            rows = one.rows[one.rows["hypothesis"] == hypothesis]
            if not rows["p_value"].notna().any():
                yield f"  {hypothesis}: not tested: {rows['note'].iloc[0]}"
                continue
            held = rows[rows["q_value"] <= LEVEL]
            effects = zip(held["statistic"], held["effect"], strict=True)
            listed = ", ".join(f"{name} {effect:+.3g}" for name, effect in effects)
            yield f"  {hypothesis}, per {unit}: {listed or 'none'} (q ≤ {LEVEL})"
