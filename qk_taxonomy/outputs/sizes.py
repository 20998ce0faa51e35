"""The page of a family over its sizes: tables, figures, and what holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from qk_taxonomy.cache import write_file
from qk_taxonomy.figures.sizes import depth_figure, size_figure
from qk_taxonomy.figures.style import Page, statistic_label
from qk_taxonomy.outputs.drawing import Caption, write_figure
from qk_taxonomy.outputs.files import PLOT_FOLDER, numbers_of, stem_of
from qk_taxonomy.outputs.markdown import markdown_table, number
from qk_taxonomy.statistics.moments import LOG_STATISTICS
from qk_taxonomy.studies.sizes import BY_DEPTH, FamilySizes, SizeTrends
from qk_taxonomy.tables import csv_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZES_FOLDER = "sizes"

_FIGURES: dict[str, Callable[[SizeTrends, str, Page], Figure]] = {
    "depth": depth_figure,
    "parameters": size_figure,
}
_SLOPES = {
    "depth": ", mean slopes of models from first layer to last",
    "parameters": ", slopes per factor of ten",
}


def write_sizes(sizes: FamilySizes, data_root: str | Path = ".") -> Iterator[Path]:
    """Write the tables, figures and page of a family; each path when the file is there.

    In ``<data_root>/plots/sizes/<family>/``: ``<family>.csv``, a row a test;
    ``<family>_models.csv``, a row a model, circuit and convention, with each statistic's value and
    slope with depth; figures ``<family>_depth.png`` and ``<family>_parameters.png``, named after
    stack, circuit and convention where these are not the usual; and at last the page,
    ``<family>.md``. Raises SpectraFileError.
    """
    folder = Path(data_root) / PLOT_FOLDER / SIZES_FOLDER / sizes.family
    yield write_file(folder / f"{sizes.family}.csv", csv_bytes(sizes.rows))
    models = pd.concat([_models(one) for one in sizes.trends], ignore_index=True)
    yield write_file(folder / f"{sizes.family}_models.csv", csv_bytes(models))
    sections = []
    for one in sizes.trends:
        heads = one.models[0]
        kind = heads.circuit, heads.convention
        title = numbers_of([m.spectra for m in one.models], *kind)
        title += f", {heads.stack} stack" if heads.stack else ""
        drawn = []
        for name, draw in _FIGURES.items():
            heading = f"{sizes.family} by {name}{_SLOPES[name]}: {title}"
            base = folder / f"{stem_of(sizes.family, *kind, heads.stack)}_{name}"
            text = f"A panel a statistic, n = {len(one.models)} models."
            (path,) = write_figure(base, partial(draw, one, heading), Caption(heading, text))
            yield path
            drawn.append(f"![by {name}]({path.name.replace(' ', '%20')})")
        sections += [f"## {title[0].upper()}{title[1:]}", *drawn, _trend_table(one)]
    yield write_file(folder / f"{sizes.family}.md", _page(sizes, sections).encode())


def _page(sizes: FamilySizes, sections: list[str]) -> str:
    shown = max(sizes.trends, key=lambda one: len(one.models))
    rows = [
        (
            heads.model,
            f"{n:,.0f}" if np.isfinite(n) else "–",
            *(str(heads.geometry[key] or "–") for key in ("n_layers", "n_heads", "n_kv_heads")),
            *(str(heads.geometry[key] or "–") for key in ("d_head", "d_model")),
        )
        for heads, n in zip(shown.models, shown.parameters, strict=True)
    ]
    header = ("model", "parameters", "layers", "heads", "key-value heads", "d_head", "d_model")
    limits = (
        "The model is the unit: a layer's value is the median over its heads, a model's the "
        "median over its layers. Logarithms are natural.",
        "Slopes with depth are of whole models, first layer to last; with parameters, per factor "
        "of ten. In brackets: 95 % intervals over models. q: corrected over the statistics of a "
        "test (Benjamini–Hochberg).",
        "Sizes of a family differ in more than parameters: in layers, heads and d_head, and often "
        "in training.",
    )
    parts = [
        f"# {sizes.family}: statistics by depth and by size",
        markdown_table(header, rows),
        *sections,
        "## How to read it",
        "\n".join(f"- {line}" for line in (*limits, *(f"{note}." for note in sizes.notes))),
        f"All numbers: `{sizes.family}.csv`, a row a test; `{sizes.family}_models.csv`, a row a "
        "model.",
    ]
    return "\n\n".join(parts) + "\n"


def _trend_table(trends: SizeTrends) -> str:
    """A row a statistic: its slopes with depth and, both ways, with parameters."""
    rows = []
    for name in trends.statistics:
        own = trends.rows[trends.rows["statistic"] == name]
        depth = own[own["hypothesis"] == BY_DEPTH].iloc[0]
        least, median = (row for _, row in own[own["hypothesis"] != BY_DEPTH].iterrows())
        label = statistic_label(name)
        rows.append(
            (
                f"ln {label}" if name in LOG_STATISTICS else label,
                *(_slope(depth), number(depth["q_value"], ".2g")),
                *(_slope(least), number(least["q_value"], ".2g"), _slope(median)),
            )
        )
    header = (
        *("statistic", "slope with depth", "q"),
        *("slope with parameters, least squares", "q", "Theil–Sen"),
    )
    return markdown_table(header, rows)


def _slope(row: pd.Series) -> str:
    if not np.isfinite(row["effect"]):
        return str(row["note"])
    ends = f" [{number(row['low'], '.3g')}, {number(row['high'], '.3g')}]"
    return number(row["effect"], ".3g") + (ends if np.isfinite(row["low"]) else "")


def _models(trends: SizeTrends) -> pd.DataFrame:
    """A row a model: what it is, and each statistic's value and slope with depth."""
    heads = trends.models
    what = pd.DataFrame(
        {
            "family": [one.family for one in heads],
            "model": [one.model for one in heads],
            "stack": [one.stack for one in heads],
            "circuit": [one.circuit for one in heads],
            "convention": [one.convention for one in heads],
            "parameters": pd.array(trends.parameters, dtype="Float64").astype("Int64"),
        }
    )
    values = trends.values.reset_index(drop=True)
    return pd.concat([what, values, trends.slopes.add_suffix("_slope")], axis=1)
