"""A family over its sizes: statistics against depth and against parameters; the model is the unit.

One value a layer, the median over its heads, and one a model, the median over its layers. Those in
the units of the weights are natural logarithms. d_model and d_head alone move the spectra of
untrained heads, so that slopes with parameters are set beside those of the same models at their
first step, where these are surveyed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from qk_taxonomy.cache import asked_revision, find_spectra
from qk_taxonomy.catalog import load_contrasts, load_families
from qk_taxonomy.errors import HypothesisError, PartialFailureError
from qk_taxonomy.hypotheses.contrast import check_comparable
from qk_taxonomy.hypotheses.heads import HeadSet, common_statistics, load_heads, untrained_like
from qk_taxonomy.hypotheses.pairs import newest_of_each, one_per_training
from qk_taxonomy.hypotheses.table import corrected, finding_rows
from qk_taxonomy.labels import statistic_label
from qk_taxonomy.records import CIRCUITS, CONVENTIONS, N_BINS, Circuit, Contrast, Convention
from qk_taxonomy.statistics.densities import histogram_densities, mean_normalised, pool_edges
from qk_taxonomy.statistics.findings import LEVEL, join_notes
from qk_taxonomy.statistics.moments import LOG_STATISTICS, with_logs
from qk_taxonomy.statistics.slopes import (
    FEWEST_MODELS,
    LEAST_SQUARES,
    THEIL_SEN,
    mean_slope,
    slopes_against,
)
from qk_taxonomy.statistics.trends import first_layer, monotone_trend
from qk_taxonomy.training_steps import training_stage, training_step

Array = NDArray[np.float64]

# Models that a note names.
_MOST_NAMED = 6

BY_DEPTH, BY_SIZE = "sizes: slope with depth", "sizes: slope with parameters"

#: The same of the models before training.
UNTRAINED_BY_SIZE = f"{BY_SIZE}, untrained"

#: How the note of a slope that untrained models have too begins.
ALSO_UNTRAINED = "also untrained"

# Theil and Sen's slope is named where it is off by more than this share of the larger one.
_APART = 0.25


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


@dataclass(frozen=True, eq=False)
class FamilySizes:
    """All trends of a family; ``notes``: what was left out, and why; ``failures``: by file;
    ``revision``: what all models are at, None for their newest.
    """

    family: str
    trends: tuple[SizeTrends, ...]
    notes: tuple[str, ...]
    failures: dict[str, Exception]
    revision: str | None = None

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
    revision: str | None = None,
    catalog: str | Path | None = None,
) -> FamilySizes:
    """The trends of a surveyed family, in each circuit and convention that its files have.

    Each model counts once, by its newest weights: of a model that only revisions are surveyed of,
    the last step; all at ``revision``, where one is given. So do models that were trained from one
    another; imported ones count only where there are no exact spectra, and controls not at all.
    Parameters are the catalogue's. Raises SpectraFileError where nothing is surveyed,
    HypothesisError where nothing has three models, PartialFailureError where no file can be read.
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
            chosen, said = _chosen(surveyed.sets, revision, contrasts)
            notes += said
            for stack in dict.fromkeys(heads.stack for heads in chosen):
                of_stack = [heads for heads in chosen if heads.stack == stack]
                if len(of_stack) >= FEWEST_MODELS:
                    trends.append(size_trends(of_stack, parameters, surveyed.sets))
                else:
                    what = f"{circuit} {convention} {stack}".rstrip()
                    found.append(f"{len(of_stack)} with {what} spectra")
    if not trends:
        if failures and not found:
            raise PartialFailureError(failures)
        at = f" at {revision}" if revision else ""
        left_out = f" ({'; '.join(dict.fromkeys(notes))})" if notes else ""
        raise HypothesisError(
            f"Trends over the sizes of {family} want {FEWEST_MODELS} models or more that were "
            f"trained apart{at}, found {', '.join(found) or 'none'}{left_out}. `qk-taxonomy "
            f"download --family {family}` surveys those of a family of the catalogue."
        )
    notes += [f"wanted {FEWEST_MODELS} models, found {what}" for what in found]
    notes += [note for one in trends if (note := _unknown_parameters(one))]
    name, once = paths[0].parent.name, tuple(dict.fromkeys(notes))
    return FamilySizes(name, tuple(trends), once, failures, revision)


def _chosen(
    sets: Sequence[HeadSet], revision: str | None, contrasts: Iterable[Contrast]
) -> tuple[list[HeadSet], list[str]]:
    """One set of heads a model and stack, of models that were trained apart; sentences on it."""
    notes = []
    if revision is None:
        newest = newest_of_each(sets)
        named = dict.fromkeys(heads.model for heads in newest if "@" in heads.model)
        if named:
            notes.append(f"of models with revisions alone, the last: {_some(named)}")
    else:
        newest = [heads for heads in sets if asked_revision(heads.model) == revision]
    models, others = one_per_training(contrasts, newest, revisions=True)
    if others:
        names = dict.fromkeys(heads.model for heads in others)
        notes.append(f"of the same training as others, and left out: {_some(names)}")
    exact = [heads for heads in models if not heads.spectra.is_imported] or models
    if len(exact) < len(models):
        notes.append(
            f"{len(models) - len(exact)} imported models are left out, being the predecessor's "
            "numbers"
        )
    return exact, notes


def _is_untrained(heads: HeadSet) -> bool:
    """Whether a file's name tells that these are weights of step 0, of the first stage if any."""
    revision = asked_revision(heads.model)
    return (
        revision is not None
        and training_step(revision) == 0
        and training_stage(revision) <= 1
        and not heads.spectra.control
    )


def _before_training(models: Sequence[HeadSet], sets: Iterable[HeadSet]) -> list[HeadSet]:
    """Each model at step 0, in the same order; none where one is missing, or is itself at it."""
    firsts = {_untimed(heads): heads for heads in sets if _is_untrained(heads)}
    found = [firsts.get(_untimed(heads)) for heads in models if not _is_untrained(heads)]
    whole = [heads for heads in found if heads is not None]
    return whole if len(whole) == len(models) else []


def _untimed(heads: HeadSet) -> tuple[str, str, str, bool]:
    """What a model's revisions share."""
    name = heads.model.partition("@")[0]
    return heads.family, name, heads.stack, heads.spectra.is_imported


def _some(names: Iterable[str]) -> str:
    """The first names of many, and how many more there are."""
    every = list(names)
    more = len(every) - _MOST_NAMED
    return ", ".join(every[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _unknown_parameters(trends: SizeTrends) -> str:
    """Which models' parameters no catalogue tells; "" where all are known."""
    unknown = [
        heads.model
        for heads, n in zip(trends.models, trends.parameters, strict=True)
        if np.isnan(n)
    ]
    if not unknown:
        return ""
    without = (
        "left out of slopes with parameters" if trends.by_size else "no slopes with parameters"
    )
    return (
        f"{without}: the catalogue has no number for {_some(unknown)} (a family file of your own "
        "can tell: --catalog DIR)"
    )


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


@dataclass(frozen=True, eq=False)
class ModelDensities:
    """Densities of λ over the head's mean of each model's heads, and of untrained ones.

    ``edges`` (bins + 1,); ``histograms``: (heads, bins) a model, in order of size; ``untrained``:
    (bins,) each, the mean of untrained heads of the model's shape, or None.
    """

    edges: Array
    histograms: tuple[Array, ...]
    untrained: tuple[Array | None, ...]


def densities_of(models: Sequence[HeadSet]) -> ModelDensities:
    """On the bins of all models' heads together. Raises HypothesisError for layers that differ in
    d_head."""
    normalised = [mean_normalised(heads.lam) for heads in models]
    edges = pool_edges(np.concatenate([x.ravel() for x in normalised]), N_BINS)
    nulls = [untrained_like(heads).lam for heads in models]
    return ModelDensities(
        edges,
        tuple(histogram_densities(x, edges) for x in normalised),
        tuple(
            None if lam is None else histogram_densities(mean_normalised(lam), edges).mean(0)
            for lam in nulls
        ),
    )


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


def _parameters(catalog: str | Path | None) -> dict[str, int]:
    return {
        entry.id: entry.parameters for family in load_families(catalog) for entry in family.models
    }


def slope_label(name: str) -> str:
    """What figures and tables call a statistic whose slope they tell."""
    label = statistic_label(name)
    return f"ln {label}" if name in LOG_STATISTICS else label


def summary(sizes: FamilySizes) -> Iterator[str]:
    """Of each stack, circuit and convention, what rises or falls with depth, and with size, where
    parameters are known; and of the last what the same models do before training.
    """
    for one in sizes.trends:
        yield f"{sizes.family}, {one.title}: {len(one.models)} models"
        for hypothesis, unit in ((BY_DEPTH, "whole depth"), (BY_SIZE, "factor of ten")):
            rows = one.rows[one.rows["hypothesis"] == hypothesis]
            if rows.empty:
                continue
            if not rows["p_value"].notna().any():
                yield f"  {hypothesis}: not tested: {rows['note'].iloc[0]}"
                continue
            held = rows[rows["q_value"] <= LEVEL]
            none = ": none" if held.empty else ":"
            yield f"  {hypothesis}, per {unit} (q ≤ {LEVEL}){none}"
            for _, row in held.iterrows():
                yield f"  {told_slope(row, one.rows)}"
    by_size = [one for one in sizes.trends if one.by_size]
    if any(not (one.untrained_known or one.are_untrained) for one in by_size):
        yield (
            "d_model and d_head alone move slopes with parameters: spectra of the same models at "
            "step 0, where the hub has them, tell how far (`qk-taxonomy download --revision step0`)"
        )


def told_slope(row: pd.Series, rows: pd.DataFrame) -> str:
    """A statistic's slope, Theil and Sen's where that is another, and that of untrained models."""
    # The number first: "λ₁ / 1000 -0.5" would be read as a difference.
    said = f"{row['effect']:>+8.3g}  {slope_label(row['statistic'])}"
    if row["hypothesis"] == BY_DEPTH:
        return said
    own = rows[rows["statistic"] == row["statistic"]]
    median = float(own.loc[own["method"] == THEIL_SEN, "effect"].iloc[0])
    apart = abs(median - row["effect"]) > _APART * max(abs(median), abs(row["effect"]))
    if apart or not row["low"] <= median <= row["high"]:
        said += f" (Theil–Sen {median:+.3g})"
    before = own.loc[own["hypothesis"] == UNTRAINED_BY_SIZE]
    if row["note"]:
        return f"{said}; {row['note']}"
    if len(before):
        first = before.iloc[0]
        said += f"; untrained: {first['effect']:+.3g} (q = {first['q_value']:.2g})"
    return said
