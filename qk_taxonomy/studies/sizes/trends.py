"""Trends of models over depth and parameters, beside those of the same models before training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from qk_taxonomy.hypotheses.contrast import check_comparable
from qk_taxonomy.hypotheses.heads import HeadSet, common_statistics
from qk_taxonomy.hypotheses.table import corrected, finding_rows
from qk_taxonomy.statistics.findings import LEVEL, join_notes
from qk_taxonomy.statistics.moments import with_logs
from qk_taxonomy.statistics.slopes import (
    FEWEST_MODELS,
    LEAST_SQUARES,
    mean_slope,
    slopes_against,
)
from qk_taxonomy.statistics.trends import first_layer, monotone_trend
from qk_taxonomy.training_steps import training_stage, training_step

Array = NDArray[np.float64]

BY_DEPTH, BY_SIZE = "sizes: slope with depth", "sizes: slope with parameters"

#: The same of the models before training.
UNTRAINED_BY_SIZE = f"{BY_SIZE}, untrained"

#: How the note of a slope that untrained models have too begins.
ALSO_UNTRAINED = "also untrained"


@dataclass(frozen=True, eq=False)
class SizeTrends:
    """Models of one family, in order of size, and the trends of one stack, circuit and convention.

    ``parameters`` (models,): of each model, nan where the catalogue does not know. ``layers``: a
    row a model and layer: ``model`` (its number), ``layer``, ``depth`` from 0 to 1, and the median
    over heads of each statistic. ``values``: a row a model, the median over layers of these.
    ``slopes``: a row a model, each statistic's slope from the first to the last layer. ``rows``:
    the tests, in the columns of ``hypotheses.table.COLUMNS``, those with parameters where three
    models' are known, and of untrained models where all of those are surveyed at step 0; the note
    of a slope that these have too says so.
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

    @property
    def by_size(self) -> bool:
        """Whether enough models' parameters are known for a slope."""
        return int(np.isfinite(self.parameters).sum()) >= FEWEST_MODELS

    @property
    def untrained_known(self) -> bool:
        """Whether the slopes of the same models before training are there to compare with."""
        return UNTRAINED_BY_SIZE in set(self.rows["hypothesis"])

    @property
    def are_untrained(self) -> bool:
        """Whether these are models at step 0 themselves."""
        return all(map(_is_untrained, self.models))

    @property
    def title(self) -> str:
        """Circuit, convention and stack."""
        heads = self.models[0]
        return f"{heads.circuit} {heads.convention} {heads.stack}".rstrip()


def size_trends(
    models: Sequence[HeadSet], parameters: Mapping[str, int], sets: Sequence[HeadSet] = ()
) -> SizeTrends:
    """Slopes of every statistic with depth, within models, and with parameters, between them.

    models: of one stack, circuit, convention and formula, trained apart from each other;
    parameters: by model id; sets: where the same models at step 0 are looked for. A model's slope
    with depth is Theil and Sen's over its layers, from the first to the last, without the early
    ones that :func:`~qk_taxonomy.statistics.trends.first_layer` leaves out; slopes with parameters
    are per factor of ten. q-values are over the statistics, for each test. Raises HypothesisError
    where models cannot be compared.
    """
    check_comparable(models)
    known = np.array([parameters.get(heads.spectra.model_id, np.nan) for heads in models])
    # By parameters, those without a number last, and then by name.
    order = sorted(range(len(models)), key=lambda i: (np.isnan(known[i]), known[i], models[i].file))
    ordered = tuple(models[i] for i in order)
    sizes = known[order].astype(np.float64)
    known_sizes = sizes[np.isfinite(sizes)]
    names = common_statistics(ordered)
    layers = _all_layers(ordered, names)
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
        if len(known_sizes) >= FEWEST_MODELS:
            own = {**own, "hypothesis": BY_SIZE}
            # Those that are known come first.
            y = values[name].to_numpy(np.float64)[: len(known_sizes)]
            rows += [(own, finding) for finding in slopes_against(np.log10(known_sizes), y)]
    if len(known_sizes) >= FEWEST_MODELS and (
        untrained := _before_training(ordered[: len(known_sizes)], sets)
    ):
        check_comparable(untrained)
        shown = [name for name in common_statistics(untrained) if name in names]
        before = _all_layers(untrained, shown).groupby("model")[shown].median()
        for name in shown:
            own = {"statistic": name, "hypothesis": UNTRAINED_BY_SIZE}
            y = before[name].to_numpy(np.float64)
            rows.append((own, slopes_against(np.log10(known_sizes), y)[0]))
    table = corrected(finding_rows(shared, rows), ["hypothesis", "method"])
    return SizeTrends(ordered, sizes, layers, values, slopes, _marked(table))


def _marked(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows, with a note at slopes that hold and that untrained models have too: one that holds
    as well, of the same sign.
    """
    marked = rows.copy()
    untrained = rows[rows["hypothesis"] == UNTRAINED_BY_SIZE].set_index("statistic")
    trained = (rows["hypothesis"] == BY_SIZE) & (rows["method"] == LEAST_SQUARES)
    for index, row in rows[trained & rows["statistic"].isin(untrained.index)].iterrows():
        before = untrained.loc[row["statistic"]]
        hold = row["q_value"] <= LEVEL and before["q_value"] <= LEVEL
        if hold and row["effect"] * before["effect"] > 0:
            note = f"{ALSO_UNTRAINED}: {before['effect']:+.3g}"
            marked.loc[index, "note"] = join_notes(row["note"], note)
    return marked


def _before_training(models: Sequence[HeadSet], sets: Iterable[HeadSet]) -> list[HeadSet]:
    """Each model at step 0, in the same order; none where one is missing, or is itself at it."""
    firsts = {_untimed(heads): heads for heads in sets if _is_untrained(heads)}
    found = [firsts.get(_untimed(heads)) for heads in models if not _is_untrained(heads)]
    whole = [heads for heads in found if heads is not None]
    return whole if len(whole) == len(models) else []


def _is_untrained(heads: HeadSet) -> bool:
    """Whether a file's name tells that these are weights of step 0, of the first stage if any."""
    revision = heads.stem.revision
    return (
        revision is not None
        and training_step(revision) == 0
        and training_stage(revision) <= 1
        and not heads.spectra.control
    )


def _untimed(heads: HeadSet) -> tuple[str, tuple[str, str], str, bool]:
    """What a model's revisions share."""
    return heads.family, heads.stem.series, heads.stack, heads.spectra.is_imported


def _all_layers(models: Sequence[HeadSet], names: Sequence[str]) -> pd.DataFrame:
    """The medians of every layer of every model, ``model`` its number."""
    return pd.concat(
        [_layer_medians(heads, names).assign(model=i) for i, heads in enumerate(models)],
        ignore_index=True,
    )


def _layer_medians(heads: HeadSet, names: Sequence[str]) -> pd.DataFrame:
    """Medians over heads, a row a layer, of logarithms where statistics have the weights' units."""
    table = pd.DataFrame(with_logs(heads.statistics[list(names)], names), columns=list(names))
    places = {"layer": heads.layer, "depth": heads.depth}
    return table.assign(**places).groupby("layer", as_index=False).median()


def _depth_slope(values: pd.Series) -> float:
    """Theil and Sen's slope over a model's layers, times the number of steps between them."""
    series = values.to_numpy(np.float64)
    kept = series[first_layer(len(series)) :]
    if len(kept) < 2 or not np.isfinite(kept).all():
        return float("nan")
    return monotone_trend(kept).slope * (len(series) - 1) if np.ptp(kept) > 0 else 0.0
