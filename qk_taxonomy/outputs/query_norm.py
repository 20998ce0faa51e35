"""The study of query norms on disk: its report, its tables and its figures."""

from __future__ import annotations

import re
from collections.abc import Iterator, Set
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from qk_taxonomy.cache import remove_file, write_file
from qk_taxonomy.figures.query_norm.associations import association_caption, association_figure
from qk_taxonomy.figures.query_norm.classes import behaviour_caption, behaviour_figure
from qk_taxonomy.figures.query_norm.histograms import histogram_caption, histogram_figure
from qk_taxonomy.figures.query_norm.layers import layer_caption, layer_figure
from qk_taxonomy.figures.query_norm.maps import correlation_caption, correlation_map
from qk_taxonomy.figures.query_norm.prediction import prediction_caption, prediction_figure
from qk_taxonomy.figures.query_norm.scaling import scaling_caption, scaling_figure
from qk_taxonomy.figures.query_norm.scatter import extreme_heads, scatter_caption, scatter_figure
from qk_taxonomy.outputs.drawing import Caption, Draw, write_figure
from qk_taxonomy.outputs.files import PLOT_FOLDER
from qk_taxonomy.outputs.query_norm_report import report
from qk_taxonomy.records import FIGURE_FORMATS, FIGURE_SIZES, SCREEN_PNG, FigureFiles
from qk_taxonomy.studies.query_norm.scaling import ScalingResult
from qk_taxonomy.studies.query_norm.study import QueryNormStudy
from qk_taxonomy.tables import csv_bytes

#: Where reports of the study are, below the folder of plots.
QUERY_NORM_FOLDER = "query-norm"

#: Tables and figures that there may be, by name.
TABLES = ("heads", "samples", "behaviour", "prediction", "associations", "classes", "scaling")
FIGURES = (
    *("correlation_map", "histograms", "layers", "scatter"),
    *("scaling", "prediction", "associations", "classes"),
)


def write_query_norm(
    study: QueryNormStudy, data_root: str | Path = ".", *, figures: FigureFiles = SCREEN_PNG
) -> Iterator[Path]:
    """Write the tables, figures and report of a study, and yield the path of each when it is there.

    In :func:`query_norm_folder`: ``heads.csv``, a row a head; ``samples.csv``, a row a window and
    head; ``behaviour.csv``; of the bridge to spectra, ``prediction.csv``, ``associations.csv`` and
    ``classes.csv``; of the intervention, ``scaling.csv``; the figures, each named after the stack
    too where a model has several; and at last ``report.md``. Tables and figures of an earlier run
    that this one has not are deleted first. Raises SpectraFileError.
    """
    folder = query_norm_folder(study, data_root)
    tables, drawings = list(_tables(study)), list(_drawings(study))
    bases = {_figure_name(name, stack) for name, stack, *_ in drawings}
    _delete_others(folder, {name for name, _ in tables}, bases)
    for name, table in tables:
        yield write_file(folder / f"{name}.csv", csv_bytes(table, digits=6))
    drawn: dict[str, list[str]] = {}
    for name, stack, draw, caption in drawings:
        written = write_figure(folder / _figure_name(name, stack), draw, caption, figures)
        yield from written
        # A page can show all but PDF.
        shown = [path.name for path in written if path.suffix != ".pdf"] or [written[0].name]
        drawn.setdefault(name, []).append(shown[0])
    yield write_file(folder / "report.md", report(study, drawn).encode())


def query_norm_folder(study: QueryNormStudy, data_root: str | Path = ".") -> Path:
    """``<data_root>/plots/query-norm/<family>/<name>-<context>[-<variant>]/``, by the tokens of a
    window and what of the settings is not as by default.
    """
    folder = Path(data_root) / PLOT_FOLDER / QUERY_NORM_FOLDER
    parts = (study.ref_name, str(study.context), study.variant)
    return folder / study.family / "-".join(filter(None, parts))


def _figure_name(name: str, stack: str) -> str:
    return "_".join(filter(None, (stack, name)))


def _delete_others(folder: Path, tables: Set[str], figures: Set[str]) -> None:
    """Delete tables and figures of the study, of any format and size, that are not among those of
    these names; other files stay.
    """
    table = re.compile(rf"({'|'.join(TABLES)})\.csv")
    sizes, formats = "|".join(FIGURE_SIZES), "|".join((*FIGURE_FORMATS, "md"))
    figure = re.compile(rf"((?:.+_)?(?:{'|'.join(FIGURES)}))(?:\.(?:{sizes}))?\.(?:{formats})")
    for path in folder.glob("*"):
        for known, kept in ((table, tables), (figure, figures)):
            found = known.fullmatch(path.name)
            if found and found[1] not in kept:
                remove_file(path)


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


def _drawings(study: QueryNormStudy) -> Iterator[tuple[str, str, Draw, Caption]]:
    """The figures: what each is called, of which stack it is, how to draw it, and its caption."""
    name = f"{study.ref_name} ({study.family}), {study.context} tokens"
    heads, criteria = study.correlations.heads, study.criteria
    source = f"Shown to the model: {study.description['windows']}."

    def about(title: str, text: str) -> Caption:
        return Caption(title, f"{text} {source}")

    for stack, rows in heads.groupby("stack", sort=False):
        of = f"{name}, {stack} stack" if stack else name
        behaviour = study.behaviour[study.behaviour["stack"] == stack]
        title = f"{of}: query norm and attention entropy"
        draw: Draw = partial(correlation_map, rows, title, consistent=criteria.consistent)
        text = correlation_caption(rows, consistent=criteria.consistent)
        yield "correlation_map", stack, draw, about(title, text)
        title = f"{of}: heads by correlation"
        level = criteria.correlation
        draw = partial(histogram_figure, rows, behaviour, title, correlation=level)
        text = histogram_caption(rows, correlation=level)
        yield "histograms", stack, draw, about(title, text)
        title = f"{of}: heads by depth"
        draw = partial(layer_figure, rows, behaviour, title)
        yield "layers", stack, draw, about(title, layer_caption(rows))
        chosen = extreme_heads(rows)
        if chosen:
            title = f"{of}: heads of extreme correlation"
            draw = partial(scatter_figure, study.samples, chosen, title)
            yield "scatter", stack, draw, about(title, scatter_caption(study.samples, chosen))
    if study.scaling is not None:
        title = f"{name}: heads that are scaled"
        draw = partial(scaling_figure, study.scaling, title)
        yield "scaling", "", draw, about(title, scaling_caption(study.scaling))
    bridge = study.bridge
    if bridge is None:
        return
    title = f"{name}: behaviour of heads by their spectra"
    if bridge.prediction["r2_within"].notna().any():
        draw = partial(prediction_figure, bridge.prediction, title)
        yield "prediction", "", draw, about(title, prediction_caption(bridge.prediction))
    draw = partial(association_figure, bridge.associations, title)
    yield "associations", "", draw, about(title, association_caption(bridge.associations))
    if len(bridge.classes):
        title = f"{name}: behaviour of heads by class"
        draw = partial(behaviour_figure, bridge.heads, bridge.classes, title)
        text = behaviour_caption(bridge.heads, bridge.classes)
        yield "classes", "", draw, about(title, text)
