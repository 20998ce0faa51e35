"""Class figures and tables of models, one model at a time."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from qk_taxonomy.cache import find_spectra
from qk_taxonomy.figures.classes import class_caption, class_figure
from qk_taxonomy.outputs.drawing import Caption, write_figure
from qk_taxonomy.outputs.files import (
    CLASS_FOLDER,
    for_each_file,
    load_stacks,
    source_of,
    stem_of,
    title_of,
)
from qk_taxonomy.outputs.taxonomies import (
    NClusters,
    classify,
    head_rows,
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


def generate_cluster_figures(
    family: str | None = None,
    *,
    n_clusters: NClusters = N_CLUSTERS,
    n_bins: int = N_BINS,
    data_root: str | Path = ".",
    progress: FileProgress | None = None,
    circuit: Circuit = "qk",
    convention: Convention = "raw",
    seed: int = 0,
    distance: Distance = "euclidean",
    report: Report | None = None,
    figures: FigureFiles = SCREEN_PNG,
) -> list[Path]:
    """Class figures of a family's models (None: of all), with their tables; paths of the figures.

    Reads ``<data_root>/data``; writes ``<data_root>/ESDs/<family>/<model>.png``, ``.csv`` (layer,
    head, class, umap_x, umap_y), ``.classes.csv`` (class, heads, alpha, theta, jsd_nats,
    share_beyond), ``.agreement.csv`` (varied, value, ari: the classes against those of other
    seeds, bins and distance) and ``.taxonomy.safetensors`` (for :func:`generate_assignments`). The
    stem is extended by the stack where a model has several, and by circuit and convention where
    they are not ``qk`` and ``raw``. figures: formats and size of the figures, as
    :class:`FigureFiles` says; captions are beside them.

    n_clusters: "auto" takes the number that :func:`choose_n_clusters` says, and writes its table,
    ``.choice.csv`` (clusters, stability, standard_error, silhouette, chosen). report: called with
    a line on each model's stability, silhouette and lowest agreement. Raises SpectraFileError
    where there are no spectra; PartialFailureError, after all others are done, where models failed.
    """

    def make(path: Path) -> Iterator[Path]:
        folder = Path(data_root) / CLASS_FOLDER / path.parent.name
        for spectra in load_stacks(path, circuit, convention):
            classified = classify(
                [spectra],
                n_clusters,
                circuit=circuit,
                convention=convention,
                n_bins=n_bins,
                seed=seed,
                distance=distance,
            )
            taxonomy = classified.taxonomy
            stem = stem_of(path.stem, circuit, convention, spectra.stacks[0])
            write_tables(folder / stem, classified, head_rows(taxonomy))
            title = title_of(spectra, path, circuit, convention)
            caption = Caption(title, f"{class_caption(taxonomy)} {source_of([spectra])}")
            drawn = write_figure(
                folder / stem, partial(class_figure, taxonomy, title), caption, figures
            )
            if report is not None:
                report(summary(f"{path.parent.name}/{stem}", classified))
            yield from drawn

    return for_each_file(find_spectra(data_root, family), make, progress)
