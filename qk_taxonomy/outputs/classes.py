"""Class figures and tables of models."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from qk_taxonomy.cache import find_spectra
from qk_taxonomy.figures.classes import class_figure
from qk_taxonomy.figures.style import house_style
from qk_taxonomy.outputs.files import (
    CLASS_FOLDER,
    FigureProgress,
    for_each_file,
    load_stacks,
    png_bytes,
    stem_of,
    title_of,
    write_file,
)
from qk_taxonomy.records import Circuit, Convention
from qk_taxonomy.tables import csv_bytes
from qk_taxonomy.taxonomy import N_BINS, N_CLUSTERS, Taxonomy, classify_heads


def _class_tables(taxonomy: Taxonomy) -> tuple[pd.DataFrame, pd.DataFrame]:
    """One row a head; one row a class."""
    heads = pd.DataFrame(
        {
            "layer": taxonomy.layers,
            "head": taxonomy.heads,
            "class": taxonomy.labels,
            "umap_x": taxonomy.map[:, 0],
            "umap_y": taxonomy.map[:, 1],
        }
    )
    classes = pd.DataFrame(
        [
            {"class": c.number, "heads": c.n_heads, **asdict(c.gamma), "share_beyond": c.beyond}
            for c in taxonomy.classes
        ]
    )
    return heads, classes.rename(columns={"divergence": "jsd_nats"})


def generate_cluster_figures(
    family: str | None = None,
    *,
    n_clusters: int = N_CLUSTERS,
    n_bins: int = N_BINS,
    data_root: str | Path = ".",
    progress: FigureProgress | None = None,
    circuit: Circuit = "qk",
    convention: Convention = "raw",
    seed: int = 0,
) -> list[Path]:
    """Class figures of a family's models (None: of all), with their tables; paths of the figures.

    Reads ``<data_root>/data``; writes ``<data_root>/ESDs/<family>/<model>.png``, ``.csv`` (layer,
    head, class, umap_x, umap_y) and ``.classes.csv`` (class, heads, alpha, theta, jsd_nats,
    share_beyond), the stem extended by the stack where a model has several, and by circuit and
    convention where they are not ``qk`` and ``raw``. Raises SpectraFileError where there are no
    spectra; PartialFailureError, after all others are done, where models failed.
    """

    def make(path: Path) -> Iterator[Path]:
        folder = Path(data_root) / CLASS_FOLDER / path.parent.name
        for spectra in load_stacks(path, circuit, convention):
            taxonomy = classify_heads(
                spectra.layers, n_clusters=n_clusters, n_bins=n_bins, seed=seed
            )
            stem = stem_of(path.stem, circuit, convention, spectra.stacks[0])
            heads, classes = _class_tables(taxonomy)
            write_file(folder / f"{stem}.csv", csv_bytes(heads))
            write_file(folder / f"{stem}.classes.csv", csv_bytes(classes))
            with house_style():
                fig = class_figure(taxonomy, title_of(spectra, path, circuit, convention))
                yield write_file(folder / f"{stem}.png", png_bytes(fig))

    return for_each_file(find_spectra(data_root, family), make, progress)
