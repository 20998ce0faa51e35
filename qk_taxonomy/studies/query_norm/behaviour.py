"""What each head does on average, and the spectral statistics it may follow from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from qk_taxonomy.errors import StudyError
from qk_taxonomy.records import Convention
from qk_taxonomy.studies.query_norm.correlations import HEAD
from qk_taxonomy.studies.query_norm.records import MEASURES, LayerMeasures, Sample
from qk_taxonomy.tables import IDENTITY

#: Statistics taken in log, since they are positive and differ by orders of magnitude between heads.
LOGARITHMIC = ("MIN", "MAX", "MEAN", "STD", "stable_rank", "participation_ratio", "power_law_alpha")


def head_behaviour(samples: Iterable[Sample]) -> pd.DataFrame:
    """Means of every measure, over tokens and then over windows: a row a head.

    Samples are taken one by one, and none is kept.

    Columns stack, layer, head; n_samples; each of ``records.MEASURES``, and …_se, the standard
    error of its mean over windows, nan for one. Raises StudyError where there are no samples.
    """
    tables = [_layer_means(layer) for sample in samples for layer in sample.layers]
    if not tables:
        raise StudyError("Wanted samples with layers of attention to average, found none.")
    groups = pd.concat(tables, ignore_index=True).groupby(HEAD, sort=True)
    behaviour = groups.size().rename("n_samples").reset_index()
    for measure in MEASURES:
        behaviour[measure] = groups[measure].mean().to_numpy()
        behaviour[f"{measure}_se"] = groups[measure].sem().to_numpy()
    return behaviour


def distinct_measures(samples: Sequence[Sample]) -> tuple[str, ...]:
    """Measures that tell heads apart, each in its own way: where every layer attends to all keys,
    or all before, normalised entropy orders heads as entropy does, and is left out.
    """
    everywhere = all(
        np.array_equal(layer.n_keys, np.arange(1, len(layer.n_keys) + 1))
        or (layer.n_keys == len(layer.n_keys)).all()
        for sample in samples
        for layer in sample.layers
    )
    return tuple(name for name in MEASURES if name != "normalised_entropy" or not everywhere)


def _layer_means(layer: LayerMeasures) -> pd.DataFrame:
    means = {name: _mean(layer.values[name].astype(np.float64)) for name in MEASURES}
    head = {"stack": layer.stack, "layer": layer.layer, "head": np.arange(layer.n_heads)}
    return pd.DataFrame({**head, **means})


def _mean(values: np.ndarray) -> np.ndarray:
    """Means along rows of what is not nan; nan where all is."""
    known = ~np.isnan(values)
    count = known.sum(-1)
    total = np.where(known, values, 0.0).sum(-1)
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)


def spectral_table(
    table: pd.DataFrame, family: str, model: str, *, convention: Convention = "folded"
) -> pd.DataFrame:
    """The statistics of one model's heads, a row a head: stack, layer, head, kv_head, qk_…, ov_….

    table: of :func:`~qk_taxonomy.tables.head_table`; family, model: as its columns of these names
    have them. Those of :data:`LOGARITHMIC` are natural logarithms, and KURTOSIS is log(KURTOSIS +
    3), the log of mean z⁴; where a logarithm is not finite, nan. Raises StudyError where the table
    has no such heads.
    """
    mine = (table["family"] == family) & (table["model"] == model) & (table["control"] == "")
    rows = table[mine & (table["convention"] == convention)]
    if rows.empty:
        raise StudyError(
            f"Wanted {convention} spectra of {family}/{model}, found none among {len(table)} heads "
            f"of {', '.join(sorted(set(table['family'] + '/' + table['model']))) or 'no model'}. "
            "`qk-taxonomy download --circuit qk --circuit ov --convention folded` makes them."
        )
    names = [name for name in table.columns if name not in IDENTITY]
    wide = rows[[*HEAD, "kv_head"]].drop_duplicates(HEAD)
    for circuit in sorted(set(rows["circuit"]), reverse=True):
        own = rows[rows["circuit"] == circuit]
        columns = {f"{circuit}_{name}": _scaled(name, own[name]) for name in names}
        wide = wide.merge(own[HEAD].assign(**columns), on=HEAD, how="left")
    return wide.sort_values(HEAD, ignore_index=True)


def _scaled(name: str, values: pd.Series) -> pd.Series:
    values = values.astype(np.float64)
    if name in LOGARITHMIC or name == "KURTOSIS":
        with np.errstate(divide="ignore", invalid="ignore"):
            values = np.log(values + 3 if name == "KURTOSIS" else values)
    return values.where(np.isfinite(values))
