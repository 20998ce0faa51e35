"""From spectra files to figures and tables on disk: what commands and notebooks call."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from qk_taxonomy.cache import find_spectra, load_spectra, make_folder
from qk_taxonomy.errors import (
    CatalogError,
    PartialFailureError,
    QKTaxonomyError,
    SpectraFileError,
)
from qk_taxonomy.figures.boxes import box_figure
from qk_taxonomy.figures.classes import class_figure
from qk_taxonomy.figures.style import house_style
from qk_taxonomy.records import CIRCUITS, CONVENTIONS, Circuit, Convention, ModelSpectra
from qk_taxonomy.statistics.moments import STATISTICS
from qk_taxonomy.statistics.trends import Array, DepthTrend, depth_trend, mean_spline
from qk_taxonomy.tables import csv_bytes
from qk_taxonomy.taxonomy import N_BINS, N_CLUSTERS, Taxonomy, classify_heads

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLASS_FOLDER = "ESDs"
PLOT_FOLDER = "plots"

_LABELS: dict[str, str] = {
    "MIN": "MIN: smallest λ",
    "MAX": "MAX: largest λ",
    "MEAN": "MEAN: mean λ",
    "STD": "STD: standard deviation of λ",
    "SKEW": "SKEW: skewness of λ",
    "KURTOSIS": "KURTOSIS: excess kurtosis of λ",
    "effective_rank_sigma": "effective rank of σ",
    "effective_rank_lambda": "effective rank of λ",
    "r90": "r90: number of λ for 90 % of Σλ",
    "near_zero_ratio": "share of λ below λ₁ / 1000",
    "power_law_alpha": "power-law exponent α of λ",
}

#: Called after each figure with the model's number (from 1), the number of models, and the path.
FigureProgress = Callable[[int, int, Path], None]


def _stem(name: str, circuit: Circuit, convention: Convention, stack: str = "") -> str:
    """The stem of outputs: a name alone for the QK circuit as stored of a model of one stack."""
    usual = (circuit, convention) == (CIRCUITS[0], CONVENTIONS[0])
    parts = (name, stack, "" if usual else f"{circuit}.{convention}")
    return ".".join(part for part in parts if part)


def _title(spectra: ModelSpectra, path: Path, circuit: Circuit, convention: Convention) -> str:
    (stack,) = spectra.stacks
    which = f"{path.stem}, {stack} stack" if stack else path.stem
    return f"{which} ({spectra.family}), {circuit.upper()} circuit, {convention} weights"


def _write(path: Path, data: bytes) -> Path:
    """Write a file beside its name, then rename it. Raises SpectraFileError."""
    beside = make_folder(path.parent) / f".{path.name}.{os.getpid()}"
    try:
        beside.write_bytes(data)
        beside.replace(path)
    except OSError as err:
        raise SpectraFileError(f"{path} cannot be written: {err.strerror}.") from err
    finally:
        beside.unlink(missing_ok=True)
    return path


def _png(fig: Figure) -> bytes:
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png")
    return buffer.getvalue()


def _load_stacks(path: Path, circuit: Circuit, convention: Convention) -> list[ModelSpectra]:
    """A file's spectra of one circuit and convention, stack by stack.

    Raises SpectraFileError if there are none.
    """
    spectra = load_spectra(path)
    stacks = [
        replace(spectra, layers=layers)
        for stack in spectra.stacks
        if (layers := spectra.select(circuit, convention, stack))
    ]
    if not stacks:
        raise SpectraFileError(
            f"{path} has no {circuit} {convention} spectra; add them by giving the command that "
            f"made it (`qk-taxonomy download ...`) --circuit {circuit} --convention {convention}."
        )
    return stacks


def _for_each(
    paths: Sequence[Path], make: Callable[[Path], Iterator[Path]], progress: FigureProgress | None
) -> list[Path]:
    """Make the figures of every file; one that fails is reported when all others are done."""
    figures: list[Path] = []
    failures: dict[str, Exception] = {}
    for index, path in enumerate(paths, start=1):
        try:
            for figure in make(path):
                figures.append(figure)
                if progress is not None:
                    progress(index, len(paths), figure)
        except QKTaxonomyError as err:
            failures[f"{path.parent.name}/{path.stem}"] = err
    if failures:
        raise PartialFailureError(failures)
    return figures


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
        for spectra in _load_stacks(path, circuit, convention):
            taxonomy = classify_heads(
                spectra.layers, n_clusters=n_clusters, n_bins=n_bins, seed=seed
            )
            stem = _stem(path.stem, circuit, convention, spectra.stacks[0])
            heads, classes = _class_tables(taxonomy)
            _write(folder / f"{stem}.csv", csv_bytes(heads))
            _write(folder / f"{stem}.classes.csv", csv_bytes(classes))
            with house_style():
                fig = class_figure(taxonomy, _title(spectra, path, circuit, convention))
                yield _write(folder / f"{stem}.png", _png(fig))

    return _for_each(find_spectra(data_root, family), make, progress)


def first_layer(n_layers: int) -> int:
    """The first layer that box plots show: early layers dwarf the others in deep models.

    Two are left out, five from 80 layers on (the sizes of Llama 70B and above), none in models so
    shallow (fewer than 12) that little would remain.
    """
    if n_layers < 12:
        return 0
    return 5 if n_layers >= 80 else 2


def generate_stat_boxplots(
    data_root: str | Path = ".",
    *,
    skip: Iterable[str] | None = None,
    family: str | None = None,
    circuit: Circuit = "qk",
    convention: Convention = "raw",
    progress: FigureProgress | None = None,
) -> list[Path]:
    """Box plots by layer of every statistic of λ, with their tests; paths of the figures.

    Writes ``<data_root>/plots/<family>/<STAT>/<model>_<STAT>_box.png`` for the six of ``Stats``
    and every other statistic of the file, less those of ``skip``, and
    ``<data_root>/plots/<family>/boxplots.csv`` with one row a model and statistic: BDS test of
    the per-layer medians, and Spearman's correlation of the per-layer means with depth. Raises
    SpectraFileError where there are no spectra, CatalogError for an unknown statistic, and
    PartialFailureError, after all others are done, where models failed.
    """
    skipped = {name.casefold() for name in skip or ()}
    unknown = skipped - {name.casefold() for name in STATISTICS}
    if unknown:
        raise CatalogError(
            f"There is no statistic {', '.join(sorted(unknown))}; known are "
            f"{', '.join(STATISTICS)}."
        )
    rows: dict[Path, list[dict[str, object]]] = {}

    def make(path: Path) -> Iterator[Path]:
        for spectra in _load_stacks(path, circuit, convention):
            yield from plot(path, spectra)

    def plot(path: Path, spectra: ModelSpectra) -> Iterator[Path]:
        names = spectra.metadata["statistics"].split(",")
        folder = Path(data_root) / PLOT_FOLDER / path.parent.name
        layers = spectra.layers[first_layer(len(spectra.layers)) :]
        for column, name in enumerate(names):
            if name.casefold() in skipped:
                continue
            values = [layer.statistics[:, column].astype(np.float64) for layer in layers]
            trend = depth_trend(values)
            title = _title(spectra, path, circuit, convention)
            fig = _statistic_figure(name, [layer.layer for layer in layers], values, trend, title)
            stem = _stem(path.stem, circuit, convention, spectra.stacks[0])
            file = f"{stem}_{name}_box.png"
            yield _write(folder / name / file, fig)
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
                    "spearman": trend.spearman,
                    "spearman_p_value": trend.spearman_p_value,
                    "note": trend.note,
                }
            )

    try:
        return _for_each(find_spectra(data_root, family), make, progress)
    finally:
        for folder, table in rows.items():
            label = _stem("boxplots", circuit, convention)
            _write(folder / f"{label}.csv", csv_bytes(pd.DataFrame(table)))


def _statistic_figure(
    name: str, layers: list[int], values: list[Array], trend: DepthTrend, title: str
) -> bytes:
    """The PNG of one statistic's box plot, with smoothed means where there are any to smooth."""
    means = np.array([v.mean() for v in values])
    x = np.linspace(0, len(means) - 1, 500)
    smooth = len(means) > 2 and bool(np.isfinite(means).all()) and bool(np.ptp(means) > 0)
    with house_style():
        fig = box_figure(
            layers,
            values,
            (x, mean_spline(means, x)) if smooth else None,
            trend,
            title=title,
            ylabel=_LABELS.get(name, name.replace("_", " ") + " of λ"),
        )
        return _png(fig)
