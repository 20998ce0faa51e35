"""Tables: one row a head, as a pandas DataFrame."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from qk_taxonomy.cache import find_spectra, load_spectra, stack_table
from qk_taxonomy.records import LayerSpectra, ModelSpectra


def _layer_rows(spectra: ModelSpectra, layer: LayerSpectra, stem: str) -> pd.DataFrame:
    heads = np.arange(len(layer.statistics))
    stack = stack_table(spectra.metadata)[layer.stack]
    group = stack["n_heads"] // stack["n_kv_heads"]
    identity = {
        "family": spectra.family,
        "model": stem,
        "model_id": spectra.model_id,
        "revision": spectra.metadata["revision"],
        "stack": layer.stack,
        "circuit": layer.circuit,
        "convention": layer.convention,
        "layer": layer.layer,
        "head": heads,
        "kv_head": heads // group,
    }
    names = spectra.metadata["statistics"].split(",")
    return pd.DataFrame(identity).join(pd.DataFrame(layer.statistics, columns=names))


def head_table(
    data_root: str | Path = ".", families: str | Iterable[str] | None = None
) -> pd.DataFrame:
    """One row a (family, model, revision, stack, circuit, convention, layer, head), all statistics.

    data_root: the folder that holds ``data/``; families: only these, by a name or alias.
    ``model`` is the file's stem, ``revision`` the resolved commit, ``stack`` "" in a model that has
    one. Raises SpectraFileError where
    there are no spectra.
    """
    tables: list[pd.DataFrame] = []
    for path in find_spectra(data_root, families):
        spectra = load_spectra(path)
        tables.extend(_layer_rows(spectra, layer, path.stem) for layer in spectra.layers)
    return pd.concat(tables, ignore_index=True)


def csv_bytes(table: pd.DataFrame) -> bytes:
    """A CSV with numbers to 9 significant digits: the same table gives the same bytes."""
    return table.to_csv(index=False, float_format="%.9g", lineterminator="\n").encode()


def layer_summary(layers: Sequence[LayerSpectra], names: Sequence[str]) -> pd.DataFrame:
    """Medians over heads of every statistic, one row a layer."""
    rows = {layer.layer: np.median(layer.statistics, axis=0) for layer in layers}
    table = pd.DataFrame.from_dict(rows, orient="index", columns=list(names))
    return table.rename_axis("layer").reset_index()
