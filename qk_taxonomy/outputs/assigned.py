"""Heads of surveyed models in the classes of a saved taxonomy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from qk_taxonomy.cache import filed_as, find_spectra, load_spectra, write_file
from qk_taxonomy.outputs.files import (
    CLASS_FOLDER,
    for_each_file,
    stem_of,
)
from qk_taxonomy.progress import FileProgress, Report
from qk_taxonomy.tables import csv_bytes
from qk_taxonomy.taxonomy import Assignment, SavedTaxonomy, assign_heads, load_taxonomy


def generate_assignments(
    taxonomy: str | Path | SavedTaxonomy,
    families: str | Iterable[str] | None = None,
    *,
    data_root: str | Path = ".",
    report: Report | None = None,
    progress: FileProgress | None = None,
) -> list[Path]:
    """Sort the heads of surveyed models into the classes of a taxonomy; paths of the tables.

    Writes ``<data_root>/ESDs/<family>/<model>.assigned.csv`` (layer, head, class, distance to the
    class's centre, and beyond: whether that is farther than 99 % of the class's own heads), the
    stem extended as those of class figures are. report: called with a line on each model. Raises
    TaxonomyError for a file that is no taxonomy, SpectraFileError where there are no spectra, and
    PartialFailureError, after all others are done, where models failed.
    """
    saved = taxonomy if isinstance(taxonomy, SavedTaxonomy) else load_taxonomy(taxonomy)

    def make(path: Path) -> Iterator[Path]:
        assigned = assign_heads(saved, load_spectra(path))
        folder = Path(data_root) / CLASS_FOLDER / path.parent.name
        if report is not None:
            report(_sentence(filed_as(path), assigned, saved))
        rows = _rows(assigned)
        for stack in dict.fromkeys(assigned.pool.stacks.tolist()):
            stem = stem_of(path.stem, saved.circuit, saved.convention, stack)
            table = rows[assigned.pool.stacks == stack]
            yield write_file(folder / f"{stem}.assigned.csv", csv_bytes(table))

    return for_each_file(find_spectra(data_root, families), make, progress)


def _rows(assigned: Assignment) -> pd.DataFrame:
    """One row a head."""
    return pd.DataFrame(
        {
            "layer": assigned.pool.layers,
            "head": assigned.pool.heads,
            "class": assigned.labels,
            "distance": assigned.distances,
            "beyond": assigned.beyond,
        }
    )


def _sentence(name: str, assigned: Assignment, taxonomy: SavedTaxonomy) -> str:
    counts = np.bincount(assigned.labels, minlength=taxonomy.n_clusters)
    classes = ", ".join(f"{number}: {count}" for number, count in enumerate(counts))
    beyond, n = int(assigned.beyond.sum()), len(assigned.labels)
    sentence = (
        f"{name}: heads of class {classes}; {beyond} of {n} ({beyond / n:.0%}) farther from their "
        "class than 99 % of its own"
    )
    width = assigned.pool.narrowest
    if beyond and width < taxonomy.narrowest:
        sentence += (
            " (perhaps only for having fewer λ, which makes noisier histograms: "
            f"d_head {width}, and at least {taxonomy.narrowest} in the taxonomy)"
        )
    return sentence
