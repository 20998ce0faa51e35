"""Tables: one row a head, as a pandas DataFrame."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from qk_taxonomy.cache import filed_as, find_spectra, lacking, load_spectra, stack_table
from qk_taxonomy.errors import NoSuchSpectraError, QKTaxonomyError
from qk_taxonomy.progress import FileProgress
from qk_taxonomy.records import (
    CIRCUITS,
    CONVENTIONS,
    Circuit,
    Convention,
    FileStem,
    LayerSpectra,
    ModelSpectra,
)
from qk_taxonomy.training_steps import training_step

#: What a head is, in the order of a head table's first columns; its statistics follow.
IDENTITY = (
    *("family", "model", "model_id", "revision", "step", "control", "formula"),
    *("stack", "layer", "depth", "head", "kv_head", "circuit", "convention"),
)


def head_table(
    data_root: str | Path = ".",
    families: str | Iterable[str] | None = None,
    *,
    circuits: Sequence[Circuit] | None = None,
    conventions: Sequence[Convention] | None = None,
) -> pd.DataFrame:
    """All heads, of models and of their controls: one row a head, circuit and convention.

    data_root: the folder that holds ``data/``; families: only these, by a name or alias; circuits,
    conventions: only these, of the files that have them (None: all). Columns :data:`IDENTITY`:
    ``model`` is the file's stem, ``revision``
    the resolved commit; ``step`` (Int64) the training step of the revision that the file's name
    tells (``training_steps``), NA where it tells none; ``control`` "" for a model itself, else its
    control's label; ``formula`` "exact", or "predecessor" in imported files; ``stack`` "" in a
    model that has one; ``layer`` the model's own number and ``depth`` its place among the stack's
    surveyed layers, from 0 to 1 (0 where there is one); ``kv_head`` (Int64) NA where the number of
    key-value heads is not known. Then all statistics of λ, float32, in the file's order
    (``statistics.moments``); NaN where a file of an older version lacks one. Raises
    SpectraFileError where there are no such spectra, or a file cannot be read:
    :func:`readable_heads` leaves such files out.
    """
    table, failures = readable_heads(
        data_root, families, circuits=circuits, conventions=conventions
    )
    for error in failures.values():
        if not isinstance(error, NoSuchSpectraError):
            raise error
    return table


def readable_heads(
    data_root: str | Path = ".",
    families: str | Iterable[str] | None = None,
    *,
    circuits: Sequence[Circuit] | None = None,
    conventions: Sequence[Convention] | None = None,
    progress: FileProgress | None = None,
) -> tuple[pd.DataFrame, dict[str, QKTaxonomyError]]:
    """The :func:`head_table` of the files that can be read, and the errors of the others.

    The errors are by "family/model"; a file that lacks some of the circuits and conventions that
    are given is among them. Where no file can be read, the table has no rows. Raises
    SpectraFileError where there are no such spectra.
    """
    paths = find_spectra(data_root, families, controls=True)
    pairs = set(itertools.product(circuits or CIRCUITS, conventions or CONVENTIONS))
    tables = []
    failures: dict[str, QKTaxonomyError] = {}
    for index, path in enumerate(paths, start=1):
        try:
            spectra = load_spectra(path)
        except QKTaxonomyError as err:
            failures[filed_as(path)] = err
        else:
            layers = [s for s in spectra.layers if (s.circuit, s.convention) in pairs]
            if layers:
                tables.append(spectra_rows(spectra, layers, path.stem))
            if (error := lacking(path, spectra, circuits, conventions)) is not None:
                failures[filed_as(path)] = error
        if progress is not None:
            progress(index, len(paths), path)
    if not tables and all(isinstance(err, NoSuchSpectraError) for err in failures.values()):
        wanted = " or ".join(f"{circuit} {convention}" for circuit, convention in sorted(pairs))
        raise NoSuchSpectraError(
            f"Of the {len(paths)} spectra files found, none has {wanted or 'a circuit asked for'}. "
            "Add it by giving the command that made them (`qk-taxonomy download ...`) --circuit "
            "and --convention."
        )
    table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=list(IDENTITY))
    return table, failures


def spectra_rows(spectra: ModelSpectra, layers: Sequence[LayerSpectra], stem: str) -> pd.DataFrame:
    """The rows of :func:`head_table` for some of a file's layers, in their order."""
    stacks = stack_table(spectra.metadata)
    depths = _depths(spectra.layers)
    sizes = [len(layer.statistics) for layer in layers]
    heads = np.concatenate([np.arange(size) for size in sizes])
    revision = FileStem.parse(stem).revision
    step = None if revision is None else training_step(revision)
    n_heads, n_kv_heads = (
        np.repeat([stacks[layer.stack][key] for layer in layers], sizes)
        for key in ("n_heads", "n_kv_heads")
    )
    known = n_kv_heads > 0
    groups = np.maximum(n_heads // np.where(known, n_kv_heads, 1), 1)
    identity = {
        "family": spectra.family,
        "model": stem,
        "model_id": spectra.model_id,
        "revision": spectra.metadata["revision"],
        "step": pd.Series([step] * len(heads), dtype="Int64"),
        "control": spectra.control,
        "formula": spectra.formula,
        "stack": np.repeat([layer.stack for layer in layers], sizes),
        "layer": np.repeat([layer.layer for layer in layers], sizes),
        "depth": np.repeat([np.float32(depths[layer.place]) for layer in layers], sizes),
        "head": heads,
        "kv_head": pd.Series(heads // groups, dtype="Int64").where(known),
        "circuit": np.repeat([layer.circuit for layer in layers], sizes),
        "convention": np.repeat([layer.convention for layer in layers], sizes),
    }
    statistics = np.concatenate([layer.statistics for layer in layers])
    names = spectra.statistic_names
    columns = pd.DataFrame(identity, columns=list(IDENTITY))
    return columns.join(pd.DataFrame(statistics, columns=names))


def _depths(layers: Iterable[LayerSpectra]) -> dict[tuple[str, int], float]:
    """Each layer's place among those of its stack, from 0 for the first to 1 for the last."""
    places = sorted({layer.place for layer in layers})
    depths: dict[tuple[str, int], float] = {}
    for _, group in itertools.groupby(places, key=lambda place: place[0]):
        stack = list(group)
        depths |= {place: i / max(len(stack) - 1, 1) for i, place in enumerate(stack)}
    return depths


def csv_bytes(table: pd.DataFrame, *, digits: int = 9) -> bytes:
    """A CSV with numbers to so many significant digits: the same table gives the same bytes."""
    return table.to_csv(index=False, float_format=f"%.{digits}g", lineterminator="\n").encode()


def parquet_bytes(table: pd.DataFrame) -> bytes:
    """A Parquet file, with the table's dtypes."""
    buffer = io.BytesIO()
    table.to_parquet(buffer, engine="pyarrow", index=False)
    return buffer.getvalue()


def layer_summary(layers: Sequence[LayerSpectra], names: Sequence[str]) -> pd.DataFrame:
    """Medians over heads of every statistic, one row a layer."""
    rows = {layer.layer: np.median(layer.statistics, axis=0) for layer in layers}
    table = pd.DataFrame.from_dict(rows, orient="index", columns=list(names))
    return table.rename_axis("layer").reset_index()
