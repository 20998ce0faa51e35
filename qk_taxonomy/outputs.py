"""From spectra files to figures and tables on disk: what commands and notebooks call."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from qk_taxonomy.cache import find_spectra, load_spectra, make_folder
from qk_taxonomy.catalog import find_family, load_families
from qk_taxonomy.errors import CatalogError, TaxonomyError
from qk_taxonomy.figures.boxes import box_figure
from qk_taxonomy.figures.classes import class_figure
from qk_taxonomy.figures.style import house_style
from qk_taxonomy.records import CIRCUITS, CONVENTIONS, Circuit, Convention, ModelSpectra
from qk_taxonomy.statistics.moments import STATISTICS
from qk_taxonomy.statistics.trends import depth_trend, mean_spline
from qk_taxonomy.tables import write_table
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

#: Called with (index from 1, total, path) after each figure.
FigureProgress = Callable[[int, int, Path], None]


def canonical_family(name: str) -> str:
    """The catalogue's name for a family or alias; any other name as it is (a user's folder)."""
    try:
        return find_family(name, load_families()).name
    except CatalogError:
        return name


def _stem(path: Path, circuit: Circuit, convention: Convention) -> str:
    """The stem of a model's outputs: its name alone for the QK circuit as stored."""
    if (circuit, convention) == (CIRCUITS[0], CONVENTIONS[0]):
        return path.stem
    return f"{path.stem}.{circuit}.{convention}"


def _title(spectra: ModelSpectra, path: Path, circuit: Circuit, convention: Convention) -> str:
    return f"{path.stem} ({spectra.family}), {circuit.upper()} circuit, {convention} weights"


def _save(fig: Figure, path: Path) -> Path:
    make_folder(path.parent)
    fig.savefig(path)
    return path


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
        [{"class": c.number, "heads": c.n_heads, **asdict(c.gamma)} for c in taxonomy.classes]
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
    head, class, umap_x, umap_y) and ``.classes.csv`` (class, heads, alpha, theta, jsd_nats), the
    stem extended by circuit and convention where they are not ``qk`` and ``raw``. Raises
    SpectraFileError where there are no spectra; TaxonomyError, after all other models are done,
    where heads cannot be sorted as asked.
    """
    paths = find_spectra(data_root, None if family is None else [canonical_family(family)])
    figures, failures = [], []
    for index, path in enumerate(paths, start=1):
        spectra = load_spectra(path)
        folder = make_folder(Path(data_root) / CLASS_FOLDER / path.parent.name)
        stem = _stem(path, circuit, convention)
        try:
            taxonomy = classify_heads(
                spectra.select(circuit, convention),
                n_clusters=n_clusters,
                n_bins=n_bins,
                seed=seed,
            )
        except TaxonomyError as err:
            failures.append(f"{path}: {err}")
            continue
        heads, classes = _class_tables(taxonomy)
        write_table(heads, folder / f"{stem}.csv")
        write_table(classes, folder / f"{stem}.classes.csv")
        with house_style():
            fig = class_figure(taxonomy, _title(spectra, path, circuit, convention))
            figures.append(_save(fig, folder / f"{stem}.png"))
        if progress is not None:
            progress(index, len(paths), figures[-1])
    if failures:
        raise TaxonomyError("\n".join(failures))
    return figures


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
    SpectraFileError where there are no spectra, CatalogError for an unknown statistic.
    """
    skipped = {name.casefold() for name in skip or ()}
    unknown = skipped - {name.casefold() for name in STATISTICS}
    if unknown:
        raise CatalogError(
            f"There is no statistic {', '.join(sorted(unknown))}; known are "
            f"{', '.join(STATISTICS)}."
        )
    names = [name for name in STATISTICS if name.casefold() not in skipped]
    paths = find_spectra(data_root, None if family is None else [canonical_family(family)])
    figures: list[Path] = []
    rows: dict[Path, list[dict[str, object]]] = {}
    for path in paths:
        spectra = load_spectra(path)
        folder = Path(data_root) / PLOT_FOLDER / path.parent.name
        stem = _stem(path, circuit, convention)
        layers = spectra.select(circuit, convention)
        layers = layers[first_layer(len(layers)) :]
        for name in names if layers else ():
            column = spectra.metadata["statistics"].split(",").index(name)
            values = [layer.statistics[:, column].astype(np.float64) for layer in layers]
            trend = depth_trend(values)
            means = np.array([v.mean() for v in values])
            x = np.linspace(0, len(means) - 1, 500)
            drawable = len(means) > 1 and bool(np.isfinite(means).all())
            with house_style():
                fig = box_figure(
                    [layer.layer for layer in layers],
                    values,
                    (x, mean_spline(means, x)) if drawable else None,
                    trend,
                    title=_title(spectra, path, circuit, convention),
                    ylabel=_LABELS.get(name, name.replace("_", " ") + " of λ"),
                )
                figures.append(_save(fig, folder / name / f"{stem}_{name}_box.png"))
            rows.setdefault(folder, []).append(
                {
                    "family": path.parent.name,
                    "model": path.stem,
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
            if progress is not None:
                progress(len(figures), len(paths) * len(names), figures[-1])
    for folder, table in rows.items():
        label = _stem(Path("boxplots"), circuit, convention)
        write_table(pd.DataFrame(table), folder / f"{label}.csv")
    return figures
