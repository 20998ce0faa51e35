"""The page of a family over its sizes: tables, figures, and what holds."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pandas as pd

from qk_taxonomy.cache import write_file
from qk_taxonomy.figures.moving import Frame, Moving, moving_densities
from qk_taxonomy.figures.sizes import (
    depth_caption,
    depth_figure,
    size_caption,
    size_figure,
    size_label,
)
from qk_taxonomy.figures.style import house_style, statistic_label
from qk_taxonomy.outputs.drawing import Caption, Draw, write_figure
from qk_taxonomy.outputs.files import PLOT_FOLDER, numbers_of, source_of, stem_of
from qk_taxonomy.outputs.markdown import markdown_table, number
from qk_taxonomy.records import SCREEN_PNG, FigureFiles
from qk_taxonomy.statistics.moments import LOG_STATISTICS
from qk_taxonomy.studies.sizes import BY_DEPTH, FamilySizes, SizeTrends, densities_of
from qk_taxonomy.tables import csv_bytes

SIZES_FOLDER = "sizes"


def write_sizes(
    sizes: FamilySizes, data_root: str | Path = ".", *, figures: FigureFiles = SCREEN_PNG
) -> Iterator[Path]:
    """Write the tables, figures and page of a family; each path when the file is there.

    In ``<data_root>/plots/sizes/<family>/``: ``<family>.csv``, a row a test;
    ``<family>_models.csv``, a row a model, circuit and convention, with each statistic's value and
    slope with depth; ``<family>_depth.png`` and, where three models' parameters are known,
    ``<family>_parameters.png``; densities that move from model to model in order of size,
    ``<family>_moving.gif`` and ``_moving.html``; and at last the page, ``<family>.md``. Figures are
    named after stack, circuit and convention where these are not the usual, and ``<family>`` is
    followed by @ and the revision where one was asked for. Raises SpectraFileError.
    """
    folder = Path(data_root) / PLOT_FOLDER / SIZES_FOLDER / sizes.family
    name = sizes.family
    if sizes.revision is not None:
        name += f"@{quote(sizes.revision, safe='')}"
    yield write_file(folder / f"{name}.csv", csv_bytes(sizes.rows))
    models = pd.concat([_models(one) for one in sizes.trends], ignore_index=True)
    yield write_file(folder / f"{name}_models.csv", csv_bytes(models))
    sections = []
    for one in sizes.trends:
        heads = one.models[0]
        kind = heads.circuit, heads.convention
        stem = stem_of(name, *kind, heads.stack)
        title = numbers_of([m.spectra for m in one.models], *kind)
        title += f", {heads.stack} stack" if heads.stack else ""
        sections.append(f"## {title[0].upper()}{title[1:]}")
        for what, draw, caption in _figures(one, f"{name} by", title):
            written = write_figure(folder / f"{stem}_{what}", draw, caption, figures)
            yield from written
            # A page can show all but PDF.
            shown = [path for path in written if path.suffix != ".pdf"]
            link = f"by {what}]({_link((shown or written)[0])})"
            sections.append(f"![{link}" if shown else f"[{link}")
        # Heads of several widths have no one spectrum.
        if all(len(model.widths) == 1 for model in one.models):
            moving = _moving(one, f"{name}, {title}")
            gif, page = folder / f"{stem}_moving.gif", folder / f"{stem}_moving.html"
            yield write_file(gif, moving.gif)
            yield write_file(page, moving.page)
            sections.append(f"[![from size to size]({_link(gif)})]({_link(page)})")
        sections.append(_trend_table(one))
    yield write_file(folder / f"{name}.md", _page(sizes, name, sections).encode())


def _figures(one: SizeTrends, beginning: str, title: str) -> Iterator[tuple[str, Draw, Caption]]:
    """The figures that there is something to draw in: what each is called, and its caption."""
    source = source_of([model.spectra for model in one.models])
    about = "depth, mean slopes of models from first layer to last"
    heading = f"{beginning} {about}: {title}"
    caption = Caption(heading, f"{depth_caption(one)} {source}")
    yield "depth", partial(depth_figure, one, heading), caption
    if one.by_size:
        heading = f"{beginning} parameters, slopes per factor of ten: {title}"
        caption = Caption(heading, f"{size_caption(one)} {source}")
        yield "parameters", partial(size_figure, one, heading), caption


def _moving(one: SizeTrends, title: str) -> Moving:
    """A frame a model, in order of size."""
    densities = densities_of(one.models)
    labels = [size_label(m.model, n) for m, n in zip(one.models, one.parameters, strict=True)]
    frames = [
        Frame(*values)
        for values in zip(labels, densities.histograms, densities.untrained, strict=True)
    ]
    with house_style():
        return moving_densities(frames, densities.edges, title)


def _link(path: Path) -> str:
    """What a page beside it calls the file: a name, whose own % and blanks are quoted."""
    return quote(path.name)


def _page(sizes: FamilySizes, name: str, sections: list[str]) -> str:
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
        "Spectra of untrained heads depend on d_head and d_model too: where first steps are "
        "surveyed, `--revision step0` tells what of a slope with parameters was there before "
        "training.",
    )
    parts = [
        f"# {name}: statistics by depth and by size",
        markdown_table(header, rows),
        *sections,
        "## How to read it",
        "\n".join(f"- {line}" for line in (*limits, *(f"{note}." for note in sizes.notes))),
        f"All numbers: `{name}.csv`, a row a test; `{name}_models.csv`, a row a model.",
    ]
    return "\n\n".join(parts) + "\n"


def _trend_table(trends: SizeTrends) -> str:
    """A row a statistic: its slopes with depth and, both ways, with parameters where known."""
    header = ["statistic", "slope with depth", "q"]
    if trends.by_size:
        header += ["slope with parameters, least squares", "q", "Theil–Sen"]
    rows = []
    for name in trends.statistics:
        own = trends.rows[trends.rows["statistic"] == name]
        depth = own[own["hypothesis"] == BY_DEPTH].iloc[0]
        label = statistic_label(name)
        cells = [f"ln {label}" if name in LOG_STATISTICS else label]
        cells += [_slope(depth), number(depth["q_value"], ".2g")]
        if trends.by_size:
            least, median = (row for _, row in own[own["hypothesis"] != BY_DEPTH].iterrows())
            cells += [_slope(least), number(least["q_value"], ".2g"), _slope(median)]
        rows.append(cells)
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
