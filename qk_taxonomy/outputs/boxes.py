"""Box plots of statistics by layer, and the table of their tests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from qk_taxonomy.cache import find_spectra, write_file
from qk_taxonomy.errors import CatalogError
from qk_taxonomy.figures.boxes import box_caption, box_figure
from qk_taxonomy.labels import statistic_axis, statistic_label
from qk_taxonomy.outputs.drawing import Caption, write_figure
from qk_taxonomy.outputs.files import (
    PLOT_FOLDER,
    for_each_file,
    load_stacks,
    source_of,
    stem_of,
    title_of,
)
from qk_taxonomy.progress import FileProgress
from qk_taxonomy.records import SCREEN_PNG, Circuit, Convention, FigureFiles, ModelSpectra
from qk_taxonomy.statistics.moments import STATISTICS
from qk_taxonomy.statistics.trends import (
    Array,
    Smoothing,
    depth_trend,
    first_layer,
    mean_spline,
)
from qk_taxonomy.tables import csv_bytes


def generate_stat_boxplots(
    data_root: str | Path = ".",
    *,
    skip: Iterable[str] | None = None,
    family: str | None = None,
    circuit: Circuit = "qk",
    convention: Convention = "raw",
    smoothing: Smoothing = "relative",
    progress: FileProgress | None = None,
    figures: FigureFiles = SCREEN_PNG,
) -> list[Path]:
    """Box plots by layer of every statistic of λ, with their tests; paths of the figures.

    Writes ``<data_root>/plots/<family>/<STAT>/<model>_<STAT>_box.png`` for the six of ``Stats``
    and every other statistic of the file, less those of ``skip``, and
    ``<data_root>/plots/<family>/boxplots.csv`` with one row a model and statistic: its
    ``qk_taxonomy.statistics.trends.DepthTrend``. ``smoothing``: how much of the means' course
    the dashed line keeps, as ``qk_taxonomy.statistics.trends.mean_spline`` says. ``figures``:
    their formats and size, as :class:`FigureFiles` says. Raises
    SpectraFileError where there are no spectra, CatalogError for an unknown statistic, and
    PartialFailureError, after all others are done, where models failed.
    """
    known = {name.casefold() for name in STATISTICS}
    asked = tuple(skip or ())
    skipped = {name.casefold() for name in asked}
    if unknown := [name for name in asked if name.casefold() not in known]:
        raise CatalogError(
            f"There is no statistic {', '.join(unknown)}; known are {', '.join(STATISTICS)}."
        )
    rows: dict[Path, list[dict[str, object]]] = {}

    def make(path: Path) -> Iterator[Path]:
        for spectra in load_stacks(path, circuit, convention):
            yield from plot(path, spectra)

    def plot(path: Path, spectra: ModelSpectra) -> Iterator[Path]:
        names = spectra.statistic_names
        folder = Path(data_root) / PLOT_FOLDER / path.parent.name
        layers = spectra.layers[first_layer(len(spectra.layers)) :]
        for column, name in enumerate(names):
            if name.casefold() in skipped:
                continue
            values = [layer.statistics[:, column].astype(np.float64) for layer in layers]
            trend = depth_trend(values)
            title = title_of(spectra, path, circuit, convention)
            numbers = [layer.layer for layer in layers]
            spline = _spline(values, smoothing)
            label = statistic_label(name)
            about = box_caption(numbers, values, trend, label, smoothed=spline is not None)
            stem = stem_of(path.stem, circuit, convention, spectra.stacks[0])
            draw = partial(
                box_figure, numbers, values, spline, trend, title=title, ylabel=statistic_axis(name)
            )
            yield from write_figure(
                folder / name / f"{stem}_{name}_box",
                draw,
                Caption(f"{title}: {label}", f"{about} {source_of([spectra])}"),
                figures,
            )
            rows.setdefault(folder, []).append(
                {
                    "family": path.parent.name,
                    "model": path.stem,
                    "stack": spectra.stacks[0],
                    "circuit": circuit,
                    "convention": convention,
                    "statistic": name,
                    "n_layers": trend.n_layers,
                    "n_heads": len(values[0]),
                    "bds": trend.bds,
                    "p_value": trend.bds_p_value,
                    "bds_permutation_p_value": trend.bds_permutation_p_value,
                    "mann_kendall_tau": trend.mann_kendall_tau,
                    "mann_kendall_p_value": trend.mann_kendall_p_value,
                    "theil_sen_slope": trend.theil_sen_slope,
                    "slope_low": trend.slope_low,
                    "slope_high": trend.slope_high,
                    "spearman": trend.spearman,
                    "spearman_p_value": trend.spearman_p_value,
                    "note": trend.note,
                }
            )

    try:
        return for_each_file(find_spectra(data_root, family), make, progress)
    finally:
        for folder, table in rows.items():
            label = stem_of("boxplots", circuit, convention)
            write_file(folder / f"{label}.csv", csv_bytes(pd.DataFrame(table)))


def _spline(values: list[Array], smoothing: Smoothing) -> tuple[Array, Array] | None:
    """Smoothed means, where there are any to smooth."""
    means = np.array([v.mean() for v in values])
    if len(means) < 3 or not np.isfinite(means).all() or np.ptp(means) == 0:
        return None
    x = np.linspace(0, len(means) - 1, 500)
    return x, mean_spline(means, x, smoothing)
