"""The study of query norms on disk: its report, its tables and its figures."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Set
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from qk_taxonomy.cache import write_file
from qk_taxonomy.figures.query_norm.associations import association_figure
from qk_taxonomy.figures.query_norm.classes import behaviour_figure
from qk_taxonomy.figures.query_norm.histograms import histogram_figure
from qk_taxonomy.figures.query_norm.layers import layer_figure
from qk_taxonomy.figures.query_norm.maps import correlation_map
from qk_taxonomy.figures.query_norm.prediction import prediction_figure
from qk_taxonomy.figures.query_norm.scaling import scaling_figure
from qk_taxonomy.figures.query_norm.scatter import extreme_heads, scatter_figure
from qk_taxonomy.figures.style import house_style
from qk_taxonomy.outputs.files import PLOT_FOLDER, png_bytes
from qk_taxonomy.outputs.query_norm_report import report
from qk_taxonomy.studies.query_norm.scaling import ScalingResult
from qk_taxonomy.studies.query_norm.study import QueryNormStudy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Where reports of the study are, below the folder of plots.
QUERY_NORM_FOLDER = "query-norm"

#: Tables and figures that there may be, by name.
TABLES = ("heads", "samples", "behaviour", "prediction", "associations", "classes", "scaling")
FIGURES = (
    *("correlation_map", "histograms", "layers", "scatter"),
    *("scaling", "prediction", "associations", "classes"),
)


def write_query_norm(study: QueryNormStudy, data_root: str | Path = ".") -> Iterator[Path]:
    """Write the tables, figures and report of a study, and yield the path of each when it is there.

    In :func:`query_norm_folder`: ``heads.csv``, a row a head; ``samples.csv``, a row a window and
    head; ``behaviour.csv``; of the bridge to spectra, ``prediction.csv``, ``associations.csv`` and
    ``classes.csv``; of the intervention, ``scaling.csv``; the figures, each named after the stack
    too where a model has several; and at last ``report.md``. Tables and figures of an earlier run
    that this one has not are deleted first. Raises SpectraFileError.
    """
    folder = query_norm_folder(study, data_root)
    tables, drawings = list(_tables(study)), list(_drawings(study))
    figures = {_figure_name(name, stack) for name, stack, _ in drawings}
    _delete_others(folder, {f"{name}.csv" for name, _ in tables} | figures)
    for name, table in tables:
        text = table.to_csv(index=False, float_format="%.6g", lineterminator="\n")
        yield write_file(folder / f"{name}.csv", text.encode())
    drawn: dict[str, list[str]] = {}
    for name, stack, draw in drawings:
        path = folder / _figure_name(name, stack)
        with house_style():
            yield write_file(path, png_bytes(draw()))
        drawn.setdefault(name, []).append(path.name)
    yield write_file(folder / "report.md", report(study, drawn).encode())


def query_norm_folder(study: QueryNormStudy, data_root: str | Path = ".") -> Path:
    """``<data_root>/plots/query-norm/<family>/<name>-<context>[-<variant>]/``, by the tokens of a
    window and what of the settings is not as by default.
    """
    folder = Path(data_root) / PLOT_FOLDER / QUERY_NORM_FOLDER
    parts = (study.ref_name, str(study.context), study.variant)
    return folder / study.family / "-".join(filter(None, parts))


def _figure_name(name: str, stack: str) -> str:
    return f"{'_'.join(filter(None, (stack, name)))}.png"


def _delete_others(folder: Path, written: Set[str]) -> None:
    """Delete tables and figures of the study that are not ``written``; other files stay."""
    known = re.compile(rf"(?:{'|'.join(TABLES)})\.csv|(?:.+_)?(?:{'|'.join(FIGURES)})\.png")
    for path in folder.glob("*"):
        if known.fullmatch(path.name) and path.name not in written:
            path.unlink(missing_ok=True)


def scaling_table(scaling: ScalingResult) -> pd.DataFrame:
    """One row a head and factor; ``of``: queries or keys are scaled."""
    n = len(scaling.alphas)
    layers, heads, of = (np.repeat(column, n) for column in zip(*scaling.heads, strict=True))
    numbers = {
        name: getattr(scaling, name).ravel()
        for name in ("entropy", "slope", "predicted", "deviation")
    }
    alphas = np.tile(scaling.alphas, len(scaling.heads))
    return pd.DataFrame({"layer": layers, "head": heads, "of": of, "alpha": alphas, **numbers})


def _tables(study: QueryNormStudy) -> Iterator[tuple[str, pd.DataFrame]]:
    yield "heads", study.correlations.heads
    yield "samples", study.correlations.by_sample
    yield "behaviour", study.behaviour
    if study.bridge is not None:
        yield "prediction", study.bridge.prediction
        yield "associations", study.bridge.associations
        if len(study.bridge.classes):
            yield "classes", study.bridge.classes
    if study.scaling is not None:
        yield "scaling", scaling_table(study.scaling)


def _drawings(study: QueryNormStudy) -> Iterator[tuple[str, str, Callable[[], Figure]]]:
    """The figures: what each is called, of which stack it is, and how to draw it."""
    name = f"{study.ref_name} ({study.family}), {study.context} tokens"
    heads, criteria = study.correlations.heads, study.criteria
    for stack, rows in heads.groupby("stack", sort=False):
        title = f"{name}, {stack} stack" if stack else name
        behaviour = study.behaviour[study.behaviour["stack"] == stack]
        maps = partial(correlation_map, rows, f"{title}: query norm and attention entropy")
        yield "correlation_map", stack, partial(maps, consistent=criteria.consistent)
        histograms = partial(histogram_figure, rows, behaviour, f"{title}: heads by correlation")
        yield "histograms", stack, partial(histograms, correlation=criteria.correlation)
        yield "layers", stack, partial(layer_figure, rows, behaviour, f"{title}: heads by depth")
        chosen = extreme_heads(rows)
        if chosen:
            title = f"{title}: heads of extreme correlation"
            yield "scatter", stack, partial(scatter_figure, study.samples, chosen, title)
    if study.scaling is not None:
        title = f"{name}: heads that are scaled"
        yield "scaling", "", partial(scaling_figure, study.scaling, title)
    bridge = study.bridge
    if bridge is None:
        return
    title = f"{name}: behaviour of heads by their spectra"
    if bridge.prediction["r2_within"].notna().any():
        yield "prediction", "", partial(prediction_figure, bridge.prediction, title)
    yield "associations", "", partial(association_figure, bridge.associations, title)
    if len(bridge.classes):
        title = f"{name}: behaviour of heads by class"
        yield "classes", "", partial(behaviour_figure, bridge.heads, bridge.classes, title)
