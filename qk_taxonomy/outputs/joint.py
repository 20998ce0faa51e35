"""The joint taxonomy of models and families: one figure, its tables, and the taxonomy's file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from qk_taxonomy.cache import find_spectra, write_file
from qk_taxonomy.catalog import check_file_name
from qk_taxonomy.errors import PartialFailureError
from qk_taxonomy.figures.joint import joint_caption, joint_figure
from qk_taxonomy.outputs.drawing import Caption, write_figure
from qk_taxonomy.outputs.files import (
    CLASS_FOLDER,
    load_models,
    numbers_of,
    source_of,
    stem_of,
)
from qk_taxonomy.outputs.taxonomies import (
    NClusters,
    classify,
    joint_rows,
    summary,
    write_tables,
)
from qk_taxonomy.progress import FileProgress, Report
from qk_taxonomy.records import (
    N_BINS,
    N_CLUSTERS,
    SCREEN_PNG,
    Circuit,
    Convention,
    Distance,
    FigureFiles,
)
from qk_taxonomy.tables import csv_bytes
from qk_taxonomy.taxonomy import Taxonomy, chosen_models
from qk_taxonomy.wording import counted

JOINT_FOLDER = "joint"

# Up to this many families the default name is theirs.
_NAMED_FAMILIES = 3


def generate_joint_taxonomy(
    families: str | Iterable[str] | None = None,
    data_root: str | Path = ".",
    *,
    name: str | None = None,
    n_clusters: NClusters = N_CLUSTERS,
    n_bins: int = N_BINS,
    circuit: Circuit = "qk",
    convention: Convention = "raw",
    seed: int = 0,
    distance: Distance = "euclidean",
    include_imported: bool = False,
    report: Report | None = None,
    progress: FileProgress | None = None,
    figures: FigureFiles = SCREEN_PNG,
) -> list[Path]:
    """One taxonomy of all models of some families (None: of all); paths of what was written.

    Writes to ``<data_root>/ESDs/joint/``: ``<name>.png``; ``.csv`` (family, model, stack, layer,
    head, class, umap_x, umap_y); ``.composition.csv`` (family, model, heads, and the share of each
    class, class_0, class_1, ...); and, as :func:`generate_cluster_figures` does, ``.classes.csv``,
    ``.agreement.csv``, ``.taxonomy.safetensors`` and, for "auto", ``.choice.csv``. ``name`` is by
    default that of the families, joined by "+", up to three of them, else "all"; it is extended by
    circuit and convention where they are not ``qk`` and ``raw``.

    progress: called with the figure, also where some models fail. figures: its formats and size, as
    :class:`FigureFiles` says. Controls are left out; imported
    spectra too, where there are exact ones and not ``include_imported``. Raises SpectraFileError
    where there are no spectra, CatalogError for a name that cannot name a file, TaxonomyError, and,
    when the rest is done, PartialFailureError where models could not be read or have no such
    spectra.
    """
    if name is not None:
        check_file_name(name, "name", "Give another with --name.")
    paths, models, failures = load_models(find_spectra(data_root, families), circuit, convention)
    classified = classify(
        models,
        n_clusters,
        circuit=circuit,
        convention=convention,
        n_bins=n_bins,
        seed=seed,
        distance=distance,
        include_imported=include_imported,
    )
    taxonomy = classified.taxonomy
    pooled = chosen_models(models, include_imported=include_imported)
    title = name or _default_name([paths[i].parent.name for i in pooled])
    stem = stem_of(title, circuit, convention)
    base = Path(data_root) / CLASS_FOLDER / JOINT_FOLDER / stem
    shares = _composition(taxonomy, [paths[i] for i in pooled], pooled)
    written = write_tables(base, classified, joint_rows(taxonomy, paths))
    written.append(write_file(base.with_name(f"{stem}.composition.csv"), csv_bytes(shares)))
    chosen = [models[i] for i in pooled]
    heading = f"{title}: {counted(len(pooled), 'model')}, {numbers_of(chosen, circuit, convention)}"
    names, of = [path.stem for path in paths], [path.parent.name for path in paths]
    drawn = write_figure(
        base,
        partial(joint_figure, taxonomy, names, of, heading),
        Caption(heading, f"{joint_caption(taxonomy)} {source_of(chosen)}"),
        figures,
    )
    if progress is not None:
        for path in drawn:
            progress(1, 1, path)
    written = [*drawn, *written]
    if report is not None:
        report(summary(f"{JOINT_FOLDER}/{stem}", classified))
        left_out = len(models) - len(pooled)
        if left_out:
            report(
                f"Left out: {left_out} of {len(models)} models, whose imported spectra are by "
                "another formula (--include-imported pools them too)."
            )
    if failures:
        raise PartialFailureError(failures)
    return written


def _default_name(families: Sequence[str]) -> str:
    distinct = list(dict.fromkeys(families))
    return "+".join(distinct) if len(distinct) <= _NAMED_FAMILIES else "all"


def _composition(
    taxonomy: Taxonomy, paths: Sequence[Path], positions: Sequence[int]
) -> pd.DataFrame:
    """One row a pooled model: its number of heads, and the share of them in each class."""
    k = taxonomy.saved.n_clusters
    counts = np.stack(
        [np.bincount(taxonomy.labels[taxonomy.models == i], minlength=k) for i in positions]
    )
    identity = {
        "family": [path.parent.name for path in paths],
        "model": [path.stem for path in paths],
        "heads": counts.sum(1),
    }
    shares = counts / counts.sum(1, keepdims=True)
    return pd.DataFrame(identity | {f"class_{number}": shares[:, number] for number in range(k)})
